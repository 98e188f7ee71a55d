"""Samples of wall time: repeated, alternating between competitors, and summarised with spread.

Nothing here judges. On a machine that others use too, the spread is as much a result as the median.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

_MOST_ROUNDS = 10_000


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure: until both minima are reached.

    Attributes:
      repetitions: samples of each competitor, at least.
      seconds: of measuring each competitor, at least.
      sample_seconds: that one sample lasts, at least; quick functions are called several times.
    """

    repetitions: int = 7
    seconds: float = 1.0
    sample_seconds: float = 0.02


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to time.

    Attributes:
      call: does the work once; may return before a device has done it.
      wait: returns when all calls are done.
    """

    call: Callable[[], Any]
    wait: Callable[[], Any] = lambda: None

    def seconds(self, calls: int = 1) -> float:
        """Seconds that `calls` calls in a row take, from an idle device to an idle device."""
        self.wait()
        began = time.perf_counter()
        for _ in range(calls):
            self.call()
        self.wait()
        return time.perf_counter() - began


def alternate(tasks: Mapping[str, Task], effort: Effort) -> dict[str, list[float]]:
    """Times competitors in rounds, A B A B, so that what else the machine does meets all alike.

    Each is called twice first, which compiles it and says how many calls make a sample. With
    rivals, a call that does not count comes before each sample: what the one before has left (a
    cold cache, pages that it gave back to the system) is no part of a loop of steps. It took 4 s of
    system time in place of 0.8 for the first training step after PyTorch's on a virtual machine.

    Returns:
      {name: seconds a call, one a round}; sample i of all names is of one round.
    """
    calls = {}
    for name, task in tasks.items():
        task.seconds()
        calls[name] = max(1, math.ceil(effort.sample_seconds / max(task.seconds(), 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in tasks}
    spent, rounds = 0.0, 0
    while rounds < effort.repetitions or (
        spent < effort.seconds * len(tasks) and rounds < _MOST_ROUNDS
    ):
        for name, task in tasks.items():
            if len(tasks) > 1:
                task.seconds()
            seconds = task.seconds(calls[name])
            samples[name].append(seconds / calls[name])
            spent += seconds
        rounds += 1
    return samples


def measure(task: Task, effort: Effort) -> list[float]:
    """Seconds a call of one task, as `alternate` takes them."""
    return alternate({"": task}, effort)[""]


def once_each(call: Callable[[], Any], repetitions: int) -> list[float]:
    """Seconds of each of some calls without warm-up, for work that is only ever done once."""
    return [Task(call).seconds() for _ in range(repetitions)]


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median with the quartiles and the extremes around it, in the unit of the samples."""

    median: float
    q1: float
    q3: float
    low: float
    high: float
    n: int


def spread(samples: Sequence[float]) -> Spread:
    """Summarises samples; quartiles by linear interpolation.

    Raises:
      ValueError: if there are none.
    """
    if not len(samples):
        raise ValueError("no samples")
    found = np.percentile(np.asarray(samples, float), [0, 25, 50, 75, 100])
    low, q1, median, q3, high = (float(value) for value in found)
    return Spread(median, q1, q3, low, high, n=len(samples))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """How many times as fast ours is, round by round: theirs / ours.

    Taken within rounds: what slowed both down in a round does not move its ratio.

    Raises:
      ValueError: unless both have the same number of samples.
    """
    return [b / a for a, b in zip(ours, theirs, strict=True)]
