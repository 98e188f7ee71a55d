"""Pixels of one layer of a frame, from the bytes of its file."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from cmunet_jax.viewer.confined import Unreadable
from tfds_angio import images

Pixels = NDArray[np.uint8]
MAX_SIDE, MAX_PIXELS = 16384, 2**26
MAX_BYTES = 2**28
"""Of a file: what 16 bits a pixel need at MAX_PIXELS, and room for a poor compression."""


def _decode_png(data: bytes, shape: tuple[int, int]) -> NDArray[np.generic]:
    # The size is in the header, so a bomb is refused before it is unpacked.
    try:
        with PIL.Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise Unreadable(f"no PNG that can be read ({error})") from None
    if (height, width) != shape:
        raise Unreadable(f"{height} × {width} pixels, not {shape[0]} × {shape[1]} as its case")
    try:
        return images.grey(images.decode(data, ".png"))
    except images.UnreadableImage as error:
        raise Unreadable(str(error)) from None


def frame(data: bytes, shape: tuple[int, int]) -> Pixels:
    """Grey uint8 [H, W], of a PNG of 8 bits.

    Raises:
      Unreadable: damaged, of another size or depth.
    """
    pixels = _decode_png(data, shape)
    if pixels.dtype != np.uint8:
        raise Unreadable(f"a frame of {pixels.dtype}, not of 8 bits")
    return np.ascontiguousarray(pixels, np.uint8)


def mask(data: bytes, shape: tuple[int, int]) -> Pixels:
    """uint8 [H, W], 1 where the PNG holds more than half of its range.

    Raises:
      Unreadable: damaged, of another size or depth.
    """
    return (frame(data, shape) > 127).astype(np.uint8)


def probability(data: bytes, shape: tuple[int, int]) -> Pixels:
    """uint8 [H, W], 0..255 for probabilities 0..1: what `probabilities` reads, to be shown.

    Raises:
      Unreadable: as `probabilities`.
    """
    return np.rint(255 * probabilities(data, shape)).astype(np.uint8)


def probabilities(data: bytes, shape: tuple[int, int]) -> NDArray[np.float32]:
    """float32 [H, W] in 0..1, of a PNG of 8 or 16 bits or of an NPZ.

    Raises:
      Unreadable: damaged, of another size, or not between 0 and 1.
    """
    if not data.startswith(b"PK"):
        pixels = _decode_png(data, shape)
        full = {"uint8": 255, "uint16": 65535}.get(str(pixels.dtype))
        if full is None:
            raise Unreadable(f"probabilities of {pixels.dtype}")
        return pixels.astype(np.float32) / np.float32(full)
    values = _probability_npz(data, shape)
    if not (values >= 0).all() or not (values <= 1).all():  # also False for NaN
        raise Unreadable("probabilities that are not between 0 and 1")
    return values


def _probability_npz(data: bytes, shape: tuple[int, int]) -> NDArray[np.float32]:
    limit = shape[0] * shape[1] * 8 + 4096
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            with archive.open("probability.npy") as member:
                # A zip may unpack to far more than it says: no more is read than can be right.
                content = member.read(limit + 1)
        if len(content) > limit:
            raise Unreadable("an NPZ that is larger than its frame")
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except Unreadable:
        raise
    except Exception as error:  # zip, zlib and NumPy's header parser each have errors of their own
        raise Unreadable(f"no NPZ that can be read ({type(error).__name__})") from None
    if values.shape != shape or values.dtype.kind != "f":
        raise Unreadable(f"an array of {values.dtype} {values.shape}, not of float {shape}")
    return values.astype(np.float32)


def png(pixels: Pixels) -> bytes:
    """An 8-bit grey PNG of uint8 [H, W], without metadata."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
