"""What a person looks at: a frame in 8 bits, and the outline of its mask on it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunet_jax.evaluation.overlays import ADDED

_CLIPPED = 0.1  # percent of the pixels at each end: dead pixels do not set the contrast


def to_8_bit(frame: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey [H, W] as uint8: 8-bit frames as they are, others between their extreme percentiles."""
    if frame.dtype == np.uint8:
        return np.asarray(frame, np.uint8)
    low, high = np.percentile(frame.astype(np.float32), [_CLIPPED, 100 - _CLIPPED])
    scale = 255 / (high - low) if high > low else 0.0
    levels = (frame.astype(np.float32) - np.float32(low)) * np.float32(scale)
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)


def overlay(frame: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The frame with the outline of the mask, uint8 [H, W, 3] (RGB), in the size of the frame.

    The colour is that of predictions throughout (`evaluation.overlays`). There is no text on it.
    The line runs along the vessel's border, from outside: what is in it stays as it was.
    """
    rgb = np.repeat(frame[..., None], 3, axis=2)
    width = max(1, round(max(frame.shape) / 1024))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1,) * 2)
    inside = mask.astype(np.uint8)
    # The image's border closes no outline: a vessel that leaves the frame stays open.
    line = (cv2.dilate(inside, kernel) > 0) & ~mask
    rgb[line] = np.rint(255 * np.asarray(ADDED)).astype(np.uint8)
    return rgb
