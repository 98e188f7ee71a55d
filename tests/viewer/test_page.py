"""The page in a real browser: seen, scrubbed, faded, compared; with a mouse, keys, on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cmunet_jax.viewer import runs
from tests.report import browser
from tests.report.browser import DESK, PHONE
from tests.viewer import fake_run
from tests.viewer.client import TOKEN, Viewer, viewing
from tests.viewer.page import BOTH, FIRST, SECOND, opened

RUN = 1  # the case of five frames
THICK, THIN = fake_run.draw(0, 8.0), fake_run.draw(0, 6.0)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.browser() as running:
        yield running


def place(where: np.ndarray) -> tuple[int, int]:
    """A pixel of a mask, as (row, column), that lies deep in it."""
    deep = cv2.distanceTransform(where.astype(np.uint8), cv2.DIST_L2, 3)
    row, column = np.unravel_index(int(deep.argmax()), where.shape)
    return int(row), int(column)


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (DESK, "light"),
        (PHONE, "dark"),
        pytest.param(DESK, "dark", marks=pytest.mark.slow),
        pytest.param(PHONE, "light", marks=pytest.mark.slow),
    ],
)
def test_it_opens_quietly_and_can_be_read_by_all(
    chromium: Any, standing: Viewer, width: int, scheme: str
):
    with opened(chromium, standing, width=width, scheme=scheme) as found:
        picture = found.canvas()
        middle = picture[picture.shape[0] // 3 : 2 * picture.shape[0] // 3]
        assert middle.std() > 10 and len(np.unique(middle)) > 50  # no blank canvas
        assert found.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert browser.accessibility(found.page) == []
        browser.unfold(found.page)
        found.page.locator("[data-mode=swipe]").click()
        found.page.locator("[data-tool=paint]").click()
        assert browser.accessibility(found.page) == []
        found.press("?")
        assert found.page.locator("#help-dialog").is_visible()
        assert browser.accessibility(found.page) == []
        found.press("Escape")
        assert found.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert (found.said, found.foreign) == ([], [])
        # The token is not left in the address, where a screenshot would show it.
        assert TOKEN not in found.page.url
        found.page.reload()
        found.shown(0, 0)


def test_a_reload_comes_back_to_the_frame(chromium: Any, standing: Viewer):
    with opened(chromium, standing) as found:
        found.press("j")
        found.shown(RUN, 0)
        found.press("g", ".", ".")
        found.shown(RUN, 2)
        found.until("location.hash === '#1/2'")
        found.page.reload()
        found.shown(RUN, 2)
        assert found.page.input_value("#frame") == "2"
        for place, wanted in (("#7/3", (0, 0)), ("#1/99", (RUN, 4)), ("#picture", (0, 0))):
            # The page may be about to write its own place over one that is written here.
            found.page.goto("about:blank")
            found.page.goto(standing.address.partition("#")[0] + place)
            found.shown(*wanted)
        assert (found.said, found.foreign) == ([], [])


def test_without_the_token_the_page_says_so(chromium: Any, standing: Viewer):
    bare = standing.address.partition("#")[0]
    with opened(chromium, standing, address=bare, first=None) as found:
        found.page.wait_for_selector("#trouble:not([hidden])")
        assert "open the address that the command printed" in found.page.text_content("#trouble")


def test_scrubbing_changes_the_frame(chromium: Any, standing: Viewer, two_runs):
    with opened(chromium, standing) as found:
        found.page.locator("#cases button", has_text="dicom").click()
        found.shown(RUN, 0)
        found.fade("mask-fade", 0)
        seen: list[np.ndarray] = []
        for act in (
            lambda: None,
            lambda: found.press("g", "ArrowRight"),
            lambda: found.page.locator("#frame-next").click(),
            lambda: found.fade("frame", 3),
            lambda: found.page.locator("#frame").press("ArrowRight"),
        ):
            act()
            found.shown(RUN, len(seen))
            assert found.page.text_content("#frame-value") == f"{len(seen) + 1} of 5"
            seen.append(found.canvas())
            name = f"dicom-0123456789ab_{len(seen) - 1:04d}"
            frame = fake_run.stored(two_runs[0] / f"frames/{name}.png")
            for row, column in ((10, 20), (48, 64), (90, 120)):
                assert found.colour(row, column) == (frame[row, column],) * 3
        assert all(not np.array_equal(a, b) for a, b in zip(seen, seen[1:], strict=False))
        found.press("v", "g", "ArrowRight")  # beyond the last frame there is none
        assert found.page.text_content("#frame-value") == "5 of 5"
        found.press(",", "k")
        found.shown(0, 0)
        assert found.said == []


@pytest.mark.slow
def test_a_run_plays(chromium: Any, standing: Viewer):
    with opened(chromium, standing) as found:
        found.press("j")
        found.shown(RUN, 0)
        found.page.locator("#play").click()
        found.until("document.getElementById('frame').value === '4'")
        found.until("document.getElementById('frame').value === '0'")
        found.press("g", "Space")
        assert found.page.locator("#play").get_attribute("aria-label") == "Play"
        assert found.said == []


def test_fading_changes_the_pixels(chromium: Any, standing: Viewer, two_runs):
    frame = fake_run.stored(two_runs[0] / "frames/left-anterior.png")
    row, column = place(THICK)
    grey = int(frame[row, column])
    with opened(chromium, standing) as found:
        for fade in (0, 50, 100):
            found.fade("mask-fade", fade)
            mixed = [grey + fade / 100 * (c - grey) for c in FIRST]
            assert found.colour(row, column) == pytest.approx(mixed, abs=1)
        found.press("o")  # only the outline: the inside shows the frame
        assert found.colour(row, column) == (grey,) * 3
        found.press("o", "m")
        assert found.colour(row, column) == (grey,) * 3
        before = found.canvas()
        found.fade("probability-fade", 100)
        assert found.colour(row, column)[0] > 200  # bright where it is sure
        assert not np.array_equal(found.canvas(), before)
        found.fade("probability-fade", 0)
        found.fade("level", grey)
        assert found.colour(row, column) == (128,) * 3
        found.fade("width", 1)
        assert set(found.colour(row, column)) <= {0, 255}
        found.press("r")
        assert np.array_equal(found.canvas(), before)


@pytest.mark.slow
def test_two_checkpoints_are_compared(chromium: Any, standing: Viewer):
    both, first = place(THICK & THIN), place(THICK & ~THIN)
    with opened(chromium, standing) as found:
        found.fade("mask-fade", 100)
        found.page.locator("[data-mode=difference]").click()
        assert found.colour(*both) == BOTH and found.colour(*first) == FIRST
        words = found.page.text_content("#agreement")
        dice = 2 * (THICK & THIN).sum() / (THICK.sum() + THIN.sum())
        assert f"{(THICK & THIN).sum()} px" in words and f"{dice:.3f}" in words
        found.page.select_option("#start", "prediction-b")
        assert found.colour(*first) == SECOND  # now the other has what this one lacks
        found.page.select_option("#start", "prediction-a")
        found.page.locator("[data-mode=swipe]").click()
        found.fade("swipe", 0)
        assert found.colour(*both) == SECOND and found.colour(*first) != FIRST
        found.fade("swipe", 100)
        assert found.colour(*both) == FIRST == found.colour(*first)
        found.page.locator("[data-mode=side]").click()
        picture = found.canvas()
        left, right = np.split(picture[:, : picture.shape[1] // 2 * 2], 2, axis=1)
        assert (left == FIRST).all(2).any() and not (left == SECOND).all(2).any()
        assert (right == SECOND).all(2).any() and not (right == FIRST).all(2).any()
        assert found.page.text_content("#caption-a") == "Checkpoint 1"
        assert found.page.text_content("#caption-b") == "Checkpoint 2"


@pytest.mark.slow
def test_zoom_and_pan(chromium: Any, standing: Viewer):
    with opened(chromium, standing) as found:
        fitted = found.canvas()
        row, column = place(THICK)
        x, y = found.at(row, column)
        found.page.mouse.move(x, y)
        before = found.page.text_content("#readout")
        assert before.startswith(f"row {row}, column {column} · grey ")
        found.page.mouse.wheel(0, -600)
        found.settle()
        assert found.page.text_content("#zoom-value") != "100 %"
        found.page.mouse.move(x, y)  # what lay under the pointer stays there
        assert found.page.text_content("#readout") == before
        found.page.mouse.down()
        found.page.mouse.move(x + 60, y)
        found.page.mouse.up()
        assert found.page.text_content("#readout") == before
        found.press("0")
        assert np.array_equal(found.canvas(), fitted)
        found.press("+", "g", "Shift+ArrowLeft")
        assert not np.array_equal(found.canvas(), fitted)
        found.press("-", "0")
        # The right button sets the window.
        found.page.mouse.move(x, y)
        found.page.mouse.down(button="right")
        found.page.mouse.move(x - 100, y - 30)
        found.page.mouse.up(button="right")
        assert found.page.input_value("#level") == "158"
        assert found.page.input_value("#width") == "155"


def test_diameters_are_shown_and_found_on_the_frame(chromium: Any, standing: Viewer):
    points, diameters = fake_run.vessel(0, 8.0)
    least = int(diameters.argmin())
    with opened(chromium, standing) as found:
        rows = found.page.locator("#segments tr")
        assert rows.count() == 2
        cells = rows.first.locator("td").all_text_contents()
        stenosis = fake_run.analysis(0, 8.0)["segments"][0]["percent_diameter_stenosis"]
        assert cells[1:] == [f"{diameters[least] * fake_run.SPACING:.2f}", f"{stenosis:.0f} %"]
        said = found.page.text_content("#chart-place")
        assert said.startswith(f"{diameters[least] * fake_run.SPACING:.2f} mm at ")
        plain = found.canvas()
        box = found.page.locator("#chart svg").bounding_box()
        found.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
        hovered = found.canvas()
        found.page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2)
        changed = np.argwhere((found.canvas() != plain).any(2)).mean(0)
        assert not np.array_equal(hovered, plain)
        # The mark went down the vessel, to where the chart was pointed at.
        assert changed[0] > np.argwhere((hovered != plain).any(2)).mean(0)[0] + 30
        found.page.locator("#chart").focus()
        found.press("Home")
        assert " at 0.00 mm of segment 1" in found.page.text_content("#chart-place")
        found.press("ArrowRight", "ArrowRight")
        assert found.page.locator("#chart").get_attribute("aria-valuenow") == "2"
        found.page.locator("#segments button").nth(1).click()
        assert "of segment 2" in found.page.text_content("#chart-place")
        assert "the segment is too short" in found.page.text_content("#chart-why")
        found.page.locator("#centrelines").check()
        assert not np.array_equal(found.canvas(), plain)
        found.page.select_option("#qca-which", "b")
        thin = min(fake_run.vessel(0, 6.0)[1]) * fake_run.SPACING
        found.page.wait_for_selector(f"#segments td:has-text('{thin:.2f}')")


@pytest.mark.slow
def test_cases_are_filtered(chromium: Any, standing: Viewer):
    with opened(chromium, standing) as found:
        found.press("/")
        found.page.keyboard.type("dicom run")
        assert found.page.locator("#cases button").count() == 1
        assert found.page.text_content("#cases-count") == "1 of 2"
        found.press("Enter")
        found.shown(RUN, 0)
        found.press("k")  # a command again: the keyboard is on the picture
        found.shown(0, 0)
        assert found.page.input_value("#filter") == "dicom run"
        focus = "document.activeElement.id"
        assert found.page.evaluate(focus) == "picture"
        found.press("/", "Escape")
        assert found.page.input_value("#filter") == "" and found.page.evaluate(focus) == "filter"
        assert found.page.text_content("#cases-count") == "2"
        found.press("Escape")
        assert found.page.evaluate(focus) == "picture"
        found.press("/")
        found.page.keyboard.type("nothing like it")
        found.press("Enter")
        assert found.page.evaluate(focus) == "filter"
        assert not found.page.locator("#failed").is_visible()
        found.press("Escape")
        assert "notes.txt: no image" in found.page.inner_text("#failed-list")


def test_inputs_that_could_not_be_read_are_filtered_and_folded(chromium: Any, tmp_path: Path):
    run = fake_run.build(tmp_path / "run")
    document = fake_run.read(run)
    document["failed"] = [
        {"input": f"file-{n:02d}", "reason": "empty file" if n else "a video"} for n in range(60)
    ]
    fake_run.write(run, document)
    with (
        viewing(runs.of_runs(run, None), tmp_path / "labels") as viewer,
        opened(chromium, viewer) as found,
    ):
        listed = found.page.locator("#failed-list li")
        assert found.page.inner_text("#failed-count") == "60" and not listed.first.is_visible()
        column = found.page.locator("nav.cases")
        assert column.evaluate("n => n.scrollHeight <= n.clientHeight")
        found.press("/")
        found.page.keyboard.type("Video problem")
        found.settle()
        assert found.page.inner_text("#failed-count") == "1 of 60"
        assert listed.count() == 1 and listed.first.is_visible()
        found.page.locator("#filter").fill("left-anterior")
        found.settle()
        assert found.page.locator("#cases button").count() == 1
        assert not found.page.locator("#failed").is_visible()
        found.press("Escape")
        found.page.locator("#failed summary").click()
        assert listed.count() == 60 and listed.last.inner_text() == "file-59: empty file"
        assert browser.accessibility(found.page) == []


@pytest.mark.slow
def test_what_is_missing_is_said_and_the_rest_is_shown(chromium: Any, tmp_path: Path):
    run = fake_run.build(tmp_path / "run")
    (run / "masks/left-anterior.png").unlink()
    name = "dicom-0123456789ab_0000"
    (run / f"frames/{name}.png").write_bytes(b"damaged")
    document = fake_run.read(run)
    document["cases"][1]["id"] = "<img src=x onerror=alert(1)>"
    fake_run.write(run, document)
    with (
        viewing(runs.of_runs(run, None), tmp_path / "labels") as viewer,
        opened(chromium, viewer) as found,
    ):
        assert "masks/left-anterior.png' does not exist" in found.page.text_content("#trouble")
        assert found.canvas().std() > 10
        assert "1 of 1 frames" in found.page.text_content("#cases")
        found.press("j")
        found.page.wait_for_selector("#trouble:has-text('no PNG that can be read')")
        assert found.page.text_content("#title") == "<img src=x onerror=alert(1)>"
        assert found.page.locator("#save").is_disabled()
        found.press(".")
        found.shown(RUN, 1)
        assert not found.page.locator("#trouble").is_visible()
        errors = [text for text in found.said if "422" not in text]
        assert errors == []


def test_a_slow_analysis_does_not_name_the_frame_before(chromium: Any, standing: Viewer):
    slow, held = f"**/api/qca/{RUN}/0/*", []
    with opened(chromium, standing) as found:
        found.page.route(slow, lambda route: held.append(route))
        found.press("j")
        found.until("document.getElementById('title').textContent.startsWith('dicom')")
        while not held:
            found.settle()
        found.press(".")
        found.shown(RUN, 1)
        with found.page.expect_response(slow):
            held.pop().continue_()
        found.settle()
        assert found.page.locator("#picture").get_attribute("data-shown") == f"{RUN}/1"
