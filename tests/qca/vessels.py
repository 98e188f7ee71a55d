"""Synthetic vessels of known diameter: masks of tubes whose centreline and width are formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    mask = np.zeros(shape, bool)
    index = np.argwhere(~mask)
    pixels = index * np.array(size)
    for t in tubes:
        near = cKDTree(t.points)
        distance, foot = near.query(pixels, distance_upper_bound=t.diameter.max() / 2 + 1)
        hit = np.isfinite(distance)
        at = foot[hit]
        inside = distance[hit] < t.diameter[at] / 2
        # Beyond the ends the nearest point is the end: only what lies beside it belongs.
        for end, inner in ((0, 1), (len(t.points) - 1, len(t.points) - 2)):
            out = t.points[end] - t.points[inner]
            inside &= (at != end) | ((pixels[hit] - t.points[end]) @ out <= 0)
        mask[tuple(index[hit][inside].T)] = True
    return mask


def truth(t: Tube, points: Array) -> tuple[Array, Array]:
    """True diameter [K] at the points of the tube nearest to `points`, and the distance [K]."""
    distance, foot = cKDTree(t.points).query(points)
    return t.diameter[foot], distance
