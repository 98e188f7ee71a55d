"""How much work a program is, by XLA's own count, and how fast a machine could do it.

Two programs are counted. *Arithmetic* is that of the program as it is written with the textbook
layers, before compilation: one number for every form of the layers that XLA is given, and one that
a loop in a quicker form cannot hide (XLA counts the body of a loop once). *Bytes* are those of the
compiled program: what its fusions read and write, each operand once. Caches may serve some of them
without memory, so a program can be faster than its bytes allow.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What the machine can do, measured: of all devices together.

    Attributes:
      flops_per_second: of a large matrix product, by dtype.
      bytes_per_second: of a stream through memory.
    """

    flops_per_second: dict[str, float]
    bytes_per_second: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """The work of one call.

    Attributes:
      flops: of the textbook program (a multiplication and an addition are two); those that only
        padding would need are not counted.
      bytes: read and written by the compiled program, on all devices.
      flops_compiled: of the compiled program, by XLA's count of it.
      memory: arguments, results and temporaries of the compiled program, on one device.
      dtype: of the computation.
    """

    flops: float
    bytes: float
    flops_compiled: float
    memory: float
    dtype: str = "float32"

    def limits(self, ceilings: Ceilings) -> tuple[float, float]:
        """Seconds that the arithmetic and that the memory traffic need at the ceilings."""
        return (
            self.flops / ceilings.flops_per_second[self.dtype],
            self.bytes / ceilings.bytes_per_second,
        )

    def roofline_seconds(self, ceilings: Ceilings) -> float:
        """The least time of a call by the roofline model (Williams et al., 2009)."""
        return max(self.limits(ceilings))

    @property
    def hidden(self) -> bool:
        """Whether XLA does not see most of the arithmetic in what it compiled.

        Then loops or library calls do it, whose bytes are not all counted either.
        """
        return self.flops_compiled < 0.5 * self.flops


def count(compiled: Any, *, textbook: Any = None, dtype: str = "float32") -> Cost:
    """Counts the work of a compiled program.

    Args:
      compiled: of `jax.jit(...).lower(...).compile()`.
      textbook: the lowered program with the textbook layers; None: what was compiled is counted.
      dtype: of the computation.
    """
    analysis = compiled.cost_analysis() or {}
    devices = jax.device_count()
    flops_compiled = float(analysis.get("flops", 0.0)) * devices
    flops = flops_compiled
    if textbook is not None:
        flops = float((textbook.cost_analysis() or {}).get("flops", 0.0))
    return Cost(
        flops=flops,
        bytes=float(analysis.get("bytes accessed", 0.0)) * devices,
        flops_compiled=flops_compiled,
        memory=program_memory(compiled),
        dtype=dtype,
    )


def program_memory(compiled: Any) -> float:
    """Bytes on one device while the program runs: arguments, results, temporaries; 0 if unknown."""
    found = compiled.memory_analysis()
    if found is None:
        return 0.0
    # Donated arguments become results, and are there once.
    return float(
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - found.alias_size_in_bytes
    )
