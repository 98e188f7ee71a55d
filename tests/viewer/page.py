"""The viewer's page in a real browser, and where the pixels of a frame lie on its canvas."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.report.browser import DESK
from tests.viewer.client import Viewer
from tests.viewer.fake_run import HEIGHT, WIDTH

FIRST, SECOND, BOTH = (213, 94, 0), (240, 228, 66), (86, 180, 233)


@dataclass
class Page:
    """An open page.

    Attributes:
      page: of Playwright.
      said: what it wrote to the console, and errors that nothing caught.
      foreign: requests to anything but the viewer.
    """

    page: Any
    said: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def settle(self) -> None:
        """Waits until what was asked for is drawn."""
        self.page.evaluate("() => new Promise((f) => requestAnimationFrame(() => setTimeout(f)))")
        self.page.evaluate("() => new Promise((f) => requestAnimationFrame(() => setTimeout(f)))")

    def until(self, script: str) -> None:
        """Waits until a script is true; the page's own policy forbids Playwright's way."""
        deadline = time.monotonic() + 120
        while not self.page.evaluate(script):
            assert time.monotonic() < deadline, script
            self.settle()

    def shown(self, case: int, frame: int) -> None:
        """Waits until a frame is on the canvas with all that belongs to it."""
        self.page.wait_for_selector(f'#picture[data-shown="{case}/{frame}"]', state="attached")
        self.settle()

    def press(self, *keys: str) -> None:
        """Presses keys, one after the other."""
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def fade(self, control: str, value: int) -> None:
        """Sets a slider."""
        script = "(n, v) => { n.value = v; n.dispatchEvent(new Event('input', {bubbles: true})) }"
        self.page.locator(f"#{control}").evaluate(script, value)
        self.settle()

    def canvas(self) -> NDArray[np.uint8]:
        """What the canvas shows, RGB [height, width, 3]."""
        self.settle()
        script = "document.getElementById('picture').toDataURL('image/png').split(',')[1]"
        data = base64.b64decode(self.page.evaluate(script))
        picture: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        return picture[..., 2::-1]

    def at(self, row: float, column: float) -> tuple[float, float]:
        """Where the centre of a pixel lies in the window, while the picture fits."""
        box = self.page.locator("#picture").bounding_box()
        scale = min(box["width"] / WIDTH, box["height"] / HEIGHT)
        x = box["x"] + box["width"] / 2 + (column + 0.5 - WIDTH / 2) * scale
        return x, box["y"] + box["height"] / 2 + (row + 0.5 - HEIGHT / 2) * scale

    def colour(self, row: int, column: int) -> tuple[int, ...]:
        """That of a pixel of the frame on the canvas, while the picture fits."""
        picture = self.canvas()
        box = self.page.locator("#picture").bounding_box()
        x, y = self.at(row, column)
        ratio = picture.shape[1] / box["width"]
        return tuple(map(int, picture[int((y - box["y"]) * ratio), int((x - box["x"]) * ratio)]))


@contextmanager
def opened(
    chromium: Any,
    viewer: Viewer,
    *,
    width: int = DESK,
    scheme: str = "light",
    address: str = "",
    first: tuple[int, int] | None = (0, 0),
) -> Iterator[Page]:
    """Opens the page on a screen of `width` pixels, a phone below 600."""
    phone = width < 600
    context = chromium.new_context(
        viewport={"width": width, "height": 844},
        color_scheme=scheme,
        is_mobile=phone,
        has_touch=phone,
    )
    found = Page(context.new_page())
    found.page.on("console", lambda message: found.said.append(message.text))
    found.page.on("pageerror", lambda error: found.said.append(str(error)))
    here = viewer.address.partition("#")[0]

    def note(request: Any) -> None:
        if not request.url.startswith((here, "data:")):
            found.foreign.append(request.url)

    found.page.on("request", note)
    found.page.set_default_timeout(120_000)  # milliseconds; test machines are shared
    found.page.goto(address or viewer.address)
    if first is not None:
        found.shown(*first)
    try:
        yield found
    finally:
        context.close()
