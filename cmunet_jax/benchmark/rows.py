"""One row of the result: what was timed, how often, and what follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cmunet_jax.benchmark.cost import Ceilings, Cost
from cmunet_jax.benchmark.memory import Peak
from cmunet_jax.benchmark.timing import Spread, spread


@dataclasses.dataclass(frozen=True)
class Row:
    """A measurement, or the reason why there is none.

    Attributes:
      case: which case of the benchmark it belongs to.
      what: was measured.
      samples: seconds a call; of a ratio or a share, the plain number.
      unit: 's', '×' (times as fast as another) or '%' (a share, of samples in 0..1).
      images: that one call processes; 0: does not apply.
      cost: of one call, where XLA counts it.
      moved: bytes of one call that are no memory traffic (a checkpoint's); 0: does not apply.
      peak: memory meanwhile.
      note: what to know about it.
      error: why it failed, or ''.
    """

    case: str
    what: str
    samples: Sequence[float] = ()
    unit: str = "s"
    images: int = 0
    cost: Cost | None = None
    moved: float = 0.0
    peak: Peak | None = None
    note: str = ""
    error: str = ""

    @property
    def spread(self) -> Spread | None:
        """Of the samples; None where there are none."""
        return spread(self.samples) if len(self.samples) else None

    @property
    def memory(self) -> tuple[float, str] | None:
        """Peak bytes and where they come from: the device, its program, or this process."""
        if self.peak and self.peak.device is not None:
            return self.peak.device, "device"
        if self.cost and self.cost.memory:
            return self.cost.memory, "program"
        return (self.peak.process, "process") if self.peak else None

    def derived(self, ceilings: Ceilings) -> dict[str, float]:
        """Rates at the median: images, FLOP and bytes a second, and the share of the roofline."""
        if not len(self.samples) or self.unit != "s":
            return {}
        seconds = spread(self.samples).median
        found: dict[str, float] = {}
        if self.images:
            found["images_per_second"] = self.images / seconds
        if self.moved:
            found["bytes_per_second"] = self.moved / seconds
        if self.cost:
            arithmetic, traffic = self.cost.limits(ceilings)
            found["flops_per_second"] = self.cost.flops / seconds
            found["bytes_per_second"] = self.cost.bytes / seconds
            found["arithmetic_limit_seconds"] = arithmetic
            found["memory_limit_seconds"] = traffic
            found["roofline_fraction"] = self.cost.roofline_seconds(ceilings) / seconds
        return found

    def to_dict(self, ceilings: Ceilings) -> dict[str, Any]:
        """JSON values, every raw sample included."""
        found = self.spread
        return {
            "case": self.case,
            "what": self.what,
            "unit": self.unit,
            "samples": [float(s) for s in self.samples],
            **(dataclasses.asdict(found) if found else {}),
            **self.derived(ceilings),
            "images": self.images,
            "moved_bytes": self.moved,
            "cost": dataclasses.asdict(self.cost) if self.cost else None,
            "peak_memory": dataclasses.asdict(self.peak) if self.peak else None,
            "note": self.note,
            "error": self.error,
        }
