"""What the training loop costs between steps: the time in which no step's program runs.

Read from the profiler's record of the device's operations, so that it is the gap itself and not a
difference of two times, each of which the machine's other work moves by more than the gap.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import itertools
import math
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from cmunet_jax.benchmark.rows import Row
from cmunet_jax.benchmark.subject import Stepping, Training
from cmunet_jax.benchmark.timing import Effort
from cmunet_jax.train import loop, progress, writers
from cmunet_jax.train.checkpoint import Checkpointer

_LOG_STEPS, _IDLE_SECONDS = 20, 5.0  # of a window: the configs' log period, less if steps are slow
_WARM_STEPS = 3  # the loop waits for its third step, to say how long the rest takes
_MODULES = "XLA Modules"  # a TPU's own line of whole programs


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a program in a profile; times in seconds of the profile's clock."""

    program: str
    name: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Run:
    """One execution of a program, from the start of its first operation to the end of its last."""

    start: float
    end: float


def operations(profile: jax.profiler.ProfileData) -> list[list[Operation]]:
    """Those of each device that a profile holds.

    Accelerators have planes of their own; on a CPU the host's threads run them, each named with
    its device. A TPU also records whole programs: then these.
    """
    planes = list(profile.planes)
    own = [plane for plane in planes if plane.name.startswith("/device:")]
    found: dict[tuple[str, Any], list[Operation]] = collections.defaultdict(list)
    for plane in own or planes:
        lines = list(plane.lines)
        whole = [line for line in lines if line.name == _MODULES]
        for event in itertools.chain.from_iterable(line.events for line in whole or lines):
            stats = dict(event.stats)
            if not whole and "hlo_module" not in stats:
                continue
            # Programs share names: a TPU's own record has the number in the name.
            program = event.name if whole else f"{stats['hlo_module']}({stats.get('program_id')})"
            start = event.start_ns * 1e-9
            found[plane.name, stats.get("device_ordinal")].append(
                Operation(
                    program,
                    f"{stats.get('hlo_op')}/{event.name}",
                    start,
                    start + event.duration_ns * 1e-9,
                )
            )
    return list(found.values())


def runs(operations: Sequence[Operation], count: int) -> list[Run]:
    """The executions of the program that a device spent most of its time in.

    What a program does once in each run occurs `count` times: its k-th occurrence is of run k.
    What it does in loops within is left to these.

    Raises:
      ValueError: if nothing occurs `count` times.
    """
    spent: dict[str, float] = collections.defaultdict(float)
    for operation in operations:
        spent[operation.program] += operation.end - operation.start
    program = max(spent, key=lambda name: spent[name], default="")
    by_name: dict[str, list[Operation]] = collections.defaultdict(list)
    for operation in sorted(operations, key=lambda operation: operation.start):
        if operation.program == program:
            by_name[operation.name].append(operation)
    once = [group for group in by_name.values() if len(group) == count]
    if not once:
        raise ValueError(
            f"the profile holds no operation of {program or 'any program'} that ran {count} times: "
            "it cannot tell one step from the next"
        )
    return [
        Run(min(o.start for o in of_run), max(o.end for o in of_run))
        for of_run in zip(*once, strict=True)
    ]


def idle_share(found: Sequence[Run]) -> float:
    """The part of the time from the first run's start to the last one's end in none of them."""
    gaps = sum(max(0.0, b.start - a.end) for a, b in itertools.pairwise(found))
    return gaps / (found[-1].end - found[0].start)


def idle_rows(name: str, training: Training, effort: Effort) -> Iterator[Row]:
    """The share of the training loop between its steps, and a step's time in it and without it.

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
        in_loop, back_to_back, idle = [], [], []
        for _ in range(effort.repetitions):
            in_loop.append(_loop_seconds(training, ready, feed, count, pathlib.Path(folder)))
            back_to_back.append(stepping.task.seconds(count) / count)
            idle.append(_profiled_share(training, ready, feed, count, pathlib.Path(folder)))
    images = training.config.batch_size
    yield Row("idle", f"idle: {name} step in the loop", in_loop, images=images)
    yield Row("idle", f"idle: {name} step back to back", back_to_back, images=images)
    yield Row(
        "idle", "idle: between steps", idle, unit="%",
        note="of the profiled loop's time, the part in which no step ran on the device",
    )  # fmt: skip


class _SavesNothing(Checkpointer):
    """The loop saves at its end, which is none of the time between steps."""

    def save(self, *args: Any, **kwargs: Any) -> bool:
        """Saves nothing."""
        return False


def _profiled_share(
    training: Training, ready: loop.Compiled, feed: Iterator[Any], count: int, folder: pathlib.Path
) -> float:
    """The idle share of the same window as `_loop_seconds`; of the device that idles most."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would slow the host, whose time is what is looked for
    with tempfile.TemporaryDirectory(dir=folder) as trace:
        with jax.profiler.trace(trace, profiler_options=options):
            _loop_seconds(training, ready, feed, count, folder)
        (file,) = pathlib.Path(trace).rglob("*.xplane.pb")
        devices = operations(jax.profiler.ProfileData.from_file(str(file)))
    if not devices:
        raise ValueError("the profile names no operation of a device")
    steps = _WARM_STEPS + count + 1
    return max(idle_share(runs(device, steps)[_WARM_STEPS:]) for device in devices)


def _loop_seconds(
    training: Training, ready: loop.Compiled, feed: Iterator[Any], count: int, folder: pathlib.Path
) -> float:
    """Seconds a step over `count` steps of `loop.fit`, both ends after the device was waited for.

    The first after the third step, when the loop itself waits unless steps are slow. The log of
    these steps waits for the last, when one more step is queued behind.
    """
    state = training.fresh_state()
    logged = int(state.step) + _WARM_STEPS + count
    bar = progress.Progress(logged + 1, training.config.batch_size, stream=io.StringIO())
    times: dict[int, float] = {}
    made: dict[str, Any] = {}

    def step(*given: Any) -> tuple[Any, Any]:
        state, made["totals"] = ready.step(*given)
        return state, made["totals"]

    def after(done: int) -> None:
        bar(done)
        if done == logged - count:
            jax.block_until_ready(made["totals"])
        times[done] = time.perf_counter()

    hooks = loop.Hooks(log_every=logged, eval_every=0, pictures_every=0, save_every=0)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        writers.create_writer(folder, start_step=0) as writer,
        _SavesNothing(folder / "none", config={}, preprocessing={}) as checkpointer,
    ):
        loop.fit(
            dataclasses.replace(ready, step=step),
            state,
            feed,
            total_steps=logged + 1,
            hooks=hooks,
            checkpointer=checkpointer,
            writer=writer,
            progress=after,
            rate=training.rate,
            stage=training.config.stage,
        )
    return (times[logged + 1] - times[_WARM_STEPS]) / count
