"""Synthetic vessels of known diameter: masks of tubes whose centreline and width are formulas.

And probabilities as a network might give them, whose level at the threshold is the same contour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from scipy.spatial import cKDTree

Array = np.ndarray


@dataclass(frozen=True)
class Tube:
    """A vessel with flat ends.

    Attributes:
        points: [K, 2] (row, column) px, about 0.05 px apart.
        position: [K] px along it.
        diameter: [K] px across it.
    """

    points: Array
    position: Array
    diameter: Array

    @property
    def length(self) -> float:
        return float(self.position[-1])

    def half(self) -> Tube:
        """From its middle to its end."""
        at = len(self.points) // 2
        return Tube(self.points[at:], self.position[at:], self.diameter[at:])


def tube(
    *,
    angle: float,
    length: float,
    diameter: Any,
    curvature: float = 0.0,
    middle: tuple[float, float] = (0.0, 0.0),
) -> Tube:
    """A circular arc (straight: `curvature` 0), whose middle has direction `angle`.

    Args:
        angle: rad, from the columns' direction to the rows'.
        length: px.
        diameter: px, or a function of the position [K] in 0..1.
        curvature: 1/radius of the arc, 1/px.
        middle: (row, column) px.
    """
    position = np.linspace(0.0, length, int(length / 0.05) + 1)
    heading = angle + curvature * (position - length / 2)
    step = np.diff(position, prepend=0.0)
    points = np.stack(
        [np.cumsum(np.sin(heading) * step), np.cumsum(np.cos(heading) * step)], axis=1
    )
    points += np.array(middle) - points[len(points) // 2]
    wide = diameter(position / length) if callable(diameter) else np.full(len(points), diameter)
    return Tube(points, position, np.asarray(wide, float))


def narrowing(healthy: Any, *, percent: float, at: float, spread: float) -> Any:
    """A diameter function with a Gaussian stenosis; `spread` is its deviation, in 0..1."""

    def diameter(x: Array) -> Array:
        base = healthy(x) if callable(healthy) else healthy
        return base * (1 - percent / 100 * np.exp(-0.5 * ((x - at) / spread) ** 2))

    return diameter


def taper(first: float, last: float) -> Any:
    """A diameter function from `first` to `last` px."""
    return lambda x: first + (last - first) * x


def draw(*tubes: Tube, shape: tuple[int, int], size: tuple[float, float] = (1.0, 1.0)) -> Array:
    """The mask [H, W]: pixels whose centre is inside any tube.

    Tubes are in the unit of `size`, what a pixel measures along (rows, columns).
    """
    pixels = np.indices(shape).reshape(2, -1).T * np.array(size)
    return (_depth(tubes, pixels, reach=1.0) > 0).reshape(shape)


def _depth(tubes: tuple[Tube, ...], points: Array, *, reach: float) -> Array:
    """How deep (px) points [K, 2] lie inside any tube; below 0 outside, -inf beyond `reach`."""
    deepest = np.full(len(points), -np.inf)
    for t in tubes:
        bound = t.diameter.max() / 2 + reach
        distance, foot = cKDTree(t.points).query(points, distance_upper_bound=bound)
        hit = np.flatnonzero(np.isfinite(distance))
        at, away = foot[hit], distance[hit]
        depth = t.diameter[at] / 2 - away
        # Ends are flat: beyond one the nearest point is the end.
        for end, inner in ((0, 1), (len(t.points) - 1, len(t.points) - 2)):
            out = t.points[end] - t.points[inner]
            ahead = (points[hit] - t.points[end]) @ (out / np.linalg.norm(out))
            beside = np.sqrt(np.maximum(away**2 - ahead**2, 0))
            depth = np.where(at == end, t.diameter[end] / 2 - beside, depth)
            close = np.abs(t.position[at] - t.position[end]) < bound
            depth = np.where(close, np.minimum(depth, -ahead), depth)
        deepest[hit] = np.maximum(deepest[hit], depth)
    return deepest


def coverage(*tubes: Tube, shape: tuple[int, int], coarse: int = 1) -> Array:
    """The share [H, W] of each pixel that lies inside the tubes, by 144 points in it.

    Args:
        tubes: what covers.
        shape: (H, W), multiples of `coarse`.
        coarse: pixels of the squares whose shares they are; enlarged bilinearly.
    """
    small, pixels = _grid(shape, coarse)
    depth = _depth(tubes, pixels, reach=2.0 * coarse)
    share = (depth > 0).astype(np.float32)
    near = np.flatnonzero(np.abs(depth) < coarse)
    # A Fibonacci lattice: no two points share a row, a column or a diagonal of the grid.
    number = np.arange(144)
    offsets = coarse * (np.stack([(number + 0.5) / 144, (89 * number + 0.5) / 144 % 1], 1) - 0.5)
    inside = _depth(tubes, (pixels[near, None] + offsets).reshape(-1, 2), reach=2.0) > 0
    share[near] = inside.reshape(len(near), -1).mean(axis=1)
    return cv2.resize(share.reshape(small), shape[::-1], interpolation=cv2.INTER_LINEAR)


def _grid(shape: tuple[int, int], coarse: int) -> tuple[tuple[int, int], Array]:
    """Shape of a grid of squares of `coarse` pixels, and the centres [K, 2] of the squares (px)."""
    small = (shape[0] // coarse, shape[1] // coarse)
    return small, np.indices(small).reshape(2, -1).T * coarse + (coarse - 1) / 2


def sigmoid(
    *tubes: Tube, shape: tuple[int, int], rise: float, threshold: float = 0.5, coarse: int = 1
) -> Array:
    """A probability [H, W] as of a network: logits that fall off evenly across the contour.

    Args:
        tubes: whose contour is at `threshold`.
        shape: (H, W), multiples of `coarse`.
        rise: px from a probability of 0.1 to one of 0.9.
        threshold: in 0..1.
        coarse: pixels of a pixel of the network, whose logits are enlarged bilinearly.
    """
    small, pixels = _grid(shape, coarse)
    depth = np.maximum(_depth(tubes, pixels, reach=16.0), -16.0)
    logits = (2 * np.log(9) / rise * depth).reshape(small).astype(np.float32)
    logits = cv2.resize(logits, shape[::-1], interpolation=cv2.INTER_LINEAR)
    return 1 / (1 + np.exp(-logits) * np.float32((1 - threshold) / threshold))


def truth(t: Tube, points: Array) -> tuple[Array, Array]:
    """True diameter [K] at the points of the tube nearest to `points`, and the distance [K]."""
    distance, foot = cKDTree(t.points).query(points)
    return t.diameter[foot], distance
