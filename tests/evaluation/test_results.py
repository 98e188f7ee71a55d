"""What lies on disk: complete, readable by others, never half of one and half of another."""

from __future__ import annotations

import csv
import json
import math
import os

import numpy as np
import pytest
from PIL import Image

from cmunet_jax.evaluation import overlays
from cmunet_jax.evaluation.evaluator import evaluate, write
from cmunet_jax.evaluation.results import Evaluation, Picture, read_cases, text_table
from cmunet_jax.evaluation.statistics import paired_difference
from tests.evaluation.fakes import bright, chain, dataset
from tests.evaluation.masks import shifted, vessel
from tfds_angio.errors import UserError

PROVENANCE = {"checkpoint": {"digest": "abc", "step": 3}, "versions": {"flax": "0.12"}}
RANKS = ("best", "median", "worst", "worst_2", "worst_3", "worst_4")
PICTURES = [f"overlay_{name}.png" for name in RANKS]


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate(bright, 0.9, dataset(), "val", chain(), progress=False, resamples=100)


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_write_leaves_a_summary_a_row_an_image_and_pictures(evaluation, tmp_path):
    target = tmp_path / "new" / "folder"
    path = write(evaluation, target, provenance=PROVENANCE)
    assert path == target / "summary.json"
    assert names(target) == sorted(["summary.json", "cases.csv", *PICTURES])
    summary = json.loads(path.read_text())
    assert summary["checkpoint"]["digest"] == "abc"
    assert {"flax", "numpy", "python"} <= set(summary["versions"])
    assert summary["n"] == 7
    with (target / "cases.csv").open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == [f"image{i:02d}" for i in range(7)]


def test_rows_survive_the_way_through_the_file(evaluation, tmp_path):
    write(evaluation, tmp_path, overlays=False)
    again = read_cases(tmp_path / "cases.csv")
    assert again == evaluation.rows
    assert paired_difference(again, evaluation.rows, "dice").mean == 0
    with pytest.raises(UserError, match="run the evaluate stage"):
        read_cases(tmp_path / "other.csv")


def test_a_second_write_replaces_the_first_and_leaves_strangers_alone(evaluation, tmp_path):
    write(evaluation, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    write(evaluation, tmp_path, overlays=False)
    assert names(tmp_path) == ["cases.csv", "notes.txt", "summary.json"]


def test_a_failed_write_leaves_the_earlier_result(evaluation, tmp_path, monkeypatch):
    write(evaluation, tmp_path, provenance=PROVENANCE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(overlays, "save", full)
    with pytest.raises(UserError, match="No space left"):
        write(evaluation, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_summary_never_stands_beside_the_cases_of_another(evaluation, tmp_path, monkeypatch):
    write(evaluation, tmp_path)
    replace = os.replace

    def stopped(source, target):
        if str(target).endswith("cases.csv"):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(UserError, match="Input/output"):
        write(evaluation, tmp_path)
    assert "summary.json" not in names(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(evaluation, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file.*cannot be written"):
        write(evaluation, tmp_path / "file")


def test_provenance_may_repeat_the_summary_but_not_contradict_it(evaluation, tmp_path):
    same = {"preprocessing": evaluation.summary["preprocessing"]}
    write(evaluation, tmp_path, overlays=False, provenance=same)
    with pytest.raises(ValueError, match="contradicts the summary in n"):
        write(evaluation, tmp_path, provenance={"n": 8})


def test_infinities_are_null_in_json_and_counted(tmp_path):
    result = evaluate(
        lambda _, x: np.stack([np.ones(x.shape[:3]), np.zeros(x.shape[:3])], -1),
        None,
        dataset(),
        "val",
        chain(),
        protocol="paper",
        resolution="network",
        progress=False,
    )
    path = write(result, tmp_path, overlays=False)
    row = json.loads(path.read_text())["metrics"]["hausdorff_modified"]
    assert (row["mean"], row["low"], row["infinite"]) == (None, None, 6)
    assert math.isinf(read_cases(tmp_path / "cases.csv")[0]["hausdorff_modified"])
    table = {name: cells for name, *cells in text_table(json.loads(path.read_text()))}
    assert table["hausdorff_modified"] == ["–", "– to –", "–"]
    assert table["dice"][0].startswith("0.14")


def test_one_image_has_a_value_and_no_interval(tmp_path):
    result = evaluate(bright, 1.0, dataset(), "val", chain(), ids=["image00"], progress=False)
    row = json.loads(write(result, tmp_path).read_text())["metrics"]["dice"]
    assert row["mean"] > 0.9
    assert (row["low"], row["high"], row["std"]) == (None, None, None)


# ----------------------------------------------------------------------------------- pictures


def picture(**row) -> Picture:
    truth = vessel(2)
    image = np.full(truth.shape, 100, np.uint8)
    return Picture({"id": "x", "empty": "", **row}, image, truth, shifted(truth, 2, 1))


def test_tints_say_where_the_masks_agree_and_differ():
    shown = picture()
    rgb = overlays.colour(shown)
    truth, prediction = shown.truth, shown.prediction
    regions = [truth & prediction, prediction & ~truth, truth & ~prediction, ~truth & ~prediction]
    tints = [np.unique(rgb[region], axis=0) for region in regions]
    assert all(region.any() for region in regions)
    assert [len(tint) for tint in tints] == [1, 1, 1, 1]
    assert len({tuple(tint[0]) for tint in tints}) == 4
    assert list(tints[3][0]) == [100, 100, 100]


def test_tints_differ_for_every_colour_vision():
    # Machado, Oliveira & Fernandes 2009, severity 1, on linear light.
    blindness = {
        "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "tritan": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    }
    tints = np.array([overlays.AGREED, overlays.ADDED, overlays.MISSED]) ** 2.2
    for matrix in blindness.values():
        seen = np.clip(tints @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
        gaps = [np.linalg.norm(seen[a] - seen[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
        assert min(gaps) > 0.25


@pytest.mark.parametrize("shape", [(64, 64), (48, 96)])
@pytest.mark.parametrize("identifier", ["a/b", "$\\frac$ odd_^{", "x" * 200])
def test_a_picture_is_drawn_whatever_the_image_is_called(tmp_path, shape, identifier):
    masks = {"truth": np.zeros(shape, bool), "prediction": vessel(1, shape=shape)}
    row = {"id": identifier, "dice": 0.0, "hd95": 80.0, "empty": "truth"}
    path = tmp_path / "o.png"
    overlays.save(Picture(row, np.zeros(shape, np.uint8), **masks), path, rank="worst")
    with Image.open(path) as image:
        assert image.width > 1000 and image.height > 300
