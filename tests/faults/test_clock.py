"""A clock that jumps, by a day or back to 1970, changes nothing but time stamps."""

import io
import itertools
import os
import time

import pytest

from cmunet_jax.data import cache
from cmunet_jax.stages import train as train_stage
from cmunet_jax.train import checkpoint, progress
from tests.stage_helpers import tiny
from tests.train.states import make_state, open_run, steps_in

pytestmark = pytest.mark.faults

STEPS = 6
DAY = 86_400.0


@pytest.fixture
def jumping(monkeypatch):
    """time.time() and time_ns() leap forward and back at each call."""
    jumps = itertools.cycle([0.0, DAY, -10 * DAY, 400 * DAY, -time.time()])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: max(now + next(jumps), 0.0))
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))


def test_a_training_does_not_notice(tiny_dataset, tmp_path, jumping, monkeypatch):
    config = tiny("pretrain", tiny_dataset, STEPS)
    config.checkpoint.every = "2 steps"
    assert train_stage.run(config, tmp_path / "jumping") == 0
    monkeypatch.undo()
    assert train_stage.run(config, tmp_path / "steady") == 0
    loaded = [checkpoint.load(tmp_path / name) for name in ("jumping", "steady")]
    assert loaded[0].digest == loaded[1].digest and loaded[0].step == STEPS


def test_the_latest_checkpoint_is_the_largest_step_whatever_the_files_say(tmp_path):
    with open_run(tmp_path, keep_latest=3) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, make_state(step))
    for step, when in ((1, time.time() + 400 * DAY), (2, 0.0), (3, 1.0)):
        for path in (tmp_path / str(step), *(tmp_path / str(step)).rglob("*")):
            os.utime(path, (when, when))
    assert checkpoint.load(tmp_path).step == 3
    with open_run(tmp_path, keep_latest=2) as checkpointer:
        assert checkpointer.restore(make_state()).step == 3
        checkpointer.save(4, make_state(4))
    assert steps_in(tmp_path) == [3, 4], "the oldest steps go, not the oldest files"


def test_progress_knows_only_the_monotonic_clock(jumping):
    stream, seconds = io.StringIO(), time.monotonic()
    line = progress.Progress(10, 4, stream=stream, every_secs=0.0)
    for step in range(1, 11):
        line(step, seconds + step)
    assert "1 steps/s" in stream.getvalue() and "-" not in stream.getvalue()


def test_files_from_the_future_do_not_stop_the_cache(tmp_path, jumping):
    import numpy as np

    left = tmp_path / ".writing-other"
    left.mkdir()
    os.utime(left, (4e9, 4e9))
    arrays = {"code": np.arange(6)}
    for _ in range(5):
        cache.save(tmp_path, "ab" * 32, arrays)
        assert (cache.load(tmp_path, "ab" * 32)["code"] == arrays["code"]).all()
