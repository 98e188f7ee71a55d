"""Cases of training: the step of an objective, its augmentation, and what the loop adds."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax

from cmunet_jax.benchmark import memory
from cmunet_jax.benchmark.rows import Row
from cmunet_jax.benchmark.subject import Stepping, Training, core_step, loop_step, views_task
from cmunet_jax.benchmark.timing import Effort, Task, alternate
from cmunet_jax.models.unet import REMAT
from cmunet_jax.train import estimate, loop, progress, writers
from cmunet_jax.train.checkpoint import Checkpointer

_LOG_STEPS, _IDLE_SECONDS = 20, 5.0  # of a window: the configs' log period, less if steps are slow
_WARM_STEPS = 3  # the loop waits for its third step, to say how long the rest takes


def step_rows(name: str, training: Training, effort: Effort) -> Iterator[Row]:
    """The step of one training, its views alone, and their share, from alternating samples."""
    images = training.config.batch_size
    with memory.watch() as peak, training.batches() as batches:
        batch = next(batches)
        stepping, _, work = loop_step(training, batch)
        _, views = views_task(training, batch)
        samples = alternate({"step": stepping.task, "views": views}, effort)
    note = "loops or library calls hide work from XLA's count of bytes" if work.hidden else ""
    yield Row(
        name, f"{name}: step", samples["step"], images=images, cost=work, peak=peak,
        note=note,
    )  # fmt: skip
    yield Row(name, f"{name}: augmentation", samples["views"], images=images)
    share = [v / s for v, s in zip(samples["views"], samples["step"], strict=True)]
    yield Row(name, f"{name}: augmentation / step", share, unit="%")


def idle_rows(name: str, training: Training, effort: Effort) -> Iterator[Row]:
    """How much longer a step takes in the training loop than back to back.

    The loop runs as in a training, with its progress line, its log and its scalars; what it does
    at its own intervals (evaluations, pictures, checkpoints) is not in it.
    """
    with training.batches() as batches, tempfile.TemporaryDirectory() as folder:
        batch = next(batches)
        state, stage = training.fresh_state(), training.config.stage
        with contextlib.redirect_stdout(io.StringIO()):
            ready = loop.compile_step(training.step(), state, batch, steps=1, stage=stage)
        stepping = Stepping(ready.step, state, (batch,), ready.zero_metrics())
        stepping.task.seconds()
        count = min(_LOG_STEPS, max(5, math.ceil(_IDLE_SECONDS / stepping.task.seconds())))
        feed = itertools.chain([batch], batches)
        in_loop, back_to_back = [], []
        for _ in range(effort.repetitions):
            in_loop.append(_loop_seconds(training, ready, feed, count, pathlib.Path(folder)))
            back_to_back.append(stepping.task.seconds(count) / count)
    yield Row("idle", f"idle: {name} step in the loop", in_loop, images=training.config.batch_size)
    yield Row(
        "idle", f"idle: {name} step back to back", back_to_back, images=training.config.batch_size
    )
    idle = [1 - b / a for a, b in zip(in_loop, back_to_back, strict=True)]
    yield Row(
        "idle", "idle: share of the loop", idle, unit="%",
        note="negative values are noise: both are the same program on a machine with other work",
    )  # fmt: skip


def remat_rows(name: str, training: Training, effort: Effort) -> Iterator[Row]:
    """What each kind of rematerialisation costs in time and saves in temporary memory.

    Forward, backward and optimiser on given views, in turns; shares are of the step that stores
    everything.
    """
    with training.batches() as batches:
        make, _ = views_task(training, next(batches))
        views = make()
    steps: dict[str, Stepping] = {}
    costs = {}
    for mode in REMAT:
        objective: Any = dataclasses.replace(training.objective, remat=mode)  # type: ignore[type-var]
        subject = dataclasses.replace(training, objective=objective)
        steps[mode], costs[mode] = core_step(subject, views, training.tx)
    samples = alternate({mode: stepping.task for mode, stepping in steps.items()}, effort)
    held = {mode: estimate.step_bytes(stepping.step) for mode, stepping in steps.items()}
    images = training.config.batch_size
    for mode in REMAT:
        what = f"remat={mode}: {name} step"
        yield Row("remat", what, samples[mode], images=images, cost=costs[mode])
    for mode in [mode for mode in REMAT if mode != "none"]:
        share = [a / b for a, b in zip(samples[mode], samples["none"], strict=True)]
        yield Row("remat", f"remat={mode}: time / none", share, unit="%")
        if held["none"]:
            share = [held[mode] / held["none"]]
            yield Row("remat", f"remat={mode}: temporary memory / none", share, unit="%")


class _SavesNothing(Checkpointer):
    """The loop saves at its end, which is none of the time between steps."""

    def save(self, *args: Any, **kwargs: Any) -> bool:
        """Saves nothing."""
        return False


def _loop_seconds(
    training: Training, ready: loop.Compiled, feed: Iterator[Any], count: int, folder: pathlib.Path
) -> float:
    """Seconds a step over `count` steps of `loop.fit`, both ends after the device was waited for.

    Its log comes after the last step and waits for the device, so the last time is true; so is the
    first, because the loop waits for its third step.
    """
    state = training.fresh_state()
    total = int(state.step) + _WARM_STEPS + count
    bar = progress.Progress(total, training.config.batch_size, stream=io.StringIO())
    times: dict[int, float] = {}

    def after(done: int) -> None:
        bar(done)
        times[done] = time.perf_counter()

    hooks = loop.Hooks(log_every=total, eval_every=0, pictures_every=0, save_every=0)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        writers.create_writer(folder, start_step=0) as writer,
        _SavesNothing(folder / "none", config={}, preprocessing={}) as checkpointer,
    ):
        loop.fit(
            ready,
            state,
            feed,
            total_steps=total,
            hooks=hooks,
            checkpointer=checkpointer,
            writer=writer,
            progress=after,
            rate=lambda step: 0.0,
            stage=training.config.stage,
        )
    return (times[total] - times[_WARM_STEPS]) / count


def checkpoint_rows(name: str, training: Training, effort: Effort) -> Iterator[Row]:
    """Saving the state, until training may go on and until it is on disk, and restoring it."""
    state, size = training.state, float(sum(x.nbytes for x in jax.tree.leaves(training.state)))
    returned: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Checkpointer(folder, config={}, preprocessing={}, keep_latest=1) as checkpointer,
    ):
        steps = itertools.count(1)

        def save() -> None:
            began = time.perf_counter()
            checkpointer.save(next(steps), state)
            returned.append(time.perf_counter() - began)
            checkpointer.wait()

        tasks = {"save": Task(save), "restore": Task(lambda: checkpointer.restore(state))}
        with memory.watch() as peak:
            samples = alternate(tasks, Effort(effort.repetitions, effort.seconds, 0.0))
    rounds = len(samples["save"])
    common: dict[str, Any] = {"moved": size, "peak": peak}
    yield Row("checkpoint", "checkpoint: save, blocking part", returned[-rounds:])
    yield Row("checkpoint", "checkpoint: save, on disk", samples["save"], **common)
    yield Row("checkpoint", "checkpoint: restore, verify", samples["restore"], **common)
