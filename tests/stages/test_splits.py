"""Runs on images that are divided anew: held out, as released, in folds; nothing seen is a test."""

import csv
import importlib
import json

import pytest

from cmunet_jax.stages import evaluate as evaluate_stage
from cmunet_jax.stages import train as train_stage
from cmunet_jax.train import checkpoint
from tests.stage_helpers import tiny
from tfds_angio import resplit
from tfds_angio.errors import UserError

LABELS = 12


def evaluation(run, split, **changes):
    config = importlib.import_module("configs.evaluate").get_config()
    config.checkpoint, config.split, config.overlays = str(run), split, False
    config.update_from_flattened_dict(changes)
    return config


def evaluate(run, split, target, **changes):
    """(summary, ids of the cases) of an evaluation."""
    assert evaluate_stage.run(evaluation(run, split, **changes), target) == 0
    with (target / "cases.csv").open() as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    return json.loads((target / "summary.json").read_text()), ids


def finetune(dataset, **changes):
    config = tiny("finetune", dataset, 2, labels=LABELS)
    config.update_from_flattened_dict({"batch_size": 4, "eval_images": 2} | changes)
    return config


def watched(workdir):
    """The metrics that the in-training evaluator wrote."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {key for line in lines for key in line}


@pytest.fixture(scope="module")
def held_out(tiny_dataset, tmp_path_factory):
    """A fine-tuning without 8 held-out images and without a fold."""
    folder = tmp_path_factory.mktemp("held_out")
    changes = {"data.splits": "holdout:8", "folds": 3, "fold": 1}
    config = finetune(tiny_dataset, eval_split="fold", eval_every="50%", **changes)
    assert train_stage.run(config, folder / "run") == 0
    return folder / "run"


def test_held_out_images_and_folds_are_never_trained_on(held_out, tiny_dataset, tmp_path):
    view = resplit.resplit(tiny_dataset, "holdout:8")
    folded, left = resplit.with_fold(view, view.labelled_ids(LABELS, draw=0), folds=3, fold=1)
    facts = json.loads((held_out / "config.json").read_text())
    seen = facts["seen"][tiny_dataset.name]
    assert facts["data"]["splits"] == "holdout:8"
    assert seen["masks"] == seen["ids"] == sorted(left)
    assert "fold/dice" in watched(held_out)

    for split in ("holdout", "fold"):
        summary, ids = evaluate(held_out, split, tmp_path / split)
        assert ids == folded.ids(split) and not set(ids) & set(seen["ids"])
        assert summary["splits"]["rule"] == "holdout:8"
        assert summary["splits"]["sizes"] == folded.sizes
        assert summary["splits"]["seen_in_training"] == {"images": 0, "patients": 0, "note": ""}
        assert (summary["training"]["folds"], summary["training"]["fold"]) == (3, 1)


def test_another_division_does_not_make_a_test_of_what_was_seen(held_out, tiny_dataset, tmp_path):
    with pytest.raises(UserError, match="would be dishonest"):
        evaluate_stage.run(evaluation(held_out, "train", **{"data.splits": "built"}), tmp_path)
    # Most of train held out: some of it was learnt from.
    most = f"holdout:{tiny_dataset.sizes['train'] - 4}"
    with pytest.raises(UserError, match="divided anew since"):
        evaluate_stage.run(evaluation(held_out, "holdout", **{"data.splits": most}), tmp_path)
    # And no training starts that would be judged by images of the weights it starts from.
    config = finetune(tiny_dataset, init_from=str(held_out), eval_split="holdout", labels=0)
    config.data.splits = most
    with pytest.raises(UserError, match="were in the training data"):
        train_stage.run(config, tmp_path / "late")
    assert not (tmp_path / "late").exists()


def test_the_released_protocol_selects_on_its_test_images(tiny_dataset, tmp_path):
    """Defects 3 and 5: possible when asked for, and written down."""
    config = finetune(
        tiny_dataset,
        **{
            "labels": 7,  # as many as are left without the fold above: one compiled step for both
            "data.splits": "paper",
            "eval_split": "test",
            "eval_every": "1 steps",
            "checkpoint.best": "test/dice",
            "checkpoint.every": "1 steps",
        },
    )
    assert train_stage.run(config, tmp_path / "run") == 0
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    dice = {row["step"]: row["test/dice"] for row in rows if "test/dice" in row}
    best = max(dice, key=lambda step: (dice[step], step))
    assert checkpoint.load(tmp_path / "run", step="best").step in {
        step for step in dice if dice[step] == dice[best]
    }
    view = resplit.resplit(tiny_dataset, "paper")
    summary, ids = evaluate(tmp_path / "run", "test", tmp_path / "test", step="best")
    assert ids == view.ids("test")
    assert summary["selected_on"] == "test/dice"
    overlap = summary["splits"]["seen_in_training"]
    trained = set(view.labelled_ids(7, draw=0))
    patient_of = dict(zip(view.ids("train+test"), view.patients("train+test")))
    expected = {patient_of[i] for i in trained} & {patient_of[i] for i in ids}
    assert overlap["images"] == 0 and overlap["patients"] == len(expected) > 0
    assert "by image" in overlap["note"]
    # The same checkpoint, measured on a split by patient, is refused for its patients.
    with pytest.raises(UserError, match="images and .* patients"):
        evaluate_stage.run(evaluation(tmp_path / "run", "val", **{"data.splits": "built"}), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_split": "fold"}, "config.eval_split='fold' is empty .* made by config.folds"),
        ({"eval_split": "holdout"}, "made by config.data.splits"),
        ({"fold": 1}, "config.fold=1 says which"),
        ({"folds": 20}, "config.folds=20"),
        ({"folds": 3, "fold": 3}, r"config.fold=3 must be in 0\.\.2"),
        ({"data.splits": "holdout:5000"}, "hold out at least 1 and at most"),
        ({"data.splits": "fold"}, "data.splits='fold' is not known"),
        ({"folds": 3, "batch_size": 10}, "batch_size=10 is larger than the 7 images"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_anything_is_written(
    tiny_dataset, tmp_path, changes, message
):
    with pytest.raises(UserError, match=message):
        train_stage.run(finetune(tiny_dataset, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_continued_on_another_division(held_out, tiny_dataset):
    config = finetune(tiny_dataset, folds=3, fold=1, eval_split="fold", eval_every="50%")
    config.data.splits = "holdout:4"
    with pytest.raises(UserError, match="data.splits: holdout:8 -> holdout:4"):
        train_stage.run(config, held_out)
