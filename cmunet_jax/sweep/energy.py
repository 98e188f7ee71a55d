"""Energy of a trial, where the machine can tell: NVIDIA's power readings, or Intel's RAPL.

Both count the whole device or the whole processor, so two runners on one machine count twice what
they share. None where neither can be read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")


class Meter:
    """Adds up joules between calls of `sample`; call it every few seconds."""

    def __init__(self, powercap: Path = _POWERCAP, smi: str | None = None):
        """Looks for what can be read: `powercap` is RAPL's folder, `smi` a nvidia-smi to ask."""
        self._smi = smi or shutil.which("nvidia-smi")
        # Packages only: their cores and memory are counted within.
        self._packages = [p for p in powercap.glob("intel-rapl:*") if p.name.count(":") == 1]
        self.joules: float | None = 0.0
        self._time = time.monotonic()
        self._counters = self._read_packages()
        self._watts = self._read_watts()
        if self._counters is None and self._watts is None:
            self.joules = None

    def sample(self) -> float | None:
        """Returns joules since the start (None if unknown)."""
        if self.joules is None:
            return None
        now = time.monotonic()
        if self._watts is not None:
            watts = self._read_watts()
            if watts is not None:
                self.joules += (watts + self._watts) / 2 * (now - self._time)
                self._watts = watts
        if self._counters is not None:
            counters = self._read_packages()
            if counters is not None:
                for before, after, wraps_at in zip(self._counters, counters, self._ranges()):
                    self.joules += ((after - before) % wraps_at) * 1e-6
                self._counters = counters
        self._time = now
        return self.joules

    def _read_packages(self) -> list[int] | None:
        """Microjoules of each package, None where they cannot be read (often: not by users)."""
        try:
            return [int((p / "energy_uj").read_text()) for p in self._packages] or None
        except (OSError, ValueError):
            return None

    def _ranges(self) -> list[int]:
        try:
            return [int((p / "max_energy_range_uj").read_text()) + 1 for p in self._packages]
        except (OSError, ValueError):
            return [2**62] * len(self._packages)

    def _read_watts(self) -> float | None:
        """Power of the devices that JAX may use, now."""
        if not self._smi:
            return None
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        command = [self._smi, "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
        command += ["-i", visible] if visible else []
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            return sum(float(line) for line in done.stdout.split()) or None
        except (OSError, ValueError, subprocess.SubprocessError):
            return None
