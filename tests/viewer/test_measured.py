"""Saved masks are measured: those that lie there, in the pixels of their case, once each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cmunet_jax import qca
from cmunet_jax.qca import graph
from cmunet_jax.viewer import measured, runs
from tests.viewer import fake_run
from tests.viewer.client import Viewer, viewing
from tests.viewer.fake_run import HEIGHT, SPACING, WIDTH

RUN = 1  # the case of five frames


def bar(width: int) -> np.ndarray:
    """A straight vessel along the columns, `width` pixels wide."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[40 : 40 + width, 10:118] = 1
    return mask


def save(viewer: Viewer, mask: np.ndarray, at: str = "0/0") -> None:
    path = f"/api/label/{at}?from=prediction-a&replace=yes"
    assert viewer.ask(path, method="POST", body=mask.tobytes()).status == 200


def median(viewer: Viewer, at: str = "0/0", unit: str = "mm") -> float:
    (segment,) = viewer.ask(f"/api/qca/{at}/label").json["segments"]
    return float(np.median([d for d in segment[f"diameter_{unit}"] if d is not None]))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The spacings of all analyses that are made."""
    made: list[Any] = []
    analyse = qca.analyse

    def counting(mask: np.ndarray, *, spacing: Any, **more: Any) -> qca.Analysis:
        made.append(spacing)
        return analyse(mask, spacing=spacing, **more)

    monkeypatch.setattr(qca, "analyse", counting)
    return made


def test_the_mask_that_lies_there_is_measured(viewer: Viewer, counted: list[Any]):
    before = viewer.ask(f"/api/qca/{RUN}/3/label")
    assert before.status == 422 and "does not exist" in before.reason
    for width in (10, 16):
        save(viewer, bar(width), f"{RUN}/3")
        files = sorted(viewer.labels.rglob("*"))
        assert median(viewer, f"{RUN}/3") == pytest.approx(width * SPACING, abs=0.3 * SPACING)
        assert sorted(viewer.labels.rglob("*")) == files  # nothing is written for it
    assert counted == [(SPACING, SPACING)] * 2


def test_a_mask_is_measured_once(viewer: Viewer, counted: list[Any]):
    for at in ("0/0", f"{RUN}/0"):
        save(viewer, bar(10), at)
        for _ in range(2):
            median(viewer, at)
    assert len(counted) == 2  # the prediction of each is another
    save(viewer, bar(12))
    save(viewer, bar(10))
    median(viewer)
    assert len(counted) == 2


def test_equal_content_is_measured_once(counted: list[Any]):
    kept = measured.Measured()
    sure = bar(10) * np.float32(0.8)
    for level in (None, (sure, 0.5), (sure, 0.6), (sure * np.float32(0.9), 0.5)):
        for _ in range(2):
            kept.of(bar(10), None, level and (level[0].copy(), level[1]))
    assert len(counted) == 4


def test_no_more_than_some_analyses_are_kept(monkeypatch: pytest.MonkeyPatch, counted: list[Any]):
    monkeypatch.setattr(measured, "MOST_KEPT", 2)
    kept = measured.Measured()
    for width in (10, 12, 10, 14, 10, 12):
        kept.of(bar(width), None)
    assert len(counted) == 4  # 12 had been used least when 14 came


@pytest.mark.parametrize("spacing", [None, (0.3, 0.2)])
def test_the_spacing_is_that_which_predict_used(two_runs, tmp_path, spacing):
    run = fake_run.build(tmp_path / "run")
    document = fake_run.read(run)
    named = spacing and {"rows_mm": spacing[0], "columns_mm": spacing[1], "source": "config"}
    document["cases"][0]["spacing"] = named
    fake_run.write(run, document)
    with viewing(runs.of_runs(run, None), tmp_path / "labels") as viewer:
        save(viewer, bar(10))
        found = viewer.ask("/api/qca/0/0/label").json
        assert found["spacing_mm"] == (spacing and list(spacing))
        if spacing:
            assert median(viewer) == pytest.approx(10 * spacing[0], abs=0.1)
        else:
            assert "diameter_mm" not in found["segments"][0]
            assert median(viewer, unit="px") == pytest.approx(10, abs=0.3)


@pytest.mark.parametrize(
    "spacing",
    [7, {}, [], {"rows_mm": "0.3", "columns_mm": 0.3}, {"rows_mm": 0.3, "columns_mm": -1},
     {"rows_mm": True, "columns_mm": 1}, {"rows_mm": 0.3, "columns_mm": float("inf")}],
)  # fmt: skip
def test_what_is_no_spacing_is_named_with_its_case(tmp_path, spacing):
    run = fake_run.build(tmp_path / "run")
    document = fake_run.read(run)
    document["cases"][0]["spacing"] = spacing
    fake_run.write(run, document)
    broken, whole = runs.read(run, "input", "a").cases
    assert "not understood" in broken.problem and whole.spacing_mm == (SPACING, SPACING)


def predict(root: Path, width: float, threshold: float) -> Path:
    """A run whose masks and analyses are what predict makes of its probabilities."""
    fake_run.build(root, width=width)
    document = fake_run.read(root)
    document["options"] = {"threshold": threshold}
    fake_run.write(root, document)
    for row in document["cases"]:
        entry = row["frames"][0]
        shape = fake_run.draw(2 * entry["index"], width).astype(np.float32)
        noise = np.random.default_rng(3).normal(0, 0.02, shape.shape).astype(np.float32)
        sure = np.clip(0.97 * cv2.GaussianBlur(shape, (0, 0), 0.9) + noise, 0, 1)
        if entry["probability"].endswith(".npz"):
            np.savez_compressed(root / entry["probability"], probability=sure)
        else:
            wide = np.rint(sure * np.float32(65535)).astype(np.uint16)
            cv2.imwrite(str(root / entry["probability"]), wide)
        cv2.imwrite(str(root / entry["mask"]), (sure > threshold).astype(np.uint8) * 255)
        found = qca.analyse(
            sure > threshold, spacing=(SPACING,) * 2, probability=sure, threshold=threshold
        )
        (root / entry["qca"]).write_text(json.dumps(qca.to_json(found)))
    return root


def unpainted(viewer: Viewer, at: str, which: str) -> Any:
    """The analysis of the label that is a prediction as it was."""
    save(viewer, np.frombuffer(viewer.ask(f"/api/layer/{at}/mask-{which}").body, np.uint8), at)
    return viewer.ask(f"/api/qca/{at}/label").json


@pytest.fixture(scope="module")
def measured_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("measured")
    return predict(root / "first", 8.0, 0.4), predict(root / "second", 6.0, 0.6)


def test_what_nobody_painted_is_measured_as_predict_did(measured_runs, tmp_path):
    with viewing(runs.of_runs(*measured_runs), tmp_path / "labels") as viewer:
        for which in "ab":  # of two runs by the probability that the mask was made of
            wanted = viewer.ask(f"/api/qca/{RUN}/0/{which}").json
            assert wanted["contour"] == "probability" and wanted["segments"]
            assert unpainted(viewer, f"{RUN}/0", which) == wanted
            # 16 bits of a PNG are not all that predict knew.
            found = unpainted(viewer, "0/0", which)
            for ours, theirs in zip(
                found["segments"], viewer.ask(f"/api/qca/0/0/{which}").json["segments"], strict=True
            ):
                known = [d is not None for d in theirs["diameter_px"]]
                assert known == [d is not None for d in ours["diameter_px"]] and any(known)
                for key in ("diameter_px", "diameter_mm"):
                    values = [np.array(s[key], float)[known] for s in (ours, theirs)]
                    np.testing.assert_allclose(*values, rtol=0, atol=2e-3)


def test_what_was_painted_counts_by_its_pixels(measured_runs, tmp_path):
    with viewing(runs.of_runs(measured_runs[0], None), tmp_path / "labels") as viewer:
        before = unpainted(viewer, f"{RUN}/0", "a")
        mask = viewer.ask(f"/api/layer/{RUN}/0/mask-a").body
        painted = np.frombuffer(mask, np.uint8).reshape(HEIGHT, WIDTH).copy()
        painted[5:25, 95:125] = 1  # far from the vessels
        save(viewer, painted, f"{RUN}/0")
        after = viewer.ask(f"/api/qca/{RUN}/0/label").json
        assert after["contour"] == "probability"
        least = {s["minimal_diameter_px"] for s in before["segments"]} - {None}
        assert least and least <= {s["minimal_diameter_px"] for s in after["segments"]}
        save(viewer, bar(10), f"{RUN}/0")
        assert median(viewer, f"{RUN}/0", "px") == pytest.approx(10, abs=0.3)


@pytest.mark.parametrize(
    "options",
    [{}, [], {"threshold": 0}, {"threshold": 1}, {"threshold": True}, {"threshold": "0.5"},
     {"threshold": float("nan")}, {"threshold": None}],
)  # fmt: skip
def test_without_a_threshold_the_mask_alone_is_measured(tmp_path, options):
    run = fake_run.build(tmp_path / "run")
    fake_run.write(run, fake_run.read(run) | {"options": options})
    (frame,) = runs.of_runs(run, None).cases[0].frames
    assert measured.nearest(bar(10), frame.maps.values()) is None


def test_without_a_probability_the_mask_alone_is_measured(measured_runs, tmp_path):
    run = shutil.copytree(measured_runs[0], tmp_path / "run")
    (run / "probabilities/left-anterior.png").write_bytes(b"no")
    with viewing(runs.of_runs(run, None), tmp_path / "labels") as viewer:
        found = unpainted(viewer, "0/0", "a")
    mask = fake_run.stored(run / "masks/left-anterior.png") > 0
    alone = qca.to_json(qca.analyse(mask, spacing=(SPACING,) * 2))
    assert found["contour"] == "mask"
    for ours, theirs in zip(found["segments"], alone["segments"], strict=True):
        assert ours["diameter_px"] == theirs["diameter_px"]


def test_a_speckled_mask_is_one_line(viewer: Viewer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(graph, "MAX_SEGMENTS", 0)
    save(viewer, bar(10))
    for _ in range(2):
        answer = viewer.ask("/api/qca/0/0/label")
        assert answer.status == 422 and answer.reason.startswith("not measured: the skeleton")
        assert "\n" not in answer.reason


def test_an_empty_mask_has_no_segment(viewer: Viewer):
    save(viewer, np.zeros((HEIGHT, WIDTH), np.uint8))
    assert viewer.ask("/api/qca/0/0/label").json["segments"] == []


def test_a_label_of_another_image_is_not_measured(viewer: Viewer):
    save(viewer, bar(10))
    fake = viewer.labels / "imgs/left-anterior.png"
    fake.write_bytes((viewer.labels / "masks/left-anterior.png").read_bytes())
    answer = viewer.ask("/api/qca/0/0/label")
    assert answer.status == 422 and "belongs to another image" in answer.reason
