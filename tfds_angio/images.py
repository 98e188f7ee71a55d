"""Reads an image file into an array, and says why when it cannot."""

from __future__ import annotations

import io
import struct
import warnings

import cv2
import numpy as np
import PIL.Image

# What the readers accept, in the order in which one of several files of a name is preferred.
SUFFIXES = (".npy", ".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")

_PNG = b"\x89PNG\r\n\x1a\n"


class UnreadableImage(Exception):
    """The content is not an image of a supported kind; the message says what is wrong."""


def _load_npy(data: bytes) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except MemoryError as error:
        raise UnreadableImage("too large for the memory, or a corrupt .npy") from error
    except Exception as error:  # NumPy parses the header as Python, which fails in many ways.
        raise UnreadableImage(f"corrupt or unsupported .npy ({error})") from error
    if not isinstance(array, np.ndarray):
        raise UnreadableImage("an .npz archive, not an array")
    if array.dtype.kind not in "buif":
        raise UnreadableImage(f"array of {array.dtype}, not of numbers")
    return array


def _check_complete(data: bytes) -> None:
    """OpenCV fills the missing part of a truncated file with grey; Pillow refuses it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd tags of scanners, without effect on the pixels
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(io.BytesIO(data)) as image:
                image.load()
    except PIL.UnidentifiedImageError:
        _check_chunks(data)  # a depth that Pillow does not know (16-bit colour): OpenCV will judge
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnreadableImage(f"corrupt or truncated ({error})") from error
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"too large ({error})") from error


def _check_chunks(data: bytes) -> None:
    """OpenCV reserves what a chunk of a PNG says to hold, up to 4 GiB, before it looks for it."""
    if not data.startswith(_PNG):
        return
    at = len(_PNG)
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            raise UnreadableImage("corrupt or truncated (a chunk is longer than the file)")
        if data[at + 4 : at + 8] == b"IHDR":
            width, height = struct.unpack_from(">II", data.ljust(at + 16, b"\0"), at + 8)
            if width * height > (PIL.Image.MAX_IMAGE_PIXELS or 0):
                raise UnreadableImage(f"too large ({width}x{height})")
        at += 12 + length


def decode(data: bytes, suffix: str) -> np.ndarray:
    """Decodes the bytes of a file.

    Returns:
      [H, W] or [H, W, C] as stored: uint8, uint16, float…; C in RGB(A) order.

    Raises:
      UnreadableImage: empty, truncated or not an image.
    """
    if not data:
        raise UnreadableImage("empty file")
    if suffix.lower() == ".npy":
        return _load_npy(data)
    _check_complete(data)
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise UnreadableImage(f"corrupt ({error.err})") from error
    if array is None:
        raise UnreadableImage("not an image")
    if array.ndim == 3 and array.shape[2] in (3, 4):
        array = array[..., [2, 1, 0, 3][: array.shape[2]]]  # OpenCV has BGR(A)
    return array


def grey(array: np.ndarray) -> np.ndarray:
    """[H, W] of the same type: drops an alpha channel, weighs unequal colours as luminance.

    Raises:
      UnreadableImage: not a two-dimensional grey or colour image.
    """
    if array.ndim == 3 and array.shape[0] == 1 and array.shape[2] > 4:
        array = array[0]
    if array.ndim == 2:
        return array
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        raise UnreadableImage(f"shape {array.shape} is neither [H, W] nor [H, W, 1…4]")
    colours = array[..., : 3 if array.shape[2] >= 3 else 1]
    if np.array_equal(colours.min(2), colours.max(2), equal_nan=colours.dtype.kind == "f"):
        return np.ascontiguousarray(colours[..., 0])
    luminance = colours.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    if array.dtype.kind == "f":
        return luminance.astype(array.dtype)
    return np.rint(luminance).astype(array.dtype)
