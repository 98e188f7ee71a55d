"""The best-filled frame of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")


def evidence(probability: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """How much artery a frame shows: the sum of the probability [H, W] over the mask, in pixels."""
    return float(probability[mask].sum(dtype=np.float64))


def best_filled(items: Iterable[Item], measure: Callable[[Item], float]) -> Item:
    """Picks the frame of a run in which most artery is filled with contrast.

    The rule: of each frame the evidence is its probability mass inside its final mask
    (`evidence`). The evidence is smoothed over the neighbours in time with the weights 1/4, 1/2,
    1/4 (the first and last frame stand for the neighbour that they lack), so that a single frame in
    which noise, a moving catheter or the diaphragm passes for artery does not win. The frame with
    the largest smoothed evidence is taken, of equal ones the first.

    No more than three items are held at a time, so that a run of any length streams.

    Args:
      items: the frames of one run in order, at least one.
      measure: evidence of a frame.

    Raises:
      ValueError: there is no frame.
    """
    best: tuple[float, Item] | None = None
    held: list[tuple[float, Item]] = []  # the frame before, and the one that is judged next

    def judge(before: float, at: tuple[float, Item], after: float) -> None:
        nonlocal best
        smooth = (before + 2 * at[0] + after) / 4
        if best is None or smooth > best[0]:
            best = (smooth, at[1])

    for item in items:
        held.append((measure(item), item))
        if len(held) == 2:
            judge(held[0][0], held[0], held[1][0])
        elif len(held) == 3:
            judge(held[0][0], held[1], held[2][0])
            del held[0]
    if not held:
        raise ValueError("a run without frames")
    last = held[-1]
    judge(held[-2][0] if len(held) > 1 else last[0], last, last[0])
    if best is None:
        raise ValueError("a run without frames")
    return best[1]
