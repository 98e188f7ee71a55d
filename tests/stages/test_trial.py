"""A trial in its folder: what was done before counts where it is of these weights and this data."""

import importlib
import json
import os

import pytest

from cmunet_jax import config as config_lib
from cmunet_jax.stages import record, trial
from cmunet_jax.sweep import child
from cmunet_jax.sweep.store import FULL
from tests.stage_helpers import tiny
from tfds_angio.errors import UserError


@pytest.fixture
def folder(tmp_path, tiny_dataset, monkeypatch):
    """A trial of two steps that is done."""
    monkeypatch.setattr(trial.devices, "set_up", lambda: None)
    evaluation = importlib.import_module("configs.evaluate").get_config()
    evaluation.overlays = False
    spec = {
        "key": "a",
        "name": "trial a",
        "config": config_lib.to_dict(tiny("finetune", tiny_dataset, 2, labels=8)),
        "evaluation": config_lib.to_dict(evaluation),
        "selection": None,
    }
    record.write_json(tmp_path / child.SPEC, spec)
    assert trial.run(tmp_path) == 0
    return tmp_path


def _reads(folder):
    paths = sorted((folder / "reads").glob("*.json"))
    return [json.loads(path.read_text())["read"] for path in paths]


def test_an_evaluation_counts_if_it_is_of_these_weights_and_this_data(folder, tiny_dataset):
    summary = folder / "evaluation" / "summary.json"
    written = summary.stat().st_mtime_ns
    assert trial.run(folder) == 0
    assert summary.stat().st_mtime_ns == written and _reads(folder) == [1]

    for key, value in (("dataset", {"fingerprint": "0" * 64}), ("split", "val")):
        before = _reads(folder)
        record.write_json(summary, json.loads(summary.read_text()) | {key: value})
        assert trial.run(folder) == 0
        found = json.loads(summary.read_text())
        assert found["dataset"]["fingerprint"] == tiny_dataset.fingerprint
        assert found["split"] == "test" and _reads(folder) == [*before, len(before) + 1]
    assert len(list(folder.glob("evaluation.other-*/summary.json"))) == 2, "nothing is lost"

    stored = json.loads(summary.read_text())
    stored["checkpoint"]["digest"] = "0" * 64
    record.write_json(summary, stored)
    assert trial.run(folder) == 2
    assert "other weights" in json.loads((folder / child.OUTCOME).read_text())["error"]


def test_a_run_that_has_saved_nothing_may_begin_elsewhere(tmp_path):
    """Killed before its first save, and its pre-training was repeated meanwhile."""
    path = tmp_path / record.FILE
    record.write_json(path, {"config": {"init_from": "somewhere/else"}})
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    assert trial._where_it_began(tmp_path) == "somewhere/else"
    (tmp_path / "checkpoints" / "4").rmdir()
    assert trial._where_it_began(tmp_path) is None
    assert not path.exists(), "it would be refused as a run with another config"


@pytest.mark.parametrize("number", FULL)
def test_what_every_trial_would_meet_is_no_failure_of_this_one(number, tmp_path, monkeypatch):
    record.write_json(tmp_path / child.SPEC, {"config": {}, "evaluation": None})

    def fail(*unused):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(trial.devices, "set_up", lambda: None)
    monkeypatch.setattr(trial, "_do", fail)
    assert trial.run(tmp_path) == child.EXIT_STORAGE
    assert trial._of_storage(UserError(f"x cannot be written: {os.strerror(number)}."))
