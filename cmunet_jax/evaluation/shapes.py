"""The geometry of one binary mask: its contour, its boundary elements and its skeleton.

Two descriptions of the boundary are in use in the field and both are needed:

- *contour vertices*, the points where `skimage.measure.find_contours` at level 0.5 crosses the
  pixel grid, i.e. the midpoints between an artery pixel and a background neighbour (paper, the
  modified Hausdorff distance and the diameter);
- *surface elements*, the corners between 2x2 pixels that are not all equal, each weighted with
  the length of contour that passes it (Nikolov et al. 2018, arXiv 1809.04430, whose definition
  of HD95, the average distance and the surface Dice is the usual reference).

Distances come from k-d trees over these points: exact in float64, and with the few thousand
points of a vessel mask several times faster than an exact distance transform of the image.
"""

from __future__ import annotations

from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from skimage.morphology import skeletonize

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_SQUARE = np.ones((3, 3), np.uint8)

# Length of contour inside a 2x2 window, by the code 8·top-left + 4·top-right + 2·bottom-left +
# 1·bottom-right: a corner cut is √½ long, a straight pass 1, two opposite corners √2.
_CORNER, _STRAIGHT, _DOUBLE = np.sqrt(0.5), 1.0, np.sqrt(2.0)
_CONTOUR_LENGTH = np.array(
    [0, _CORNER, _CORNER, _STRAIGHT, _CORNER, _STRAIGHT, _DOUBLE, _CORNER]
    + [_CORNER, _DOUBLE, _STRAIGHT, _CORNER, _STRAIGHT, _CORNER, _CORNER, 0]
)


class Shape:
    """One binary mask and, computed when first asked for, its geometry.

    The area outside the array counts as background, so an artery that leaves the image is closed
    by the image border. Points are (row, column) in pixels, (0, 0) the centre of the first pixel.

    Attributes:
        mask: bool [H, W].
    """

    def __init__(self, mask: Mask):
        # A copy: skimage's compiled skeletonize refuses the read-only buffers that JAX hands out.
        self.mask = np.array(mask, dtype=bool, order="C")

    @cached_property
    def area(self) -> int:
        """Artery pixels."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def vertices(self) -> Points:
        """Contour vertices [K, 2]: each artery-background edge once, image border included."""
        padded = np.pad(self.mask, 1)
        down = np.argwhere(padded[1:] != padded[:-1]) + (0.5, 0.0)
        right = np.argwhere(padded[:, 1:] != padded[:, :-1]) + (0.0, 0.5)
        return np.concatenate([down, right]) - 1.0

    @cached_property
    def surface_tree(self) -> cKDTree:
        """Nearest-neighbour index of the points of `surface`."""
        return tree(self.surface[0])

    @cached_property
    def surface(self) -> tuple[Points, NDArray[np.float64]]:
        """Surface elements: points [K, 2] and the contour length [K] that each stands for (px)."""
        padded = np.pad(self.mask, 1).astype(np.uint8)
        code = 8 * padded[:-1, :-1] + 4 * padded[:-1, 1:] + 2 * padded[1:, :-1] + padded[1:, 1:]
        points = np.argwhere((code != 0) & (code != 15))
        lengths = _CONTOUR_LENGTH[code[points[:, 0], points[:, 1]]]
        return np.asarray(points - 0.5, np.float64), lengths

    @cached_property
    def skeleton(self) -> Mask:
        """One-pixel-wide skeleton, bool [H, W] (Zhang & Suen 1984, through scikit-image)."""
        return skeletonize(self.mask)

    @cached_property
    def soft_skeleton(self) -> Mask:
        """Soft skeleton of the paper's clDice, bool [H, W]; see `soft_skeleton`."""
        return soft_skeleton(self.mask)

    @cached_property
    def vertex_tree(self) -> cKDTree:
        """Nearest-neighbour index of `vertices`."""
        return tree(self.vertices)

    @cached_property
    def centreline_distances(self) -> NDArray[np.float64]:
        """Distance (px) to the contour of each skeleton point, in the order of `np.argwhere`."""
        centreline = np.argwhere(self.skeleton)
        return self.vertex_tree.query(centreline)[0] if len(centreline) else np.zeros(0)

    @cached_property
    def mean_diameter(self) -> float:
        """Twice the mean distance from skeleton to contour (px); an empty mask has diameter 0."""
        distances = self.centreline_distances
        return 2.0 * float(np.mean(distances)) if len(distances) else 0.0


def tree(points: Points) -> cKDTree:
    """Nearest-neighbour index of points [K, 2]; built the quick way, queries are few."""
    return cKDTree(points, balanced_tree=False, compact_nodes=False)


def soft_skeleton(mask: Mask, *, iterations: int = 10) -> Mask:
    """Skeleton by iterated erosion and opening, of a binary mask (Shit et al. 2021, clDice).

    What erosion by a cross takes away and opening does not give back belongs to the skeleton. On
    binary input the soft minimum and maximum are exact, so the result is binary too. Vessels wider
    than about 2·`iterations` pixels lose their centre line.

    Args:
        mask: bool [H, W].
        iterations: erosions after the first residue; 10 in the paper.

    Returns:
        bool [H, W].
    """
    current = np.array(mask, dtype=np.uint8)
    skeleton = np.zeros(current.shape, bool)
    for _ in range(iterations + 1):
        eroded = cv2.erode(current, _CROSS)  # OpenCV's default border never wins
        opened = cv2.dilate(eroded, _SQUARE)
        skeleton |= (current != 0) & (opened == 0)
        current = np.asarray(eroded, np.uint8)
    return skeleton


def bounding_crop(masks: list[Mask], *, margin: int = 2) -> tuple[slice, slice]:
    """Slices (rows, columns) of the box around everything set in any mask, plus a margin.

    With a margin of at least one pixel every quantity of `Shape` is the same on the crop as on the
    whole image, up to the origin of the points. Without any pixel set the box is 1x1.
    """
    union = np.logical_or.reduce(masks)
    slices = []
    for axis in (0, 1):
        where = np.flatnonzero(union.any(axis=1 - axis))
        first, last = (where[0], where[-1]) if len(where) else (0, 0)
        slices.append(slice(max(int(first) - margin, 0), int(last) + margin + 1))
    return slices[0], slices[1]
