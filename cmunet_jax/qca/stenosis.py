"""Percent diameter stenosis against a reference that the healthy parts of a segment give.

The reference is the 'computer calculated reference' of DICOM PS3.17 T.4.1: a line through the
diameters outside the narrowed part, whose borders are found by the computer; at the narrowest
place it is an interpolated one (T.4.2). A straight line, since a segment between two bifurcations
tapers evenly and loses no branch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.stats import theilslopes

Floats = NDArray[np.float64]
# A place is narrowed where it falls below the line by this many robust deviations of the healthy
# diameters, and by at least this share of the line.
_DEVIATIONS, _SHARE = 3.0, 0.1
_BORDER = 0.03  # share of the line within which a narrowing is over
_HEALTHY = 0.3  # least share of the measured points that the line rests on
_FEWEST = 2  # points through which a line goes
_LEVEL = 0.9  # of the first line, which shall run along the healthy diameters, not the mean
# No artery's line, so no reference (docs/qca.md, "What a reference cannot be"): one that changes by
# more than this share of a diameter per diameter of length,
_TAPER = 0.1
# or that lies, by more than `_SHARE`, above all that was measured within this many diameters.
_NEARBY = 10.0
_MOST = 200  # points of a fit: the Theil-Sen line takes all pairs


class Stenosis(NamedTuple):
    """The result of one segment.

    Attributes:
        reference: [K], NaN outside the measured part and where there is none.
        at: index of the greatest narrowing against the reference.
        percent: of the diameter lost there, or None.
        why_not: reason in words where `percent` is None.
    """

    reference: Floats
    at: int | None
    percent: float | None
    why_not: str | None


def none(count: int, why: str) -> Stenosis:
    """No stenosis can be given of `count` points."""
    return Stenosis(np.full(count, np.nan), None, None, why)


def stenosis(position: Floats, diameter: Floats) -> Stenosis:
    """Fits the reference and finds the greatest narrowing.

    Args:
        position: [K] along the segment, increasing.
        diameter: [K] in the same unit, NaN where none was measured; some are.

    Returns:
        Without a percentage where the healthy part does not carry a line (too few of the measured
        points, or none on one side of the narrowing), or one that no artery follows.
    """
    known = np.flatnonzero(np.isfinite(diameter))
    x, d = position[known], diameter[known]
    if len(d) < _FEWEST:
        return none(len(diameter), "a single point was measured: no reference")
    line, narrowed = _reference(x, d)
    if np.count_nonzero(~narrowed) < _FEWEST:
        return none(len(diameter), "fewer than two measured points are healthy: no reference")
    if np.count_nonzero(~narrowed) < _HEALTHY * len(d):
        why = f"less than {100 * _HEALTHY:.0f} % of the measured part is healthy: no reference"
        return none(len(diameter), why)
    if line.min() <= 0:
        return none(len(diameter), "the diameters do not follow a line: no reference")
    loss = 1 - d / line
    worst = int(np.argmax(loss))
    run = label(narrowed)[0]
    if narrowed[worst]:
        inside = np.flatnonzero(run == run[worst])
        healthy, beside = np.flatnonzero(~narrowed), line[worst] / 2
        before = healthy[healthy < inside[0]]
        after = healthy[healthy > inside[-1]]
        if any(not len(s) or np.ptp(x[s]) < beside for s in (before, after)):
            return none(
                len(diameter),
                "the narrowing reaches the end of the measured part: no reference on that side",
            )
    impossible = _impossible(x, d, line)
    if impossible is not None:
        return none(len(diameter), impossible)
    reference = np.full(len(diameter), np.nan)
    span = slice(known[0], known[-1] + 1)
    reference[span] = np.interp(position[span], x, line)
    return Stenosis(reference, int(known[worst]), 100 * float(loss[worst]), None)


def _impossible(x: Floats, d: Floats, line: Floats) -> str | None:
    """Why a line [K] above 0 through diameters d [K] at x [K] is no artery's, or None if it may be.

    In which direction the blood flows is not known: both slopes have the same bound.
    """
    if abs(line[-1] - line[0]) > _TAPER * (x[-1] - x[0]):
        return (
            f"the reference would change by over {100 * _TAPER:.0f} % of a diameter per diameter "
            "of length, as no artery does: no reference"
        )
    first = np.searchsorted(x, x - _NEARBY * line)
    last = np.searchsorted(x, x + _NEARBY * line, side="right")
    widest = np.array([d[i:j].max() for i, j in zip(first.tolist(), last.tolist())])
    if (line > (1 + _SHARE) * widest).any():
        return (
            f"the reference would be over {100 * _SHARE:.0f} % wider than all that was measured "
            f"within {_NEARBY:.0f} diameters: no reference"
        )
    return None


def _reference(x: Floats, d: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """The healthy line [K] through diameters d [K], and which of them are narrowed.

    Robust line, narrowed parts, line through the others, and so on until nothing changes.
    """
    line = _upper_line(x, d)
    narrowed = d < (1 - _SHARE) * line
    for _ in range(10):
        healthy = np.flatnonzero(~narrowed)
        if len(healthy) < max(_HEALTHY * len(d), _FEWEST):
            break
        some = healthy[:: len(healthy) // _MOST + 1]
        # "joint": the median of d - slope * x. The other is median(d) - slope * median(x), which is
        # too low where the vessel is narrowed at its middle.
        slope, height, *_ends = theilslopes(d[some], x[some], method="joint")
        line = height + slope * x
        residual = d - line
        spread = 1.4826 * float(np.median(np.abs(residual[healthy])))
        deep = residual < -np.maximum(_DEVIATIONS * spread, _SHARE * line)
        # A narrowing begins and ends where the diameter comes back to the line.
        runs = label(residual < -np.maximum(spread, _BORDER * line))[0]
        now = np.isin(runs, np.unique(runs[deep])) & (runs > 0)
        if (now == narrowed).all():
            break
        narrowed = now
    return line, narrowed


def _upper_line(x: Floats, d: Floats) -> Floats:
    """The line [K] of an expectile (Newey & Powell 1987): what lies above weighs more."""
    weight = np.ones(len(d))
    line = d
    for _ in range(20):
        slope, height = np.polyfit(x, d, 1, w=np.sqrt(weight))
        line = height + slope * x
        new = np.where(d > line, _LEVEL, 1 - _LEVEL)
        if (new == weight).all():
            break
        weight = new
    return line
