"""The most memory that something took, where the machine can tell."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import psutil

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclasses.dataclass
class Peak:
    """Filled when the watched block ends, in bytes.

    Attributes:
      process: the most resident memory of this process meanwhile (Linux), or what it has at the
        end, where that cannot be reset.
      device: the most on the first device, where the block raised it; else None, because the
        device's counter is of the whole process.
    """

    process: float = 0.0
    device: float | None = None


@contextlib.contextmanager
def watch() -> Iterator[Peak]:
    """Records the peaks of a block."""
    peak, before = Peak(), device_peak()
    resettable = _reset()
    try:
        yield peak
    finally:
        peak.process = (_high_water() if resettable else None) or float(
            psutil.Process().memory_info().rss
        )
        after = device_peak()
        if after is not None and (before is None or after > before):
            peak.device = after


def device_peak() -> float | None:
    """Most bytes in use on the first device since the process began; None where unknown."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return float(stats["peak_bytes_in_use"]) if "peak_bytes_in_use" in stats else None


def _reset() -> bool:
    """Sets the kernel's high-water mark to what is resident now; False where that is impossible."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _high_water() -> float | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024.0 * int(line.split()[1])
    return None
