"""The map between an image at its native size and the square that the network sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A square window of the native image, resampled to ``size`` x ``size``.

    The window may be smaller than the image (a centre crop: what lies outside is not seen) or
    larger (padding: what lies outside of the image is filled). Both axes always have the same
    scale, so the aspect ratio is never distorted.

    Attributes:
      height: native height H in pixels.
      width: native width W in pixels.
      top: first row of the window in native pixels; negative where the window is padded.
      left: first column of the window in native pixels; negative where the window is padded.
      side: side of the window in native pixels.
      size: side of the network's square in pixels.
    """

    height: int
    width: int
    top: int
    left: int
    side: int
    size: int

    @property
    def inner(self) -> tuple[slice, slice]:
        """The part of the native image inside the window, as (rows, columns)."""
        return (
            slice(max(self.top, 0), min(self.top + self.side, self.height)),
            slice(max(self.left, 0), min(self.left + self.side, self.width)),
        )

    @property
    def margins(self) -> tuple[int, int, int, int]:
        """Padding (top, bottom, left, right) in native pixels, all >= 0."""
        rows, columns = self.inner
        return (
            rows.start - self.top,
            self.top + self.side - rows.stop,
            columns.start - self.left,
            self.left + self.side - columns.stop,
        )

    def to_array(self) -> np.ndarray:
        """The six numbers as int32 [6], for storage."""
        return np.array(dataclasses.astuple(self), np.int32)

    @classmethod
    def from_array(cls, values: Sequence[int] | np.ndarray) -> Geometry:
        """The inverse of ``to_array``."""
        return cls(*(int(value) for value in values))


def centre_crop(height: int, width: int, crop: int, size: int) -> Geometry:
    """The centred square of side ``crop``, or of the shorter side where the image is smaller.

    The offset is floor((H - crop) / 2), as in the released chain. An image smaller than the
    crop keeps its largest centred square instead of being padded with invented pixels.
    """
    side = min(crop, height, width)
    return Geometry(height, width, (height - side) // 2, (width - side) // 2, side, size)


def pad_to_square(height: int, width: int, size: int) -> Geometry:
    """The smallest centred square that holds the whole image."""
    side = max(height, width)
    return Geometry(height, width, -((side - height) // 2), -((side - width) // 2), side, size)


def extract(image: np.ndarray, geometry: Geometry, *, fill: float | None) -> np.ndarray:
    """Cuts the window out of a native image [H, W] -> [side, side].

    Padding repeats the edge where ``fill`` is None and is ``fill`` elsewhere.
    """
    inner = image[geometry.inner]
    margins = geometry.margins
    if not any(margins):
        return inner
    border = cv2.BORDER_REPLICATE if fill is None else cv2.BORDER_CONSTANT
    return cv2.copyMakeBorder(np.ascontiguousarray(inner), *margins, border, value=fill or 0)


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Resamples a binary mask [side, side] to uint8 [size, size] by majority of the area.

    Nearest-neighbour sampling breaks vessels thinner than the step; the majority of the area
    that a pixel covers keeps the outline where it was.
    """
    if mask.shape == (size, size):
        return (mask > 0).astype(np.uint8)
    shrink = size < mask.shape[0]
    values = (mask > 0).astype(np.float32)
    interpolation = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    return (cv2.resize(values, (size, size), interpolation=interpolation) >= 0.5).astype(np.uint8)


def restore(
    values: np.ndarray, geometry: Geometry, *, fill: float | Sequence[float] = 0.0
) -> np.ndarray:
    """Brings network outputs back to the native image.

    Args:
      values: float32 [size, size, C] (probabilities or logits).
      geometry: as returned by ``Preprocessing.apply``.
      fill: the value, or the C values, given to native pixels outside of the window (only a
        centre crop has any). With equal values argmax says class 0, background.

    Returns:
      float32 [H, W, C], bilinear (area-averaged where the native window is smaller).
    """
    if values.ndim != 3 or values.shape[:2] != (geometry.size, geometry.size):
        raise ValueError(f"expected [{geometry.size}, {geometry.size}, C], got {values.shape}")
    shrink = geometry.side < geometry.size
    interpolation = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    channels = [
        # cv2 limits the number of channels that it resamples by area, hence one by one
        cv2.resize(
            np.ascontiguousarray(values[..., channel], np.float32),
            (geometry.side, geometry.side),
            interpolation=interpolation,
        )
        for channel in range(values.shape[-1])
    ]
    rows, columns = geometry.inner
    native = np.empty((geometry.height, geometry.width, values.shape[-1]), np.float32)
    native[:] = np.asarray(fill, np.float32)
    native[rows, columns] = np.stack(channels, -1)[
        rows.start - geometry.top : rows.stop - geometry.top,
        columns.start - geometry.left : columns.stop - geometry.left,
    ]
    return native
