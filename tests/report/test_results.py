"""Result files are read as the writers wrote them; what is broken is named."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest

from cmunet_jax.evaluation import evaluator
from cmunet_jax.evaluation.paper import PAPER_TABLE
from cmunet_jax.report import results
from tests.report import runs
from tests.report.conftest import Case
from tfds_angio.errors import UserError


def test_reads_back_what_training_wrote(written: Case):
    training = results.read_training(written.root / "finetune")
    scalars = runs.finetuning_scalars(0.8)
    np.testing.assert_array_equal(training.curves["val/dice"].steps, list(scalars))
    np.testing.assert_allclose(
        training.curves["val/dice"].values, [row["val/dice"] for row in scalars.values()]
    )
    assert training.steps == 100
    pretraining = results.read_training(written.pretrain)
    assert pretraining.pictures_step == 200
    assert set(pretraining.pictures) == {"view", "masked", "reconstruction", "error"}


def test_reads_back_what_evaluation_wrote(written: Case):
    folder = written.root / "scratch" / "evaluation"
    found = results.read_evaluation(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert list(found.metrics) == list(summary["metrics"])
    for name, metric in found.metrics.items():
        assert metric.mean == summary["metrics"][name]["mean"]
        assert metric.high == summary["metrics"][name]["high"]
        assert metric.usable
    assert found.fact("dataset", "name") == "angio_synthetic/tiny"
    assert found.fact("dataset", "absent", "deeper") is None


def test_overlays_are_of_the_cases_that_the_evaluator_chooses(written: Case):
    found = results.read_evaluation(written.root / "finetune" / "evaluation")
    rows = [{"id": i, "dice": d} for i, d in zip(found.ids, found.metrics["dice"].values)]
    chosen = evaluator._chosen(rows, runs.metrics.TABLE)  # the rule itself is private there
    assert {rank: at for rank, at, _ in found.overlays()} == chosen
    assert not results.read_evaluation(written.root / "scratch" / "evaluation").overlays()


def test_steps_repeated_after_a_resume_count_once(copied: Case, rewrite):
    path = copied.root / "scratch" / "metrics.jsonl"
    rewrite(path, lambda text: text + '{"step": 50, "val/dice": 0.25}\n')
    curve = results.read_training(copied.root / "scratch").curves["val/dice"]
    assert curve.values[list(curve.steps).index(50)] == 0.25
    assert len(set(curve.steps)) == len(curve.steps)


def test_values_that_are_not_finite_are_left_out_of_curves(copied: Case, rewrite):
    path = copied.root / "scratch" / "metrics.jsonl"
    rewrite(path, lambda text: text + '{"step": 101, "train/loss": "NaN", "val/dice": 0.5}\n')
    curves = results.read_training(copied.root / "scratch").curves
    assert curves["train/loss"].steps[-1] == 100
    assert curves["val/dice"].steps[-1] == 101


def test_the_papers_infinite_distances_are_kept_but_not_compared(tmp_path):
    found = runs.evaluation(np.array([0.8, -1.0, 0.7]), patients=3, table=PAPER_TABLE)
    runs.write_evaluation(tmp_path, found)
    read = results.read_evaluation(tmp_path)
    unusable = [name for name, metric in read.metrics.items() if not metric.usable]
    assert unusable
    assert all(np.isnan(read.metrics[name].mean) for name in unusable)
    assert read.metrics["dice"].usable


MISSING = [
    "finetune/config.json",
    "finetune/metrics.jsonl",
    "finetune/evaluation/summary.json",
    "finetune/evaluation/cases.csv",
]


def _read(case: Case) -> None:
    results.read_training(case.root / "finetune")
    results.read_evaluation(case.root / "finetune" / "evaluation")


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_file_is_named_with_its_remedy(copied: Case, name: str):
    (copied.root / name).unlink()
    with pytest.raises(UserError, match=re.escape(name) + " is missing: .*again"):
        _read(copied)


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("share", [0.0, 0.35, 0.97])
def test_a_half_written_file_is_named(copied: Case, name: str, share: float):
    path = copied.root / name
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=re.escape(name) + ".*again") as caught:
        _read(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", MISSING)
def test_a_file_of_something_else_is_named(copied: Case, name: str):
    (copied.root / name).write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(UserError, match=re.escape(name)):
        _read(copied)


def test_files_of_two_evaluations_are_not_mixed(copied: Case):
    ours = copied.root / "finetune" / "evaluation" / "cases.csv"
    ours.write_bytes((copied.root / "scratch" / "evaluation" / "cases.csv").read_bytes())
    with pytest.raises(UserError, match="not of one evaluation"):
        _read(copied)


def test_a_row_that_is_missing_or_twice_is_noticed(copied: Case):
    path = copied.root / "finetune" / "evaluation" / "cases.csv"
    with path.open() as file:
        reader = csv.reader(file)
        header, *rows = list(reader)
    for changed, message in (
        (rows[:-1], "11 rows"),
        ([*rows[:-1], rows[0]], "not of one evaluation|twice"),
        ([[*rows[0][:3], "abc", *rows[0][4:]], *rows[1:]], "not a number"),
    ):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([header, *changed])
        with pytest.raises(UserError, match=message):
            _read(copied)
