"""Measures the masks that a user saved, as predict measures those that it makes.

With the probability of the run, so that a curve shows what was corrected and not that it was
measured another way: where the mask is what the probability says, its contour is that of the
prediction, and what was painted counts by its pixels.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.viewer import analysis
from cmunet_jax.viewer.catalogue import ProbabilityMap
from cmunet_jax.viewer.confined import Unreadable

MOST_KEPT = 64
"""Analyses that are kept; one of an angiogram takes a few hundred kilobytes."""

Key = tuple[bytes, tuple[int, ...], tuple[float, float] | None, tuple[bytes, float] | None]
Level = tuple[NDArray[np.float32], float]
"""A probability [H, W] in 0..1 and its threshold."""


def nearest(mask: NDArray[np.uint8], maps: Iterable[ProbabilityMap]) -> Level | None:
    """The probability that a mask [H, W] of 0 and 1 is most like, or None if none can be read.

    That is the one which is on the wrong side of its threshold in the fewest pixels; the first of
    equal ones.
    """
    found: Level | None = None
    least = mask.size + 1
    for one in maps:
        try:
            probability = one.read()
        except (Unreadable, MemoryError):
            continue  # the page says so where it shows that layer
        apart = int(np.count_nonzero((probability > one.threshold) != (mask > 0)))
        if apart < least:
            found, least = (probability, one.threshold), apart
    return found


class Measured:
    """Analyses of masks by their content: a label is measured once, however often it is shown."""

    def __init__(self) -> None:
        # One at a time: a large mask takes seconds and memory, and whoever waits may want the same.
        self._lock = threading.Lock()
        self._known: OrderedDict[Key, dict[str, Any] | Unreadable] = OrderedDict()

    def of(
        self,
        mask: NDArray[np.uint8],
        spacing_mm: tuple[float, float] | None,
        level: Level | None = None,
    ) -> dict[str, Any]:
        """The analysis of a mask, as `analysis.parse` gives that of a file.

        Args:
          mask: [H, W], 0 or 1.
          spacing_mm: between rows and between columns, or None.
          level: as `nearest` gives it; None: the contour is that of the mask's pixels.

        Raises:
          Unreadable: it cannot be measured in a bounded time.
        """
        said = level and (hashlib.sha256(level[0].tobytes()).digest(), level[1])
        key = (hashlib.sha256(mask.tobytes()).digest(), mask.shape, spacing_mm, said)
        with self._lock:
            found = self._known.pop(key, None)
            if found is None:
                found = _measure(mask, spacing_mm, level)
            self._known[key] = found
            while len(self._known) > MOST_KEPT:
                self._known.popitem(last=False)
        if isinstance(found, Unreadable):
            raise Unreadable(str(found))
        return found


def _measure(
    mask: NDArray[np.uint8], spacing_mm: tuple[float, float] | None, level: Level | None
) -> dict[str, Any] | Unreadable:
    from cmunet_jax import qca  # with matplotlib, which would hold up the start

    probability, threshold = (None, 0.5) if level is None else level
    try:
        found = qca.analyse(
            mask > 0, spacing=spacing_mm, probability=probability, threshold=threshold
        )
        return analysis.reduced(qca.to_json(found))
    except qca.TooManySegments as error:
        return Unreadable(str(error))
    except MemoryError:
        return Unreadable("not measured: the mask is too large for the memory")
    except Unreadable as error:
        return error
