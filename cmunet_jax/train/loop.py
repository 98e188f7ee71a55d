"""The one training loop. Order of what it reports: evaluate, save, step, log.

A log is fetched and written while the device works on the next step, unless something that must
come after it is due first.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import jax
import numpy as np
from clu import metric_writers
from jax.experimental import multihost_utils

from cmunet_jax.train import communication, estimate, processes
from cmunet_jax.train.checkpoint import Checkpointer
from cmunet_jax.train.state import TrainState
from cmunet_jax.train.step import NOT_FINITE, Metrics, TrainStep
from tfds_angio.errors import UserError

# EX_TEMPFAIL: schedulers and wrappers know it as "run the same command again".
EXIT_PREEMPTED = 75
SLOW_STEP_SECONDS = 10.0
MOST_SKIPPED = 10  # steps in a row, without one between two reports that could be used

# jax says yes to exactly one number: the one after the largest that a process had asked with when
# SIGTERM came, 0 before the first. Asking with the step, a run that resumes would never be told of
# one that came before its first step. This counts on through all loops of a process.
_ASKED = itertools.count(1)

BatchIds = Callable[[int], Sequence[str]]  # step, from 0 -> the images in its batch


class Preempted(Exception):
    """The process was asked to stop; the state was saved first."""


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What happens besides stepping; periods in steps, 0 is never.

    Attributes:
      log_every: scalars and the progress line.
      eval_every: `evaluate(state)` -> scalars.
      pictures_every: `pictures(state, batch)` -> named images [N, H, W, C] float32 in [0, 1].
      save_every: checkpoints.
      save_evaluated: also save after each evaluation, so that the best can be kept.
    """

    log_every: int
    eval_every: int
    pictures_every: int
    save_every: int
    save_evaluated: bool = False
    evaluate: Callable[[TrainState], dict[str, float]] | None = None
    pictures: Callable[[TrainState, Any], dict[str, np.ndarray]] | None = None


class StopRequest:
    """Turns SIGTERM and Ctrl-C into a flag that the loop reads between steps.

    In a run of several processes SIGTERM stays with jax, which tells the other processes and picks
    a step that none of them has reached; Ctrl-C is passed on as SIGTERM.
    """

    def __init__(self) -> None:
        self.received: str = ""
        self._previous: dict[int, Any] = {}
        # A sweep's worker asks too, and must not open a device: no jax.process_count() here.
        self._shared = jax.distributed.is_initialized()

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT,) if self._shared else (signal.SIGTERM, signal.SIGINT)
            for number in numbers:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt  # A second Ctrl-C does not wait for the save.
        self.received = signal.Signals(number).name
        if self._shared:
            os.kill(os.getpid(), signal.SIGTERM)

    def agreed(self) -> bool:
        """Whether to stop; the same in all processes, which must all ask after each step."""
        if not self._shared:
            return bool(self.received)
        stop = multihost_utils.reached_preemption_sync_point(next(_ASKED))
        self.received = self.received or ("SIGTERM" if stop else "")
        return stop

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _due(every: int, step: int) -> bool:
    return bool(every) and step % every == 0


def _means(totals: Metrics, step: int, batch_ids: BatchIds) -> dict[str, float]:
    """Fetches the accumulator (the only device-to-host copy of the loop) and divides.

    Raises:
      UserError: if a loss or gradient since the last report was not finite, unless the step left
        it out. The device noted which step was the first; its images follow from its number.
    """
    fetched = jax.device_get(totals)
    first, bad = (int(value) for value in fetched.pop(NOT_FINITE))
    means = {
        f"train/{name}": float(total) / max(float(count), 1.0)
        for name, (total, count) in fetched.items()
        if count or not bad
    }
    for name in ("loss", "gradient_norm"):
        value = means.get(f"train/{name}", 0.0)
        if not np.isfinite(value):
            raise UserError(
                f"the {name.replace('_', ' ')} is {value} at step {step}"
                f"{_where(first, batch_ids) if bad else ''}; earlier checkpoints are kept. Look at "
                "these images; lower config.optim.learning_rate or set config.optim.clip_norm=1.0 "
                "and start again in another --workdir; or leave such steps out: the same command "
                "with --config.optim.on_nan=skip goes on from the last checkpoint."
            )
    if bad >= MOST_SKIPPED and "train/loss" not in means:
        raise UserError(
            f"all {bad} steps before step {step} were skipped, because their loss or gradient was "
            f"not finite{_where(first, batch_ids)}; earlier checkpoints are kept. Lower "
            "config.optim.learning_rate and start again in another --workdir."
        )
    return means | ({"train/skipped": float(bad)} if bad else {})


def _where(first: int, batch_ids: BatchIds) -> str:
    """The first step that was not finite, as step numbers are written, and its images."""
    return f" (first at step {first + 1}, on the images {', '.join(batch_ids(first))})"


class _Log:
    """The scalars of the steps since the last log, kept on the device until they are written.

    As a context it writes them also where an error comes in between; of several processes none
    does, as the step to wait for may want one that is gone.
    """

    def __init__(
        self,
        writer: metric_writers.MetricWriter,
        rate: Callable[[int], Any],
        batch_ids: BatchIds,
    ):
        self._writer, self._batch_ids = writer, batch_ids
        # One program: eagerly, a schedule would send the device an operation at a time.
        self._rate = jax.jit(rate)
        self._kept: tuple[int, Metrics, Any] | None = None

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        told = kind is not None and issubclass(kind, Exception)  # a second Ctrl-C waits for nothing
        if told and jax.process_count() == 1:
            self.write()  # a loss that was not finite came before that error, and is told first

    def keep(self, done: int, totals: Metrics) -> None:
        """Keeps what `done` steps have added up; waits for nothing."""
        self._kept = (done, totals, self._rate(done - 1))

    def write(self) -> None:
        """Writes what is kept, if anything; waits for its step.

        Raises:
          UserError: if a loss or gradient of these steps was not finite.
        """
        if self._kept is not None:
            (done, totals, rate), self._kept = self._kept, None
            means = _means(totals, done, self._batch_ids)
            self._writer.write_scalars(done, means | {"learning_rate": float(rate)})


@dataclasses.dataclass(frozen=True)
class _Between:
    """What is done between two steps: pictures, evaluation, saving, in this order."""

    hooks: Hooks
    checkpointer: Checkpointer
    writer: metric_writers.MetricWriter
    log: _Log
    batch_ids: BatchIds

    def __call__(
        self, step: int, state: TrainState, totals: Metrics, batch: Any, *, last: bool
    ) -> None:
        """Does what is due after `step` steps; everything after the last."""
        hooks, scores = self.hooks, None
        periods = (hooks.pictures_every, hooks.eval_every, hooks.save_every)
        if last or any(_due(every, step) for every in periods):
            self.log.write()  # of these steps
        if hooks.pictures and (last or _due(hooks.pictures_every, step)):
            for name, images in hooks.pictures(state, batch).items():
                self.writer.write_images(step, {name: images})
        if hooks.evaluate and (last or _due(hooks.eval_every, step)):
            scores = hooks.evaluate(state)
            self.writer.write_scalars(step, scores)
        if last or _due(hooks.save_every, step) or (scores and hooks.save_evaluated):
            self.save(step, state, totals, scores=scores, force=last)

    def save(
        self,
        step: int,
        state: TrainState,
        totals: Metrics,
        *,
        scores: dict[str, float] | None = None,
        force: bool = False,
    ) -> None:
        """Saves, but never a state whose loss is not finite."""
        self.log.write()
        _means(totals, step, self.batch_ids)
        self.checkpointer.save(step, state, metrics=scores, force=force)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step ready to run: `step(state, totals, batch)`, and its empty accumulator.

    Within `memory_errors()`, running out of device memory is a UserError.
    """

    step: Callable[[TrainState, Metrics, Any], tuple[TrainState, Metrics]]
    zero_metrics: Callable[[], Metrics]
    memory_errors: Callable[[], contextlib.AbstractContextManager[None]]


def compile_step(
    train_step: TrainStep, state: TrainState, batch: Any, *, steps: int, stage: str
) -> Compiled:
    """Compiles ahead of time, so that memory and time are known before anything is written.

    Args:
      train_step: what to compile.
      state: of the run, for shapes and shardings.
      batch: what the step takes as data, likewise.
      steps: that remain, for the forecast.
      stage: names the config file in messages.

    Raises:
      UserError: if one step does not fit into memory.
    """
    began = time.perf_counter()
    totals = train_step.zero_metrics(state, batch)
    spec = train_step.spec
    sizes: dict[str, Any] = dict(
        batch_size=spec.batch_size,
        accumulation=spec.accumulation,
        stage=stage,
        remat=train_step.remat,
    )
    with estimate.memory_errors(**sizes):
        compiled = train_step.jitted.lower(state, totals, batch).compile()
    print(f"Compiled the step in {estimate.duration(time.perf_counter() - began)}.", flush=True)
    processes.meet("compiled")
    if jax.device_count() > 1:
        sent = communication.of_step(compiled, devices=jax.device_count())
        print(f"Each step sends between devices: {communication.describe(sent)}.", flush=True)
    estimate.check_memory(compiled, **sizes)
    line = estimate.forecast(compiled, steps=steps, accumulation=spec.accumulation, stage=stage)
    if line:
        print(line, flush=True)
    return Compiled(
        compiled,
        functools.partial(train_step.zero_metrics, state, batch),
        functools.partial(estimate.memory_errors, need=estimate.step_bytes(compiled), **sizes),
    )


def fit(
    compiled: Compiled,
    state: TrainState,
    batches: Iterator[Any],
    *,
    total_steps: int,
    hooks: Hooks,
    checkpointer: Checkpointer,
    writer: metric_writers.MetricWriter,
    progress: Callable[[int], None],
    rate: Callable[[int], Any],
    stage: str,
    batch_ids: BatchIds = lambda step: ["(not known)"],
) -> TrainState:
    """Trains until `total_steps` optimiser steps are done.

    Args:
      compiled: of `compile_step`.
      state: where to start; `state.step` may be anything below `total_steps`.
      batches: what the step takes as data, one item a step, from `state.step` on.
      total_steps: optimiser steps at the end.
      hooks: evaluation, pictures, logging and saving, with their periods.
      checkpointer: saves the state; the last step is always saved.
      writer: receives scalars and pictures.
      progress: told the number of steps done after each one.
      rate: step -> learning rate, for the log; jax can trace it.
      stage: names the config file in messages.
      batch_ids: step (from 0) -> ids of the images in its batch, for messages.

    Returns:
      The final state, saved.

    Raises:
      Preempted: after SIGTERM or Ctrl-C, with the state saved.
      UserError: if the loss is not finite, or the device's memory does not suffice.
    """
    start = int(state.step)
    log = _Log(writer, rate, batch_ids)
    between = _Between(hooks, checkpointer, writer, log, batch_ids)
    totals = compiled.zero_metrics()
    timer = _FirstSteps(start, total_steps, stage)
    batch: Any = None
    with StopRequest() as stop, compiled.memory_errors(), log:
        for step in range(start, total_steps):
            if step > start:
                between(step, state, totals, batch, last=False)
            batch = next(batches)
            with jax.transfer_guard("disallow"):
                state, totals = compiled.step(state, totals, batch)
            done = step + 1
            log.write()  # the one before, while the device works on this step
            timer.after(done, totals)
            if _due(hooks.log_every, done) or done == total_steps:
                log.keep(done, totals)
                totals = compiled.zero_metrics()
            progress(done)
            if stop.agreed() and done < total_steps:
                between.save(done, state, totals, force=True)
                checkpointer.wait()
                processes.meet("saved")  # Who ends first may have the others ended by a scheduler.
                raise Preempted(f"{stop.received} at step {done}: saved.")
        between(total_steps, state, totals, batch, last=True)
        checkpointer.wait()
        processes.meet("done")
    return state


class _FirstSteps:
    """Times the first steps and says once how long the rest will take, if that is long."""

    def __init__(self, start: int, total: int, stage: str):
        self._start, self._total, self._stage = start, total, stage
        self._began = time.perf_counter()
        self._said = False

    def after(self, done: int, totals: Metrics) -> None:
        """Called after each step; waits for the device on the first and third only."""
        count = done - self._start
        if self._said or count not in (1, 3):
            return
        jax.block_until_ready(totals)
        seconds = time.perf_counter() - self._began
        if count == 1 and seconds < SLOW_STEP_SECONDS:
            self._began = time.perf_counter()  # The first step warms caches: time the next two.
            return
        self._said = True
        per_step = seconds if count == 1 else seconds / 2
        line = estimate.measured(per_step, remaining=self._total - done, stage=self._stage)
        if line:
            print(line, flush=True)
