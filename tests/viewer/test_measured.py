"""Saved masks are measured: those that lie there, in the pixels of their case, once each."""

from __future__ import annotations

from typing import Any

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

    def counting(mask: np.ndarray, *, spacing: Any) -> qca.Analysis:
        made.append(spacing)
        return analyse(mask, spacing=spacing)

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
    assert len(counted) == 1  # of equal content and spacing, under whatever name
    save(viewer, bar(12))
    save(viewer, bar(10))
    median(viewer)
    assert len(counted) == 1


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
