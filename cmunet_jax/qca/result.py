"""What is chosen for an analysis, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tfds_angio.errors import UserError

Floats = NDArray[np.float64]
Contour = Literal["mask", "probability"]
# Blur and mean. A contour between pixels has few steps to take off, and a short stenosis is
# measured the better the less is averaged (docs/qca.md).
_SMOOTHING: dict[Contour, tuple[float, float]] = {"mask": (1.0, 1.5), "probability": (0.7, 0.75)}


@dataclass(frozen=True)
class Options:
    """What can be chosen; lengths in px of the mask.

    Attributes:
        blur: deviation of the Gaussian that takes the steps off the mask, > 0; None: 1, and 0.7
            where a probability says where the contour runs between them.
        bandwidth: over which the centreline is smoothed, > 0.
        mean: deviation of the Gaussian mean of the diameter along the centreline, ≥ 0; None: 1.5,
            and 0.75 with a probability.
        spur: branches shorter than this many radii of the vessel that they leave are taken off.
        least_diameter: of the reference, under which no stenosis is given: half a pixel, the error
            of a diameter, would be more than an eighth of it.
        least_length: of the measured part of a segment, in its median diameters, under which no
            stenosis is given (one to be narrowed and one on either side), and under which its
            least diameter is not that of the mask: a speck is no vessel.
    """

    blur: float | None = None
    bandwidth: float = 4.0
    mean: float | None = None
    spur: float = 2.0
    least_diameter: float = 4.0
    least_length: float = 3.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None and name in ("blur", "mean"):
                continue
            least = name in ("mean", "spur", "least_diameter", "least_length")
            if not (np.isfinite(value) and (value >= 0 if least else value > 0)):
                bound = "0 or more" if least else "above 0"
                raise UserError(f"qca option {name} is {value}: give a number {bound}")

    def smoothing(self, contour: Contour) -> tuple[float, float]:
        """`blur` and `mean` for a contour."""
        blur, mean = _SMOOTHING[contour]
        return blur if self.blur is None else self.blur, mean if self.mean is None else self.mean


@dataclass(frozen=True)
class Segment:
    """A vessel between two bifurcations or ends; arrays run along it, NaN is 'not measured'.

    Attributes:
        id: from 1.
        points: [K, 2] (row, column) px of the centreline.
        position_px: [K] along it, from 0.
        diameter_px: [K] along the normal; NaN near ends and bifurcations, where another vessel
            or the image's border lies beside, and under 1.3 px, which a mask does not resolve.
        reference_px: [K] diameter of the vessel without narrowing; NaN where there is none.
        position_mm: as above, in mm; None without spacing.
        diameter_mm: along the normal in mm.
        reference_mm: in mm.
        minimal_at: index of the least diameter; None where none was measured.
        stenosis_at: index of the greatest narrowing against the reference, which in a tapering
            vessel need not be the least diameter; None where there is no reference.
        percent_diameter_stenosis: at `stenosis_at`.
        why_no_stenosis: in words where there is none.
    """

    id: int
    points: Floats
    position_px: Floats
    diameter_px: Floats
    reference_px: Floats
    position_mm: Floats | None
    diameter_mm: Floats | None
    reference_mm: Floats | None
    minimal_at: int | None
    stenosis_at: int | None
    percent_diameter_stenosis: float | None
    why_no_stenosis: str | None


@dataclass(frozen=True)
class Analysis:
    """All segments of a mask.

    Attributes:
        shape: (H, W) of the mask.
        spacing_mm: (rows, columns), or None.
        bifurcations: [N, 2] (row, column) px.
        segments: of all components, the longest first.
        ignored: components too short for their width, or too wide, to be a vessel.
        contour: what says where the contour runs within the pixels of the mask's border.
        minimal: id of the segment with the least diameter of those whose measured part is
            `Options.least_length` diameters long; None where there is none.
    """

    shape: tuple[int, int]
    spacing_mm: tuple[float, float] | None
    bifurcations: Floats
    segments: tuple[Segment, ...]
    ignored: int
    contour: Contour = "mask"
    minimal: int | None = None
