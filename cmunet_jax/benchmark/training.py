"""Cases of training: the step of an objective, its augmentation, memory and checkpoints."""

from __future__ import annotations

import dataclasses
import itertools
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
from cmunet_jax.train import estimate
from cmunet_jax.train.checkpoint import Checkpointer


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
