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


def _between_segments(added: np.ndarray, areas: Sequence[np.ndarray]) -> np.ndarray:
    """The connected parts of `added` (bool [H, W]) that are next to two or more segments."""
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(
        added.astype(np.uint8), connectivity=8
    )
    kept = np.zeros_like(added)
    for number in range(1, count):
        left, top, width, height = boxes[number, :4]
        window = np.s_[max(top - 1, 0) : top + height + 1, max(left - 1, 0) : left + width + 1]
        part = labels[window] == number
        rim = cv2.dilate(part.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        if sum(bool((area[window] & rim).any()) for area in areas) >= 2:
            kept[window] |= part
    return kept


def close_gaps(segments: np.ndarray, areas: Sequence[np.ndarray], *, radius: int) -> np.ndarray:
    """Fills hairline gaps between neighbouring segments; the vessels do not get thicker.

    What a morphological closing by a disk adds to the union of the segments is filled where it is
    connected to two or more segments, and left out where it only smooths the rim of one. A filled
    pixel takes the class of the nearest segment pixel.

    Args:
      segments: uint8 [H, W].
      areas: bool [H, W] each, from `rasterise`.
      radius: of the disk, in pixels: gaps up to twice as wide close; 0 leaves the map as it is.

    Returns:
      uint8 [H, W].
    """
    if radius <= 0 or len(areas) < 2:
        return segments
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    union = np.pad((segments > 0).astype(np.uint8), 2 * radius)  # the image border is no vessel
    closed = cv2.morphologyEx(union, cv2.MORPH_CLOSE, disk)
    inside = np.s_[2 * radius : -2 * radius, 2 * radius : -2 * radius]
    added = (closed[inside] > 0) & (segments == 0)
    gaps = _between_segments(added, areas)
    if not gaps.any():
        return segments
    _, nearest = cv2.distanceTransformWithLabels(
        (segments == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    label_of = np.zeros(int(nearest.max()) + 1, np.uint8)
    label_of[nearest[segments > 0]] = segments[segments > 0]
    return np.where(gaps, label_of[nearest], segments)


def segment_map(
    polygons: Sequence[tuple[int, np.ndarray]], shape: tuple[int, int], *, gap_radius: int
) -> np.ndarray:
    """uint8 [H, W] classes 1…25 with closed gaps; the vessel mask is where it is not 0."""
    segments, areas = rasterise(polygons, shape)
    return close_gaps(segments, areas, radius=gap_radius)
