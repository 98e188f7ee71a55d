"""Smooth sub-pixel centrelines, and the diameter across them.

A mask is first blurred a little: the level 0.5 of the blurred mask runs through the steps of the
pixel grid, and its place does not shift for a straight edge (of a vessel wider than twice the
blur; for a bent one both contours move the same way). The diameter at a point of the centreline is
the distance between the two contours along the normal, as in QCA (Reiber et al. 1985); no half
pixel is lost or won at the border, as it is with a distance transform of the binary mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solveh_banded
from scipy.ndimage import gaussian_filter1d, map_coordinates

Floats = NDArray[np.float64]
Field = NDArray[np.float32]
_PROBE = 0.5  # px between samples along a normal; the field is smooth, crossings are interpolated


@dataclass(frozen=True)
class Curve:
    """A centreline, sampled evenly.

    Attributes:
        points: [K, 2] (row, column) px.
        normals: [K, 2] unit vectors across it.
        position: [K] px along it, from 0.
    """

    points: Floats
    normals: Floats
    position: Floats


def soften(inside: NDArray, blur: float) -> Field:
    """A mask, or shares of pixels, [H, W] in 0..1, blurred by a Gaussian of `blur` px.

    Outside is background.
    """
    return np.asarray(
        cv2.GaussianBlur(inside.astype(np.float32), (0, 0), blur, borderType=cv2.BORDER_CONSTANT),
        np.float32,
    )


def sample(field: NDArray, points: Floats) -> Floats:
    """Values [...] of a picture at points [..., 2], bilinear, 0 outside."""
    at = np.moveaxis(points, -1, 0)
    return map_coordinates(field, at, output=np.float64, order=1, mode="constant")


def smooth(points: Floats, *, bandwidth: float, closed: bool = False) -> Curve:
    """A smoothing spline through points [K, 2], sampled every pixel or a little less.

    The points are put at even distances, where the spline is the line of least squares with a
    penalty on its second differences (Whittaker 1923; Eilers 2003): one banded system.

    Args:
        points: K ≥ 2.
        bandwidth: px over which it averages: the penalty is its fourth power (Silverman 1984, the
            equivalent kernel of a smoothing spline), which leaves slow bends where they are.
        closed: whether the last point is the first again.
    """
    along = run(points)
    length = along[-1]
    if closed:  # a ring that is averaged over its whole length would shrink to a point
        bandwidth = min(bandwidth, length / 8)
    count = max(int(round(length)), 1) + 1
    even = np.linspace(0.0, length, count)
    line = np.stack([np.interp(even, along, points[:, i]) for i in (0, 1)], axis=1)
    wrap = min(int(6 * bandwidth) + 1, count - 1) if closed else 0
    if closed:  # the seam is an inner point of a line that runs on
        line = np.concatenate([line[-1 - wrap : -1], line, line[1 : wrap + 1]])
    line = _whittaker(line, (bandwidth * (count - 1) / max(length, 1e-9)) ** 4)
    return resample(line[wrap : wrap + count])


def _whittaker(line: Floats, penalty: float) -> Floats:
    """The line [K, 2] with least squares plus `penalty` times its squared second differences."""
    if len(line) < 3:
        return line
    bands = np.zeros((3, len(line)))  # of I + penalty D'D, the diagonal last
    for offset, weight in enumerate((1.0, -2.0, 1.0)):
        bands[2, offset : len(line) - 2 + offset] += penalty * weight**2
    bands[1, 1:-1] += -2 * penalty
    bands[1, 2:] += -2 * penalty
    bands[0, 2:] = penalty
    bands[2] += 1.0
    return solveh_banded(bands, line)


def resample(line: Floats) -> Curve:
    """The curve through points [K, 2] with even steps of at most 1 px, and its normals."""
    along = run(line)
    even = np.linspace(0.0, along[-1], max(int(np.ceil(along[-1])), 1) + 1)
    points = np.stack([np.interp(even, along, line[:, i]) for i in (0, 1)], axis=1)
    return Curve(points, normals_of(points), run(points))


def run(points: Floats) -> Floats:
    """Distance [K] from the first point along the line through points [K, 2], in their unit."""
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def normals_of(points: Floats) -> Floats:
    """Unit vectors [K, 2] across the curve through points [K, 2], in the points' own space."""
    tangent = np.gradient(points, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    return tangent[:, ::-1] * (-1.0, 1.0)


def half_widths(
    field: Field, points: Floats, normals: Floats, *, reach: float, size: Floats | None = None
) -> Floats:
    """Distances [K, 2] from points to the contour against and along their normals; NaN: none.

    Args:
        field: `soften(mask)`.
        points: [K, 2] px.
        normals: [K, 2], of unit length in the space that `size` leads to.
        reach: how far to look, in that space.
        size: [2] of a pixel (rows, columns) in that space; None: pixels.
    """
    unit = np.ones(2) if size is None else size
    step = _PROBE * float(unit.min())
    offsets = np.arange(0.0, reach + step, step)
    ways = np.stack([-normals, normals], axis=1) / unit
    profile = sample(field, points[:, None, None] + ways[:, :, None] * offsets[:, None])
    outside = profile < 0.5
    first = np.argmax(outside, axis=-1)
    found = outside.any(axis=-1) & (first > 0)
    before = np.maximum(first - 1, 0)
    inner, outer = (np.take_along_axis(profile, i[..., None], -1)[..., 0] for i in (before, first))
    part = (inner - 0.5) / np.maximum(inner - outer, 1e-9)
    return np.where(found, (before + part) * step, np.nan)


def along_mean(values: Floats, samples: float) -> Floats:
    """Gaussian mean along the curve over `samples` of its points; NaN takes no part and stays."""
    known = np.isfinite(values)
    if not known.any() or samples <= 0:
        return values
    weight = gaussian_filter1d(known.astype(float), samples, mode="nearest")
    total = gaussian_filter1d(np.where(known, values, 0.0), samples, mode="nearest")
    return np.where(known, total / np.maximum(weight, 1e-9), np.nan)
