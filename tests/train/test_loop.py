"""The order of the loop, and that a loss which is not finite is never saved."""

import dataclasses
import itertools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cmunet_jax.train import loop, sharding
from cmunet_jax.train.step import TrainStep
from tests.objectives import tiny
from tests.train.test_step import arrays, spec, start
from tfds_angio.errors import UserError


class Recorder:
    """Stands for checkpointer, writer and progress; remembers what it was told, in order."""

    def __init__(self):
        self.events = []

    def save(self, step, state, *, metrics=None, force=False):
        self.events.append(("save", step, metrics))

    def wait(self):
        self.events.append(("wait",))

    def write_scalars(self, step, scalars):
        self.events.append(("log" if "train/loss" in scalars else "scores", step))

    def write_images(self, step, images):
        self.events.append(("picture", step))


@pytest.fixture(scope="module")
def parts():
    """A compiled tiny step, its state maker and data."""
    mesh, tx = sharding.create_mesh(), optax.adam(1e-3)
    objective = tiny.OBJECTIVES["scratch-fixed"]
    data = jax.device_put(arrays(), sharding.replicated(mesh))
    step = TrainStep(objective, tx, spec(objective), mesh)
    state = start(objective, tx, mesh)
    compiled = loop.compile_step(step, state, data, steps=4, stage="finetune")
    return compiled, lambda: start(objective, tx, mesh), data


def fit(parts, recorder, *, steps=4, data=None, **hooks):
    step, make_state, resident = parts
    values = dict(log_every=2, eval_every=0, pictures_every=0, save_every=0) | hooks
    return loop.fit(
        step, make_state(), itertools.repeat(resident if data is None else data),
        total_steps=steps, hooks=loop.Hooks(**values), checkpointer=recorder, writer=recorder,
        progress=lambda done: None, rate=lambda s: 0.1, stage="finetune",
    )  # fmt: skip


def test_evaluate_save_step_log(parts):
    recorder = Recorder()
    state = fit(
        parts, recorder, eval_every=2, save_every=2, pictures_every=4,
        evaluate=lambda state: {"val/dice": float(state.step)},
        pictures=lambda state, batch: {"image": np.zeros((1, 2, 2, 1))},
    )  # fmt: skip
    assert int(state.step) == 4
    assert recorder.events == [
        ("log", 2),
        ("scores", 2),
        ("save", 2, {"val/dice": 2.0}),
        ("log", 4),
        ("picture", 4),
        ("scores", 4),
        ("save", 4, {"val/dice": 4.0}),
        ("wait",),
    ]


@pytest.mark.parametrize("save_every, logged_before", [(0, 3), (2, 2)])
def test_a_log_waits_behind_the_next_step_unless_a_save_is_due(parts, save_every, logged_before):
    """The device has work while the host writes; a save comes after its step's log."""
    compiled, make_state, data = parts
    recorder, queued = Recorder(), []

    def step(state, totals, batch):
        queued.append(len(queued) + 1)
        return compiled.step(state, totals, batch)

    write = recorder.write_scalars
    recorder.write_scalars = lambda step, scalars: write((step, queued[-1]), scalars)
    fit(
        (dataclasses.replace(compiled, step=step), make_state, data), recorder,
        steps=4, log_every=2, save_every=save_every,
    )  # fmt: skip
    logs = [event for event in recorder.events if event[0] == "log"]
    assert logs == [("log", (2, logged_before)), ("log", (4, 4))]
    saves = [event[1] for event in recorder.events if event[0] == "save"]
    assert saves == ([2, 4] if save_every else [4])


def test_saves_without_evaluation_carry_no_stale_score(parts):
    recorder = Recorder()
    fit(parts, recorder, eval_every=2, save_every=3, evaluate=lambda state: {"val/dice": 1.0})
    assert ("save", 3, None) in recorder.events
    assert ("save", 2, {"val/dice": 1.0}) not in recorder.events
    recorder = Recorder()
    fit(
        parts, recorder, eval_every=2, save_every=3, save_evaluated=True,
        evaluate=lambda state: {"val/dice": 1.0},
    )  # fmt: skip
    assert ("save", 2, {"val/dice": 1.0}) in recorder.events


def test_a_loss_that_is_not_finite_stops_and_is_not_saved(parts):
    _, _, data = parts
    broken = data | {"scale": jnp.full_like(data["scale"], jnp.inf)}
    recorder = Recorder()
    with pytest.raises(UserError, match="at step .*learning_rate"):
        fit(parts, recorder, save_every=1, log_every=3, data=broken)
    assert not [event for event in recorder.events if event[0] == "save"]


class Coordinator:
    """Stands for jax's side of SIGTERM: yes to one number, the one after the last asked with."""

    def __init__(self):
        self.asked, self.answer = 0, -1

    def sigterm(self):
        self.answer = self.asked + 1

    def reached(self, number):
        self.asked = number
        return number == self.answer


@pytest.mark.parametrize("before_the_first_step", [True, False])
def test_several_processes_stop_wherever_they_resumed(parts, monkeypatch, before_the_first_step):
    """Also when SIGTERM came while the resumed run was still being compiled."""
    step, make_state, data = parts
    jax_side = Coordinator()
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(loop.multihost_utils, "reached_preemption_sync_point", jax_side.reached)
    monkeypatch.setattr(loop, "_ASKED", itertools.count(1))
    resumed, recorder = make_state(), Recorder()
    resumed = resumed.replace(step=resumed.step + 5)
    if before_the_first_step:
        jax_side.sigterm()
    with pytest.raises(loop.Preempted, match="SIGTERM at step"):
        loop.fit(
            step, resumed, itertools.repeat(data), total_steps=20,
            hooks=loop.Hooks(log_every=0, eval_every=0, pictures_every=0, save_every=0),
            checkpointer=recorder, writer=recorder, rate=lambda s: 0.1, stage="finetune",
            progress=lambda done: before_the_first_step or done != 7 or jax_side.sigterm(),
        )  # fmt: skip
    assert recorder.events == [("save", 6 if before_the_first_step else 7, None), ("wait",)]


def stopped_at(step):
    """A progress that sends SIGTERM to this process after some step."""
    return lambda done: os.kill(os.getpid(), signal.SIGTERM) if done == step else None


def test_a_log_that_is_due_when_a_run_is_stopped_is_written_before_the_save(parts):
    """Resuming would not write it again."""
    step, make_state, data = parts
    recorder = Recorder()
    with pytest.raises(loop.Preempted, match="SIGTERM at step 4"):
        loop.fit(
            step, make_state(), itertools.repeat(data), total_steps=8, progress=stopped_at(4),
            hooks=loop.Hooks(log_every=2, eval_every=0, pictures_every=0, save_every=0),
            checkpointer=recorder, writer=recorder, rate=lambda s: 0.1, stage="finetune",
        )  # fmt: skip
    assert recorder.events == [("log", 2), ("log", 4), ("save", 4, None), ("wait",)]


@pytest.mark.parametrize("finite", [True, False])
def test_a_log_is_not_lost_with_the_data_after_it(parts, finite):
    """Nor is a loss that was not finite: it came first."""
    step, make_state, data = parts
    recorder = Recorder()
    if not finite:
        data = data | {"scale": jnp.full_like(data["scale"], jnp.inf)}

    def batches():
        yield from [data, data]
        raise OSError("the disk is gone")

    kind, words = (OSError, "the disk is gone") if finite else (UserError, "at step 2")
    with pytest.raises(kind, match=words):
        loop.fit(
            step, make_state(), batches(), total_steps=8, progress=lambda done: None,
            hooks=loop.Hooks(log_every=2, eval_every=0, pictures_every=0, save_every=0),
            checkpointer=recorder, writer=recorder, rate=lambda s: 0.1, stage="finetune",
        )  # fmt: skip
    assert recorder.events == ([("log", 2)] if finite else [])
