"""docs/clinical.md from the first command to the last: a DICOM run, a correction, a better mask."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from typing import Any

import cv2
import highdicom as hd
import numpy as np
import pytest

from cmunet_jax import qca
from tests import clinical
from tests.conftest import ROOT
from tests.report import browser
from tests.viewer.page import Page

pytestmark = pytest.mark.slow
CORRECTED = 3  # the frame that is corrected; the others are what is measured
COMMANDS = ("python -m cmunet_jax.main", "python -m tfds_angio.build", "python -m tests.clinical")


def documented() -> list[str]:
    """The commands of the section that says it can be tried, in order."""
    text = (ROOT / "docs/clinical.md").read_text()
    section = text.split("## Try it\n")[1].split("\n## ")[0].replace("\\\n", " ")
    lines = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    return [line.split("  #")[0] for line in lines if line.startswith(COMMANDS)]


def start(command: str, folder: pathlib.Path) -> subprocess.Popen[str]:
    words = [sys.executable, *shlex.split(command)[1:]]
    words = [str(ROOT / w) if w.startswith("configs/") else w for w in words]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    return subprocess.Popen(words, cwd=folder, text=True, env=env, **pipes)


def run(command: str, folder: pathlib.Path) -> str:
    process = start(command, folder)
    said = process.communicate(timeout=900)[0]
    assert process.returncode == 0, f"{command}\n{said}"
    return said


def read(path: pathlib.Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


def scores(run_folder: pathlib.Path, truth: np.ndarray) -> list[float]:
    """Dice of the frames in which arteries are filled, without the corrected one."""
    (case,) = json.loads((run_folder / "predictions.json").read_text())["cases"]
    found = []
    for frame in case["frames"]:
        at = frame["index"]
        if clinical.FILLED[at] < clinical.SEEN or at == CORRECTED:
            continue
        mask = read(run_folder / frame["mask"]) > 0
        total = mask.sum() + truth[at].sum()
        found.append(2 * float((mask & truth[at]).sum()) / max(float(total), 1.0))
    return found


def at(page: Any, row: float, column: float) -> tuple[float, float]:
    """Where a pixel lies in the window, while the picture fits."""
    box, size = page.locator("#picture").bounding_box(), clinical.SIZE
    scale = min(box["width"], box["height"]) / size
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    return (
        middle[0] + (column + 0.5 - size / 2) * scale,
        middle[1] + (row + 0.5 - size / 2) * scale,
    )


def correct(address: str, truth: np.ndarray) -> None:
    """What an annotator does: starts from nothing and draws each vessel along its course."""
    with browser.browser() as chromium:
        page = chromium.new_context(viewport={"width": 1280, "height": 844}).new_page()
        found = Page(page)
        page.set_default_timeout(120_000)
        page.goto(address)
        found.shown(0, 0)
        found.press("g")
        for frame in range(1, CORRECTED + 1):
            found.press("ArrowRight")
            found.shown(0, frame)
        page.locator("[data-tool=paint]").click()
        page.locator("#start").select_option("empty")
        for segment in qca.analyse(truth, spacing=None).segments:
            known = segment.diameter_px[np.isfinite(segment.diameter_px)]
            found.fade("brush", int(np.clip(np.median(known) if len(known) else 3, 1, 60)))
            points = segment.points[:: max(1, len(segment.points) // 25)]
            page.mouse.move(*at(page, *points[0]))
            page.mouse.down()
            for point in [*points[1:], segment.points[-1]]:
                page.mouse.move(*at(page, *point))
            page.mouse.up()
            found.settle()
        found.press("s")
        page.wait_for_selector("#status:has-text('Saved: ')")


def look_and_correct(command: str, folder: pathlib.Path, truth: np.ndarray) -> None:
    process = start(command, folder)
    assert process.stdout is not None
    try:
        deadline, address = time.monotonic() + 300, None
        while address is None:
            assert time.monotonic() < deadline
            address = re.search(r"http://\S+", process.stdout.readline())
        correct(address.group().rstrip("."), truth)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_from_a_dicom_to_a_better_model(tmp_path):
    frames, truth = clinical.run()
    before: list[float] = []
    for command in documented():
        if "configs/view.py" in command:
            look_and_correct(command, tmp_path, truth[CORRECTED])
            label = next((tmp_path / "runs/labels/masks").glob("*.png"))
            drawn = read(label) > 0
            overlap = 2 * (drawn & truth[CORRECTED]).sum()
            assert overlap / (drawn.sum() + truth[CORRECTED].sum()) > 0.75
            assert label.stem.endswith(f"_{CORRECTED:04d}")
            continue
        run(command, tmp_path)
        if "runs/before" in command and "configs/predict.py" in command:
            before = scores(tmp_path / "runs/before", truth)
            check_outputs(tmp_path / "runs/before", tmp_path / "case.dcm", frames)
    after = scores(tmp_path / "runs/after", truth)
    assert len(before) == len(after) >= 3
    print("Dice before", before, "after", after)
    assert np.mean(after) > np.mean(before) + 0.02 and min(np.subtract(after, before)) > -0.02


def check_outputs(run_folder: pathlib.Path, source: pathlib.Path, frames: np.ndarray) -> None:
    """The segmentation, the measurement and the overlay of the first prediction."""
    (case,) = json.loads((run_folder / "predictions.json").read_text())["cases"]
    assert case["source_frames"] == len(frames) and source.name not in json.dumps(case)
    segmentation = hd.seg.segread(run_folder / case["segmentation"])
    assert segmentation.NumberOfFrames == len(frames)
    for frame in case["frames"]:
        assert read(run_folder / frame["overlay"]).shape == (clinical.SIZE, clinical.SIZE, 3)
        measured = json.loads((run_folder / frame["qca"]).read_text())
        assert measured["spacing_mm"] == [clinical.SPACING_MM] * 2
