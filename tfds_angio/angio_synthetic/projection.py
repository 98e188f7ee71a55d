"""C-arm geometry: perspective projection and the path length of X-rays through tubes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Working projections (primary: LAO positive; secondary: cranial positive; degrees), as in
# Di Mario & Sutaria, Heart 2005.
VIEWS: dict[str, tuple[tuple[float, float], ...]] = {
    "left": (
        (-28.0, -25.0),
        (-2.0, -30.0),
        (45.0, -28.0),
        (-10.0, 36.0),
        (0.0, 40.0),
        (38.0, 27.0),
        (-32.0, 22.0),
        (52.0, 4.0),
    ),
    "right": (
        (45.0, 0.0),
        (-32.0, 0.0),
        (2.0, 28.0),
        (32.0, 22.0),
        (60.0, -3.0),
        (-35.0, 18.0),
    ),
}


@dataclass(frozen=True)
class CArm:
    """An X-ray source and a square detector that turn around the isocentre.

    Attributes:
        primary_deg: angulation, LAO positive, RAO negative.
        secondary_deg: angulation, cranial positive, caudal negative.
        size: pixels along one side of the detector.
        field_mm: side of the field, measured in the plane of the isocentre.
        target: [3] mm, the point of the patient placed into the middle of the picture.
        source_iso_mm: distance from the source to the isocentre.
    """

    primary_deg: float
    secondary_deg: float
    size: int
    field_mm: float
    target: Array
    source_iso_mm: float = 750.0

    @property
    def axes(self) -> tuple[Array, Array, Array]:
        """Unit vectors [3]: right and up in the picture, and from the source to the detector."""
        a, b = np.deg2rad(self.primary_deg), np.deg2rad(self.secondary_deg)
        beam = np.array([np.sin(a) * np.cos(b), -np.cos(a) * np.cos(b), np.sin(b)])
        right = np.array([np.cos(a), np.sin(a), 0.0])
        return right, np.cross(beam, right), beam

    def project(self, points: Array) -> tuple[Array, Array]:
        """Pixel positions [n, 2] (x right, y down) and the pixels per mm [n] at each point."""
        right, up, beam = self.axes
        offset = points - self.target
        scale = self.source_iso_mm / (self.source_iso_mm + offset @ beam)
        scale = scale * self.size / self.field_mm
        middle = (self.size - 1) / 2
        xy = np.stack([middle + offset @ right * scale, middle - offset @ up * scale], axis=-1)
        return xy, scale

    def rays(self, count: int) -> tuple[Array, NDArray[np.float32]]:
        """The source [3] in mm and unit directions [count, count, 3] over the whole field."""
        right, up, beam = self.axes
        x = ((np.arange(count) + 0.5) / count - 0.5) * self.field_mm
        plane = self.source_iso_mm * beam + x[None, :, None] * right - x[:, None, None] * up
        plane /= np.linalg.norm(plane, axis=-1, keepdims=True)
        return self.target - self.source_iso_mm * beam, plane.astype(np.float32)


@dataclass(frozen=True)
class Discs:
    """A tube as a row of discs in the picture.

    A uniform tube of radius r and a chord of it have the same integral as flat discs of radius r
    and height ds set every ds along the centreline: a ray at distance d from the axis crosses
    2 sqrt(r^2 - d^2) / ds of them, hence the exact path length; foreshortened tubes pile up more
    discs per pixel, tubes seen end-on reach their full length, and crossing tubes add up.

    Attributes:
        xy: [n, 2] pixels.
        radius: [n] pixels.
        height: [n] mm of path (or optical depth) that one disc contributes.
    """

    xy: Array
    radius: Array
    height: Array


def tube(carm: CArm, points: Array, radius: Array, weight: Array | float = 1.0) -> Discs:
    """Discs of the tube along a polyline.

    Args:
        carm: the projection.
        points: [n, 3] mm, at most a few mm apart.
        radius: [n] mm.
        weight: scalar or [n], what 1 mm of path counts (1, or an attenuation per mm).
    """
    xy, scale = carm.project(points)
    step = np.linalg.norm(np.diff(points, axis=0), axis=1)
    run = np.concatenate([[0.0], np.cumsum(step)])
    # Spacing: fine against the radius and the pixel, so that the row of discs shows no ripple.
    wanted = np.maximum(0.22 * radius, 0.45 / scale)
    count = np.concatenate([[0.0], np.cumsum(step / (0.5 * (wanted[1:] + wanted[:-1])))])
    discs = max(int(np.ceil(count[-1])), 2)
    at = np.interp((np.arange(discs) + 0.5) * count[-1] / discs, count, run)
    edges = np.interp(np.arange(discs + 1) * count[-1] / discs, count, run)
    w = np.interp(at, run, np.broadcast_to(np.asarray(weight, float), run.shape))
    return Discs(
        np.stack([np.interp(at, run, xy[:, i]) for i in (0, 1)], axis=1),
        np.interp(at, run, radius * scale),
        w * np.diff(edges),
    )


def join(parts: list[Discs]) -> Discs:
    """All discs of several tubes."""
    if not parts:
        return Discs(np.zeros((0, 2)), np.zeros(0), np.zeros(0))
    return Discs(
        np.concatenate([p.xy for p in parts]),
        np.concatenate([p.radius for p in parts]),
        np.concatenate([p.height for p in parts]),
    )


def _stamps(discs: Discs, size: int) -> list[tuple[NDArray[np.intp], Array, Array, NDArray]]:
    """Pixels, edge distance (positive inside) and indices of the discs, by size of the stamp."""
    reach = np.ceil(discs.radius + 1.0).astype(int)
    x, y = discs.xy[:, 0], discs.xy[:, 1]
    seen = (x > -reach) & (x < size - 1 + reach) & (y > -reach) & (y < size - 1 + reach)
    reach = np.where(seen, reach + (reach > 8) * (-reach % 4), 0)  # few sizes: few passes
    out = []
    for r in np.unique(reach[reach > 0]):
        which = np.flatnonzero(reach == r)
        base = np.round(discs.xy[which]).astype(int)
        grid = np.arange(-r, r + 1)
        column = base[:, 0, None] + grid
        row = base[:, 1, None] + grid
        dx = (column - discs.xy[which, 0, None]).astype(np.float32)
        dy = (row - discs.xy[which, 1, None]).astype(np.float32)
        distance = np.sqrt(dx[:, None, :] ** 2 + dy[:, :, None] ** 2)
        inside = discs.radius[which, None, None].astype(np.float32) - distance
        # One spare row and column on each side swallow what falls outside.
        column = np.clip(column, -1, size) + 1
        row = np.clip(row, -1, size) + 1
        pixel = row[:, :, None] * (size + 2) + column[:, None, :]
        out.append((pixel, inside, discs.radius[which], discs.height[which]))
    return out


def path_length(discs: Discs, size: int) -> NDArray[np.float32]:
    """Sum of path lengths [size, size] through all tubes, in the unit of `Discs.height`.

    Edges are antialiased; the mass of each disc (area times height) is kept exactly, so that
    tubes thinner than a pixel fade instead of vanishing.
    """
    total = np.zeros((size + 2) ** 2)
    for pixel, inside, radius, height in _stamps(discs, size):
        cover = np.clip(inside + np.float32(0.5), 0.0, 1.0)
        mass = cover.sum(axis=(1, 2))
        gain = height * np.pi * radius**2 / np.maximum(mass, 1e-6)
        hit = cover > 0
        weights = (cover * gain[:, None, None].astype(np.float32))[hit]
        total += np.bincount(pixel[hit], weights=weights, minlength=total.size)
    return total.reshape(size + 2, size + 2)[1:-1, 1:-1].astype(np.float32)


def silhouette(discs: Discs, size: int) -> NDArray[np.uint8]:
    """The shadow [size, size] of the tubes, 1 inside; heights are ignored.

    Tubes thinner than a pixel keep the width of one pixel.
    """
    shadow = np.zeros((size + 2) ** 2, np.uint8)
    wide = Discs(discs.xy, np.maximum(discs.radius, 0.6), discs.height)
    for pixel, inside, _, _ in _stamps(wide, size):
        shadow[pixel[inside >= 0]] = 1
    return shadow.reshape(size + 2, size + 2)[1:-1, 1:-1].copy()
