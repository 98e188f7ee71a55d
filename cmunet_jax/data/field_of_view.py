"""Where the X-rays were, and grey levels that do not depend on the scanner.

Angiograms are framed by collimator blades or by a round shutter: a dark surround, black or not,
with a soft edge. It says nothing about the patient, and it dominates any statistic of the whole
image. Every measure here is relative to the image's own range, so 8-bit, 16-bit and already
standardised images give the same result.
"""

from __future__ import annotations

import cv2
import numpy as np

_WORKING_SIZE = 256  # pixels; a border of 2 in 512 is just seen
_BLACK = 0.4  # of ``darkness``: how dark a surround of any width must be


def detect(image: np.ndarray, *, darkness: float, min_area: float) -> np.ndarray:
    """Finds the field of view: everything but a dark surround at the image's edge.

    Lungs, diaphragm and spine make dark regions at the edge too, with vessels in them. A surround
    is either nearly as dark as the darkest thing in the image, or a narrow strip that is dark
    beside what lies next to it. The field is convex (blades are straight, shutters round), so it
    is taken as the convex hull of what remains; dark vessels and catheters that touch the edge
    therefore stay inside.

    Args:
      image: float32 [S, S].
      darkness: a narrow strip is below this fraction of the way from the darkest level of the
        image to the brightest of its neighbourhood, in 0..1; a wide surround is below 0.4 of that
        on the way to the median of the centre.
      min_area: least credible area of the field as a fraction of the image, in 0..1; a smaller
        one is a failed detection and the whole image is returned.

    Returns:
      bool [S, S], True inside of the field.
    """
    size = image.shape[0]
    # burnt-in text and hot pixels must not count as field: median over 5 x 5
    small = cv2.medianBlur(cv2.resize(image, (_WORKING_SIZE,) * 2, interpolation=cv2.INTER_AREA), 5)
    reach = np.ones((_WORKING_SIZE // 8 * 2 + 1,) * 2, np.uint8)
    quarter = _WORKING_SIZE // 4
    floor = small.min()
    nearby = cv2.dilate(small, reach) - floor
    overall = np.median(small[quarter:-quarter, quarter:-quarter]) - floor
    height = small - floor
    black = _connected_to_edge(height < _BLACK * darkness * overall)
    surround = black | _strips(height < darkness * nearby, _WORKING_SIZE // 10)
    if not surround.any():
        return np.ones(image.shape, bool)
    field = _largest_component(_open(~surround))
    hull = np.zeros(field.shape, np.uint8)
    points = cv2.findNonZero(field.astype(np.uint8))
    if points is not None:
        cv2.fillConvexPoly(hull, cv2.convexHull(points), 1)
    if hull.mean() < min_area:
        return np.ones(image.shape, bool)
    full = cv2.resize(hull.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    return full >= 0.5


def _connected_to_edge(region: np.ndarray) -> np.ndarray:
    _, labels = cv2.connectedComponents(region.astype(np.uint8), connectivity=8)
    rim = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.isin(labels, np.setdiff1d(rim, 0))


def _strips(dark: np.ndarray, widest: int) -> np.ndarray:
    """Dark runs that start at an edge of bool [S, S] and end within ``widest`` pixels."""
    strips = np.zeros_like(dark)
    for turns in range(4):
        turned = np.rot90(dark, turns)
        runs = np.logical_and.accumulate(turned[: widest + 1], axis=0)
        runs &= ~runs[-1]  # one that goes on is anatomy
        strips |= np.rot90(np.pad(runs, ((0, len(dark) - len(runs)), (0, 0))), -turns)
    return strips


def _open(region: np.ndarray) -> np.ndarray:
    kernel = np.ones((3, 3), np.uint8)
    return cv2.morphologyEx(region.astype(np.uint8), cv2.MORPH_OPEN, kernel).astype(bool)


def _largest_component(region: np.ndarray) -> np.ndarray:
    count, labels = cv2.connectedComponents(region.astype(np.uint8), connectivity=4)
    if count <= 1:
        return np.zeros_like(region)
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def background(image: np.ndarray, field: np.ndarray, *, sigma: float) -> np.ndarray:
    """Local mean of float32 [S, S] inside the field: a Gaussian normalised by its own support.

    Args:
      image: float32 [S, S].
      field: bool [S, S]; pixels outside have no weight.
      sigma: standard deviation in pixels.
    """
    size = image.shape[0]
    weight = field.astype(np.float32)
    pair: np.ndarray = np.dstack([image * weight, weight])
    if size > _WORKING_SIZE:  # a mean over an eighth of the image needs no full resolution
        pair = cv2.resize(pair, (_WORKING_SIZE,) * 2, interpolation=cv2.INTER_AREA)
        sigma = sigma * _WORKING_SIZE / size
    blurred, support = cv2.split(
        cv2.GaussianBlur(pair, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    )
    local: np.ndarray = blurred / np.maximum(support, 1e-6)
    if size > _WORKING_SIZE:
        local = cv2.resize(local, (size, size), interpolation=cv2.INTER_LINEAR)
    return local


def fade(field: np.ndarray, valid: np.ndarray, *, width: float) -> np.ndarray:
    """Weights in 0..1, float32 [S, S]: 0 outside of the field, 1 well inside.

    They rise linearly between 0.5 and 1.5 ``width`` pixels from its edge. The soft edge of a blade
    is darker than the field and looks like a vessel; it fades into the neutral value instead.
    Where the field ends because the image ends nothing fades.

    Args:
      field: bool [S, S].
      valid: bool [S, S], False in the padding.
      width: pixels.
    """
    collimated = valid & ~field
    if not collimated.any():
        return valid.astype(np.float32)
    distance = cv2.distanceTransform((~collimated).astype(np.uint8), cv2.DIST_L2, 5)
    return np.clip(distance / width - 0.5, 0, 1).astype(np.float32) * valid
