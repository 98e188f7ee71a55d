"""A real browser for the pages: what one shows, says and asks for.

Chromium of the system, driven by Playwright: it sets width, colour scheme and medium as a device
would, hands over console and requests, and needs no driver that must match the browser's version
(Selenium does). axe-core, the usual accessibility checker, comes with axe-playwright-python.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

EXECUTABLE = shutil.which("chromium") or shutil.which("google-chrome")
PHONE, DESK = 390, 1280  # pixels


@dataclass
class Visit:
    """A page that was opened.

    Attributes:
      page: of Playwright.
      said: console messages and errors that nothing caught.
      asked: addresses that were requested, the page itself and data: URIs left out.
    """

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def browser() -> Iterator[Any]:
    """A running chromium; skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if EXECUTABLE is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    # Root, which containers run as, has no sandbox; the pages are our own.
    flags = ["--no-sandbox", "--disable-dev-shm-usage"]
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=EXECUTABLE, args=flags)
        yield running
        running.close()


@contextmanager
def visit(
    running: Any, path: Path, *, width: int = DESK, scheme: str = "light", script: bool = True
) -> Iterator[Visit]:
    """Opens a page of `path` as on a screen of `width` pixels, a phone below 600."""
    phone = width < 600
    context = running.new_context(
        viewport={"width": width, "height": 844},
        color_scheme=scheme,
        is_mobile=phone,
        has_touch=phone,
        java_script_enabled=script,
    )
    address = path.absolute().as_uri()
    found = Visit(context.new_page())
    found.page.on("console", lambda message: found.said.append(message.text))
    found.page.on("pageerror", lambda error: found.said.append(str(error)))

    def note(request: Any) -> None:
        if not request.url.startswith(("data:", address)):
            found.asked.append(request.url)

    found.page.on("request", note)
    found.page.set_default_timeout(120_000)  # milliseconds; test machines are shared
    found.page.goto(address)
    try:
        yield found
    finally:
        context.close()


def unfold(page: Any) -> None:
    """Opens everything that is folded."""
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")


def accessibility(page: Any) -> list[str]:
    """What axe-core objects to, one line for each rule; all of its rules, all impacts."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {rule['help']}: {[n['target'] for n in rule['nodes']]}"
        for rule in found
    ]
