"""Ordered, bounded-memory map over a pool of processes, with a progress bar."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from multiprocessing import connection
from typing import TypeVar

import cv2
from tqdm import auto as tqdm_auto

from tfds_angio.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_TASKS_IN_FLIGHT_PER_WORKER = 4


def default_workers() -> int:
    """Number of processors this process may use (cgroup affinity included where known)."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def end_with_parent() -> None:
    """Has a worker process end when its parent is gone; called in the worker.

    A worker blocked on a queue does not notice that the parent was killed, because it holds the
    other end of the pipe itself; without this it would stay for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _start_worker() -> None:
    """Prepares a worker of ours."""
    cv2.setNumThreads(1)  # the processes already fill the processors
    end_with_parent()


def _progress(iterator: Iterator[Result], total: int, show: bool, label: str) -> Iterator[Result]:
    bar = tqdm_auto.tqdm(total=total, desc=label, disable=not show, mininterval=0.5, unit="item")
    with bar:
        for result in iterator:
            bar.update()
            yield result


def _pool_map(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    # spawn: the parent may already run JAX or OpenCV threads, which do not survive a fork.
    pool = futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    remaining = iter(items)
    waiting: collections.deque[futures.Future[Result]] = collections.deque()
    try:
        for item in itertools.islice(remaining, workers * _TASKS_IN_FLIGHT_PER_WORKER):
            waiting.append(pool.submit(function, item))
        while waiting:
            result = waiting.popleft().result()
            for item in itertools.islice(remaining, 1):
                waiting.append(pool.submit(function, item))
            yield result
    except futures.process.BrokenProcessPool as error:
        raise UserError(
            "a worker process died (most often: out of memory, or a script without "
            "`if __name__ == '__main__':`); do without worker processes: "
            "--workers 1 when building a data set, --config.data.workers=1 in a run"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    progress: bool = True,
    label: str = "",
) -> Iterator[Result]:
    """Yields `function(item)` for every item, in the order of `items`.

    Results do not depend on the number of workers. At most a few tasks per worker are in flight,
    so a long input does not fill the memory.

    Args:
      function: picklable (a module-level function or a `functools.partial` of one).
      items: picklable arguments.
      workers: processes; None for all processors, 0 or 1 for none (run here).
      progress: whether to draw a progress bar.
      label: what the bar says.

    Raises:
      UserError: a worker process died.
      Exception: whatever `function` raises.
    """
    workers = min(default_workers() if workers is None else workers, len(items))
    if workers <= 1:
        results: Iterator[Result] = map(function, items)
    else:
        results = _pool_map(function, items, workers)
    return _progress(results, len(items), progress, label)
