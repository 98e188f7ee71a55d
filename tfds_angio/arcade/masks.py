"""From polygons to the map of segments and the vessel mask."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from skimage import draw


def fill_polygon(xy: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bool [H, W]: pixels whose centre lies inside the polygon.

    COCO coordinates are continuous: pixel (i, j) covers [j, j + 1) × [i, i + 1). The filled area is
    then unbiased; `cv2.fillPoly` on truncated coordinates, as often used with ARCADE, also fills
    the boundary and makes the vessels 10 % larger (README.md), which a diameter metric would see.
    """
    mask = np.zeros(shape, bool)
    rows, columns = draw.polygon(xy[:, 1] - 0.5, xy[:, 0] - 0.5, shape)
    mask[rows, columns] = True
    return mask


def rasterise(
    polygons: Sequence[tuple[int, np.ndarray]], shape: tuple[int, int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Segments as a map and one by one.

    Returns:
      uint8 [H, W]: class of each pixel, 0 outside; where two overlap, the smaller one shows.
      list of bool [H, W], one a polygon, the largest first.
    """
    areas = sorted(
        ((fill_polygon(xy, shape), label) for label, xy in polygons), key=lambda a: -a[0].sum()
    )
    segments = np.zeros(shape, np.uint8)
    for area, label in areas:
        segments[area] = label
    return segments, [area for area, _ in areas]


def close_gaps(segments: np.ndarray, areas: Sequence[np.ndarray], *, radius: int) -> np.ndarray:
    """Fills hairline gaps between neighbouring segments; the vessels do not get thicker.

    A pixel is filled when it is within `radius` of two different segments and inside the
    morphological closing of their union by the same disk. It takes the class of the nearest
    segment pixel.

    Args:
      segments: uint8 [H, W].
      areas: bool [H, W] each, from `rasterise`.
      radius: in pixels; 0 leaves the map as it is.

    Returns:
      uint8 [H, W].
    """
    if radius <= 0 or len(areas) < 2:
        return segments
    size = 2 * radius + 1
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    near = np.zeros(segments.shape, np.uint8)
    for area in areas:
        near += cv2.dilate(area.astype(np.uint8), disk) > 0
    union = (segments > 0).astype(np.uint8)
    closed = cv2.morphologyEx(union, cv2.MORPH_CLOSE, disk)
    gap = (closed > 0) & (union == 0) & (near >= 2)
    if not gap.any():
        return segments
    _, nearest = cv2.distanceTransformWithLabels(
        1 - union, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    label_of = np.zeros(int(nearest.max()) + 1, np.uint8)
    label_of[nearest[union > 0]] = segments[union > 0]
    return np.where(gap, label_of[nearest], segments)


def segment_map(
    polygons: Sequence[tuple[int, np.ndarray]], shape: tuple[int, int], *, gap_radius: int
) -> np.ndarray:
    """uint8 [H, W] classes 1…25 with closed gaps; the vessel mask is where it is not 0."""
    segments, areas = rasterise(polygons, shape)
    return close_gaps(segments, areas, radius=gap_radius)
