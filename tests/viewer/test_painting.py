"""Painting in a real browser: what is saved is what was painted, by mouse, by keys, by a finger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cmunet_jax import qca
from cmunet_jax.predict import record
from cmunet_jax.qca import graph
from cmunet_jax.viewer import pictures
from tests.report import browser
from tests.report.browser import PHONE
from tests.viewer import fake_run
from tests.viewer.client import Viewer, viewing
from tests.viewer.fake_run import HEIGHT, WIDTH
from tests.viewer.page import Page, opened

PREDICTED = fake_run.draw()
# What Chromium itself writes to the console when a save has to be asked about.
REFUSED = "Failed to load resource: the server responded with a status of 409 (Conflict)"
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.browser() as running:
        yield running


def disc(row: float, column: float, size: float) -> np.ndarray:
    """Pixels whose centre is at most half of `size` away."""
    return np.hypot(ROWS - row, COLUMNS - column) <= size / 2


def saved(viewer: Viewer, name: str = "left-anterior") -> np.ndarray:
    mask = fake_run.stored(viewer.labels / f"masks/{name}.png")
    assert set(np.unique(mask)) <= {0, 255}
    return np.asarray(mask == 255)


def save(found: Page) -> None:
    found.press("s")
    found.page.wait_for_selector(r"#status:text-matches('^Saved[^:]*: labels/masks/')")


def drag(found: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    found.page.mouse.move(*found.at(*start))
    found.page.mouse.down()
    found.page.mouse.move(*found.at(*end), steps=7)
    found.page.mouse.up()
    found.settle()


def test_a_stroke_of_the_mouse_is_saved_as_it_is_drawn(chromium: Any, viewer: Viewer):
    with opened(chromium, viewer) as found:
        before = found.canvas()
        found.page.locator("[data-tool=paint]").click()
        found.fade("brush", 9)
        drag(found, (20, 90), (20, 110))
        # Everything within 4.5 px of the line, by another formula.
        stroke = np.hypot(ROWS - 20, COLUMNS - np.clip(COLUMNS, 90, 110)) <= 4.5
        assert found.page.text_content("#badge") == "not saved"
        assert not np.array_equal(found.canvas(), before)
        save(found)
        assert found.page.text_content("#status").startswith("Saved: ")
        assert found.page.text_content("#badge") == "saved"
        difference = saved(viewer) ^ (PREDICTED | stroke)
        # Where a pointer is rounded to whole pixels of the screen, the rim may differ.
        rim = stroke ^ (np.hypot(ROWS - 20, COLUMNS - np.clip(COLUMNS, 90, 110)) <= 4.2)
        assert not (difference & ~rim).any() and difference.sum() <= 6
        assert (saved(viewer) & ~PREDICTED).sum() > 200
        assert "saved" in found.page.text_content("#cases [aria-current]")
        found.page.locator("[data-tool=erase]").click()
        drag(found, (0, 0), (95, 127))
        found.press("z")
        found.press("y")
        found.press("z")
        assert found.page.text_content("#badge") == "saved"  # back at what was saved
        assert found.said == []


def test_a_corrected_mask_is_measured_when_it_is_saved(
    chromium: Any, viewer: Viewer, two_runs: tuple[Path, Path]
):
    def least() -> float:
        return float(found.page.locator("#segments tr").first.locator("td").nth(1).text_content())

    points, diameters = fake_run.vessel(0, 8.0)
    row, column = points[int(diameters.argmin())]
    with opened(chromium, viewer) as found:
        predicted = least()
        assert found.page.input_value("#qca-which") == "a"
        assert not found.page.is_visible("#chart-contour")  # this run's file does not say
        assert "not on what you paint" in found.page.text_content("#qca-note")
        found.page.locator("[data-tool=paint]").click()
        found.fade("brush", 9)  # over the stenosis
        drag(found, (row - 4, column), (row + 4, column))
        assert least() == predicted  # until it is saved
        save(found)
        found.until("!document.getElementById('qca-some').hidden")
        assert found.page.input_value("#qca-which") == "label"
        chosen = "document.getElementById('qca-which').selectedOptions[0].textContent"
        assert found.page.evaluate(chosen) == "Corrected mask"
        assert "as it was last saved" in found.page.text_content("#qca-note")
        # As from the file that lies there; the narrowest place of before is as wide as the brush.
        sure = record.read_probability(two_runs[0] / "probabilities/left-anterior.png")
        written = qca.analyse(saved(viewer), spacing=(fake_run.SPACING,) * 2, probability=sure)
        assert "between the pixels" in found.page.text_content("#chart-contour")
        assert f"{least():.2f}" == f"{np.nanmin(written.segments[0].diameter_mm):.2f}"
        assert least() > 1.3 * predicted
        assert browser.accessibility(found.page) == []
        found.page.select_option("#qca-which", "a")
        found.page.wait_for_selector(f"#segments td:has-text('{predicted:.2f}')")
        found.page.reload()  # opened again it is shown first, as its mask is
        found.shown(0, 0)
        assert found.page.input_value("#qca-which") == "label" and least() > 1.3 * predicted
        assert found.said == []


@pytest.mark.slow
def test_a_saved_mask_that_cannot_be_measured_leaves_the_predicted_diameters(
    chromium: Any, viewer: Viewer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(graph, "MAX_SEGMENTS", 0)
    with opened(chromium, viewer) as found:
        save(found)
        found.page.wait_for_selector("#qca-none:has-text('not measured: the skeleton')")
        found.page.select_option("#qca-which", "a")
        found.until("!document.getElementById('qca-some').hidden")
        assert found.page.locator("#segments tr").count() == 2


@pytest.mark.slow
def test_undo_and_redo(chromium: Any, viewer: Viewer):
    with opened(chromium, viewer) as found:
        found.press("g", "p")
        assert found.page.locator("#undo").is_disabled()
        seen: list[np.ndarray] = []
        for row in (10, 30, 50):
            drag(found, (row, 100), (row, 118))
            found.page.mouse.move(5, 5)
            seen.append(found.canvas())
        for at in (1, 0):
            found.press("Control+z")
            assert np.array_equal(found.canvas(), seen[at])
        found.page.locator("#redo").click()
        assert np.array_equal(found.canvas(), seen[1])
        drag(found, (70, 100), (70, 118))  # a new stroke takes the place of what was undone
        assert found.page.locator("#redo").is_disabled()
        for _ in range(3):
            found.press("z")
        assert found.page.locator("#undo").is_disabled()
        save(found)
        assert np.array_equal(saved(viewer), PREDICTED)


def test_all_of_it_goes_by_keys(chromium: Any, viewer: Viewer):
    """No mouse from the first to the last: open, paint, erase, undo, another frame, save."""
    with opened(chromium, viewer) as found:
        found.press("j")
        found.shown(1, 0)
        found.press("g", "ArrowRight")
        found.shown(1, 1)
        found.press("p", "]", "]", "ArrowUp")  # the brush starts in the middle
        words = found.page.text_content("#readout")
        row, column = (int(part.split()[1]) for part in words.split(" · ")[0].split(", "))
        assert (row, column) == (HEIGHT // 2 - 1, WIDTH // 2)
        expected = fake_run.draw(2)
        found.press("Shift+ArrowRight", "Shift+ArrowRight", "Space")
        column += 20
        expected |= disc(row, column, 8)
        found.press("Enter", *["ArrowDown"] * 6, "Enter", "ArrowRight")
        for step in range(7):
            expected |= disc(row + step, column, 8)
        found.press("z", "y")
        row, column = row + 6, column + 1
        found.press("e", "[", "[", "ArrowLeft", "Space")
        expected &= ~disc(row, column - 1, 6)
        found.press("Control+s")
        found.page.wait_for_selector("#status:has-text('Saved: labels/masks/')")
        assert np.array_equal(saved(viewer, "dicom-0123456789ab_0001"), expected)
        found.press("Escape", "ArrowLeft")
        found.shown(1, 0)
        found.press("ArrowRight")
        found.shown(1, 1)
        assert found.page.text_content("#badge") == "saved"
        assert found.said == []


@pytest.mark.slow
def test_everything_is_reached_by_tab_and_is_seen_there(chromium: Any, viewer: Viewer):
    with opened(chromium, viewer) as found:
        browser.unfold(found.page)
        found.press("p", "g", "Space", "v")  # so that there is something to undo
        wanted = found.page.evaluate("""
          () => [...document.querySelectorAll("button, input, select, summary, canvas, [tabindex]")]
            .filter((n) => n.checkVisibility() && !n.disabled && n.tabIndex >= 0)
            .map((n, i) => (n.dataset.stop = i))
        """)
        found.page.evaluate("document.activeElement.blur()")
        reached, unseen = set(), []
        for _ in range(len(wanted) + 6):
            found.page.keyboard.press("Tab")
            stop = found.page.evaluate("""
              () => {
                const n = document.activeElement, style = getComputedStyle(n);
                return [n.dataset.stop, style.outlineStyle !== "none" && style.outlineWidth,
                        n.outerHTML.slice(0, 60)];
              }
            """)
            if stop[0] is not None:
                reached.add(int(stop[0]))
                if stop[1] in (False, "0px"):
                    unseen.append(stop[2])
        assert set(wanted) <= reached and not unseen
        # Keys without Ctrl can be turned off, for those whose tools type.
        found.press("?")
        found.page.locator("#single-keys").uncheck()
        found.press("Escape")
        found.page.locator("#help").focus()
        found.press("e")
        assert found.page.locator("[data-tool=erase]").get_attribute("aria-pressed") == "false"


@pytest.mark.slow
def test_a_label_is_replaced_only_after_a_question(chromium: Any, viewer: Viewer):
    with opened(chromium, viewer) as found:
        save(found)
        assert np.array_equal(saved(viewer), PREDICTED)
        assert found.page.text_content("#status").startswith("Saved as it was predicted: ")
        found.press("p", "g", "Space", "s")
        found.page.wait_for_selector("#replace-dialog[open]")
        assert browser.accessibility(found.page) == []
        found.press("Enter")  # the safe answer has the focus
        found.page.wait_for_selector("#status:has-text('Not saved')")
        assert np.array_equal(saved(viewer), PREDICTED)
        found.press("s")
        found.page.locator("#replace-dialog .danger").click()
        found.page.wait_for_selector("#status:has-text('Saved: labels/masks/')")
        changed = saved(viewer)
        assert changed.sum() != PREDICTED.sum()
        # Opened again it starts from the label, and compares with the prediction.
        found.page.reload()
        found.shown(0, 0)
        assert found.page.input_value("#start") == "label"
        found.press("p", "g", "Space", "z", "v")
        assert found.page.text_content("#badge") == "saved"
        found.page.select_option("#against", "prediction-a")
        dice = 2 * (changed & PREDICTED).sum() / (changed.sum() + PREDICTED.sum())
        assert f"{dice:.3f}" in found.page.text_content("#agreement")
        assert found.said == [REFUSED] * 2


@pytest.mark.slow
def test_a_label_that_came_meanwhile_is_asked_about_too(chromium: Any, viewer: Viewer):
    with opened(chromium, viewer) as found:
        other = fake_run.draw(0, 6.0).astype(np.uint8)
        address = "/api/label/0/0?from=prediction-b"
        assert viewer.ask(address, method="POST", body=other.tobytes()).status == 200
        found.press("s")
        found.page.wait_for_selector("#replace-dialog[open]")
        found.press("Enter")
        assert np.array_equal(saved(viewer), other > 0)
        found.press("s")
        found.page.wait_for_selector("#replace-dialog[open]")
        found.page.locator("#replace-dialog .danger").click()
        found.page.wait_for_selector("#status:has-text('Saved as it was predicted: labels/masks/')")
        assert np.array_equal(saved(viewer), PREDICTED)


def test_what_another_tab_saved_is_told_before_it_is_replaced(chromium: Any, viewer: Viewer):
    def asked(found: Page, words: str) -> None:
        found.press("s")
        found.page.wait_for_selector("#replace-dialog[open]")
        assert words in found.page.text_content("#replace-text")

    with opened(chromium, viewer) as first, opened(chromium, viewer) as second:
        for found in (first, second):
            found.press("p", "g")
        first.press("Space")
        save(first)
        second.press("ArrowLeft", "Space")
        asked(second, "A label left-anterior has been saved elsewhere since this page was loaded.")
        second.page.locator("#replace-dialog .danger").click()
        second.page.wait_for_selector("#status:has-text('Saved: labels/masks/')")
        # The first one goes on from what it saved itself.
        before = saved(viewer)
        first.press("ArrowRight", "Space")
        asked(first, "The saved label left-anterior has changed since this page loaded it.")
        first.press("Enter")
        first.page.wait_for_selector("#status:has-text('Not saved')")
        assert np.array_equal(saved(viewer), before)
        first.page.wait_for_selector("#against option[value=label]", state="attached")
        first.page.select_option("#against", "label")  # the one that is there now
        painted = first.page.text_content("#agreement")
        assert "Dice" in painted and "1.000" not in painted
        asked(first, "has changed since")
        first.page.locator("#replace-dialog .danger").click()
        first.page.wait_for_selector("#status:has-text('Saved: labels/masks/')")
        assert not np.array_equal(saved(viewer), before)
        # What it has saved itself is no surprise.
        first.press("Space", "ArrowDown", "Space")
        asked(first, "There is a label left-anterior already.")
        first.press("Enter")
        second.press("v", "j")  # and back: what lies there, not what this page had saved
        second.shown(1, 0)
        second.press("k")
        second.shown(0, 0)
        script = "document.querySelector('#agreement dd:last-of-type').textContent"
        second.page.select_option("#against", "prediction-a")
        mask = saved(viewer)
        dice = 2 * (mask & PREDICTED).sum() / (mask.sum() + PREDICTED.sum())
        assert second.page.evaluate(script) == f"{dice:.3f}"
        assert (first.said, second.said) == ([REFUSED] * 3, [REFUSED])


@pytest.mark.slow
def test_another_mask_to_start_from_can_be_undone(chromium: Any, viewer: Viewer):
    with opened(chromium, viewer) as found:
        found.press("p", "g", "Space", "v")
        found.page.select_option("#start", "prediction-b")
        save(found)
        assert np.array_equal(saved(viewer), fake_run.draw(0, 6.0))
        found.press("z", "z", "s")
        found.page.locator("#replace-dialog .danger").click()
        found.page.wait_for_selector(f"#status:has-text('{PREDICTED.sum()} px')")
        assert np.array_equal(saved(viewer), PREDICTED)


@pytest.mark.slow
def test_a_finger_paints_on_a_phone(chromium: Any, viewer: Viewer):
    with opened(chromium, viewer, width=PHONE) as found:
        found.page.locator("[data-tool=paint]").tap()
        found.fade("brush", 12)
        found.page.locator("#picture").scroll_into_view_if_needed()
        found.page.touchscreen.tap(*found.at(20, 100))
        found.settle()
        assert found.page.text_content("#badge") == "not saved"
        found.page.locator("#save").tap()
        found.page.wait_for_selector("#status:has-text('Saved: labels/masks/')")
        painted = saved(viewer) & ~PREDICTED
        assert painted[disc(20, 100, 9)].all() and not painted[~disc(20, 100, 15)].any()
        small = found.page.evaluate("""
          () => [...document.querySelectorAll("button, select, summary")]
            .filter((n) => n.checkVisibility())
            .map((n) => [n.id || n.textContent, n.getBoundingClientRect()])
            .filter(([, box]) => box.width < 24 || box.height < 24).map(([name]) => name)
        """)
        assert small == []


@pytest.mark.slow
def test_an_image_without_prediction_is_painted_from_nothing(chromium: Any, tmp_path):
    cv2.imwrite(str(tmp_path / "pool.png"), fake_run.picture(PREDICTED, 3))
    with (
        viewing(pictures.of_images(tmp_path), tmp_path / "labels") as viewer,
        opened(chromium, viewer) as found,
    ):
        assert found.page.input_value("#start") == "empty"
        found.press("s")
        assert "without artery" in found.page.text_content("#replace-title")
        found.press("Enter", "g", "p", "ArrowUp", "Space")
        save(found)
        row, column = HEIGHT // 2 - 1, WIDTH // 2
        assert np.array_equal(saved(viewer, "pool"), disc(row, column, 6))
        assert found.said == []


@pytest.mark.slow
def test_frames_keep_what_was_painted_on_them(chromium: Any, viewer: Viewer):
    with opened(chromium, viewer) as found:
        found.press("j")
        found.shown(1, 0)
        found.press("g", "p", "Space", "v", ".")
        found.shown(1, 1)
        assert not found.page.locator("#badge").is_visible()
        found.press(",")
        found.shown(1, 0)
        assert found.page.text_content("#badge") == "not saved"
        dialogs: list[str] = []

        def accept(dialog: Any) -> None:
            dialogs.append(dialog.type)
            dialog.accept()

        found.page.on("dialog", accept)
        found.page.reload()
        assert dialogs == ["beforeunload"]
