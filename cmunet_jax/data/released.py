"""The preprocessing of the released code, step by step (paper, section on data; FAME2).

Kept exact so that weights and numbers can be compared with the authors'. Each step takes and
gives what the original's did, also where the ``fixed`` chain does better.
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image
from skimage.filters import unsharp_mask

from cmunet_jax.data.geometry import Geometry, extract

CORNER = 0.3  # side of a corner square as a fraction of the crop's side
DARK = 30  # grey level up to which a corner pixel counts as collimator
MIN_DARK_PIXELS = 100  # of the four corners together, below which nothing is inpainted


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Grey levels as the released chain expects them, uint8 [H, W].

    uint8 stays as it is. Anything else, having no defined black level, is mapped linearly from
    its minimum and maximum to 0..255 (a constant image to 0).
    """
    if image.dtype == np.uint8:
        return image
    values = image.astype(np.float64)
    low, high = values.min(), values.max()
    return np.rint((values - low) * (255.0 / (high - low or 1.0))).astype(np.uint8)


def inpaint_corners(image: np.ndarray) -> np.ndarray:
    """Replaces dark collimator corners by Telea inpainting.

    Where 100 or more pixels of the four corner squares together (side floor(0.3 * side)) are
    <= 30, these pixels, dilated by a 5 x 5 square, are inpainted with radius 3.

    Args:
      image: uint8 [side, side].

    Returns:
      uint8 [side, side]; the input itself where the corners are bright.
    """
    height, width = (int(CORNER * length) for length in image.shape)
    dark = np.zeros(image.shape, np.uint8)
    for rows in (slice(0, height), slice(image.shape[0] - height, None)):
        for columns in (slice(0, width), slice(image.shape[1] - width, None)):
            dark[rows, columns] = image[rows, columns] <= DARK
    if np.count_nonzero(dark) < MIN_DARK_PIXELS:
        return image
    region = cv2.dilate(dark, np.ones((5, 5), np.uint8))
    return cv2.inpaint(np.ascontiguousarray(image), region, 3, cv2.INPAINT_TELEA)


def standardise(image: np.ndarray) -> np.ndarray:
    """Unsharp masking (radius 60, amount 3, not clipped), then the z-score of the image.

    float64 throughout, population standard deviation, float32 [side, side] at the end. A
    constant image, which has no z-score, becomes zero.
    """
    sharp = unsharp_mask(image.astype(np.float64), radius=60, amount=3, preserve_range=True)
    deviation = sharp.std()
    if image.min() == image.max():
        return np.zeros(image.shape, np.float32)
    return ((sharp - sharp.mean()) / deviation).astype(np.float32)


def resize_bicubic(image: np.ndarray, size: int) -> np.ndarray:
    """Bicubic resampling of float32 [side, side] to [size, size] at load.

    Pillow's filter: Keys' kernel with a = -0.5, widened by the factor when shrinking. That is
    also torchvision's ``Resize`` on PIL images and, antialiased, on tensors.
    """
    if image.shape == (size, size):
        return image
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.float32)


def prepare(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The whole chain: any grey image [H, W] -> standardised float32 [size, size]."""
    cropped = extract(to_uint8(image), geometry, fill=None)
    return resize_bicubic(standardise(inpaint_corners(cropped)), geometry.size)


def prepare_mask(mask: np.ndarray, geometry: Geometry, *, fill_contours: bool) -> np.ndarray:
    """Merged vessel mask [H, W] (any > 0) -> uint8 0/1 [size, size] by nearest neighbour.

    ``fill_contours`` fills the interior of every outer contour, for annotations that were
    drawn as outlines; it would also close the loops of vessels that cross.
    """
    merged = np.ascontiguousarray(mask > 0).astype(np.uint8)
    if fill_contours:
        contours, _ = cv2.findContours(merged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(merged, contours, -1, color=1, thickness=cv2.FILLED)  # in place
    cropped = extract(merged, geometry, fill=0)
    resized = Image.fromarray(cropped).resize((geometry.size,) * 2, Image.Resampling.NEAREST)
    return np.asarray(resized, np.uint8)
