"""Consumers of checkpoints: what `load` finds, and what it refuses."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest

from cmunet_jax.train.checkpoint import load
from tests.train.states import PREPROCESSING, assert_same, make_state, open_run, saved, steps_in
from tfds_angio.errors import UserError


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("workdir")
    with open_run(path / "checkpoints", keep_latest=3, best_metric="dice") as checkpointer:
        for step, dice in ((10, 0.2), (20, 0.9), (30, 0.4)):
            checkpointer.save(step, make_state(step), metrics={"dice": dice})
    return path


@pytest.mark.parametrize(
    "part, step, expected",
    [
        ("", None, 30),
        ("", "latest", 30),
        ("", "best", 20),
        ("", 10, 10),
        ("", "10", 10),
        ("checkpoints", None, 30),
        ("checkpoints/20", None, 20),
        ("checkpoints/20", 20, 20),
    ],
)
def test_load_finds_the_checkpoint(workdir, part, step, expected):
    loaded = load(workdir / part, step=step)
    state = make_state(expected)
    assert loaded.step == expected and loaded.path == workdir / "checkpoints" / str(expected)
    assert_same(loaded.params, state.params)
    assert_same(loaded.ema_params, state.ema_params)
    assert_same(loaded.batch_stats, state.batch_stats)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded.params))
    assert loaded.preprocessing == PREPROCESSING and loaded.config["stage"] == "finetune"
    assert loaded.extra is None
    assert loaded.weights()[0] is loaded.ema_params
    assert loaded.weights(ema=False)[0] is loaded.params


def test_a_path_with_two_dots_is_loaded_and_resumed(workdir, monkeypatch):
    (workdir / "beside").mkdir()
    monkeypatch.chdir(workdir / "beside")
    assert load("..").path == workdir / "checkpoints" / "30"
    with open_run("../checkpoints") as checkpointer:
        assert checkpointer.restore(make_state(30)).step == 30


def test_above_a_link_is_above_its_target(workdir, tmp_path):
    (workdir / "beside").mkdir(exist_ok=True)
    link = tmp_path / "link"
    link.symlink_to(workdir / "beside")
    assert load(link / "..").path.parent == workdir / "checkpoints"
    (tmp_path / "run").symlink_to(workdir)
    assert load(tmp_path / "run").path.parent == tmp_path / "run" / "checkpoints"


def test_load_extra_on_demand(workdir):
    assert_same(load(workdir, extra=True).extra, make_state(30).extra)


def test_load_without_moving_averages(tmp_path):
    with open_run(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(1, ema=False))
    loaded = load(tmp_path)
    assert loaded.ema_params is None and loaded.ema_batch_stats is None
    assert loaded.weights()[0] is loaded.params


@pytest.mark.parametrize(
    "part, step, words",
    [
        ("nowhere", None, "does not exist"),
        ("checkpoints/30/state", None, "no step folder"),
        ("", 15, "no step 15"),
        ("", "newest", "'latest', 'best' or a step number"),
        ("checkpoints/20", 30, "leave step=30 out"),
    ],
)
def test_load_says_in_one_line_what_is_wrong(workdir, part, step, words):
    with pytest.raises(UserError, match=words) as error:
        load(workdir / part, step=step)
    assert "\n" not in str(error.value)


def test_weights_without_preprocessing_cannot_be_loaded(tmp_path):
    saved(tmp_path, [1], preprocessing={})
    with pytest.raises(UserError, match="without preprocessing cannot be loaded"):
        load(tmp_path)


def test_no_metric_means_no_best(tmp_path):
    saved(tmp_path, [1])
    with pytest.raises(UserError, match="latest"):
        load(tmp_path, step="best")


def test_consumers_fall_back_only_where_no_step_was_named(tmp_path, workdir, caplog):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    for step in (20, 30):
        (run / f"checkpoints/{step}/state/manifest.ocdbt").unlink()
    assert load(run).step == 10
    assert caplog.text.count("is damaged") == 2
    assert load(run, step="best").step == 10
    for path, step in ((run, 30), (run / "checkpoints" / "30", None)):
        with pytest.raises(UserError, match="damaged"):
            load(path, step=step)
    assert steps_in(run / "checkpoints") == [10, 20, 30]  # Consumers move nothing.


def test_edited_metadata_is_damage(tmp_path):
    """A manifest edited by hand (say, another preprocessing) does not pass for the saved one."""
    saved(tmp_path, [1])
    path = tmp_path / "1" / "manifest" / "metadata"
    data = json.loads(path.read_text())
    data["preprocessing"]["size"] = 64
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="does not match its checksum"):
        load(tmp_path)


def test_orbax_stays_silent(tmp_path, capfd):
    logging.getLogger("absl").setLevel(logging.INFO)
    try:
        saved(tmp_path, [1, 2])
        load(tmp_path)
    finally:
        logging.getLogger("absl").setLevel(logging.WARNING)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""
