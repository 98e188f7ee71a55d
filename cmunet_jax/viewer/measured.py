"""Measures the masks that a user saved, as predict measures those that it makes."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.viewer import analysis
from cmunet_jax.viewer.confined import Unreadable

MOST_KEPT = 64
"""Analyses that are kept; one of an angiogram takes a few hundred kilobytes."""

Key = tuple[bytes, tuple[int, ...], tuple[float, float] | None]


class Measured:
    """Analyses of masks by their content: a label is measured once, however often it is shown."""

    def __init__(self) -> None:
        # One at a time: a large mask takes seconds and memory, and whoever waits may want the same.
        self._lock = threading.Lock()
        self._known: OrderedDict[Key, dict[str, Any] | Unreadable] = OrderedDict()

    def of(self, mask: NDArray[np.uint8], spacing_mm: tuple[float, float] | None) -> dict[str, Any]:
        """The analysis of a mask, as `analysis.parse` gives that of a file.

        Args:
          mask: [H, W], 0 or 1.
          spacing_mm: between rows and between columns, or None.

        Raises:
          Unreadable: it cannot be measured in a bounded time.
        """
        key = (hashlib.sha256(mask.tobytes()).digest(), mask.shape, spacing_mm)
        with self._lock:
            found = self._known.pop(key, None)
            if found is None:
                found = _measure(mask, spacing_mm)
            self._known[key] = found
            while len(self._known) > MOST_KEPT:
                self._known.popitem(last=False)
        if isinstance(found, Unreadable):
            raise Unreadable(str(found))
        return found


def _measure(
    mask: NDArray[np.uint8], spacing_mm: tuple[float, float] | None
) -> dict[str, Any] | Unreadable:
    from cmunet_jax import qca  # with matplotlib, which would hold up the start

    try:
        return analysis.reduced(qca.to_json(qca.analyse(mask > 0, spacing=spacing_mm)))
    except qca.TooManySegments as error:
        return Unreadable(str(error))
    except MemoryError:
        return Unreadable("not measured: the mask is too large for the memory")
    except Unreadable as error:
        return error
