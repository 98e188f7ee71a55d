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

TURNED = "turned upright, as viewers show it"

_ANIMATED = ("PNG", "GIF", "WEBP")  # by Pillow's names; a JPEG may hold a preview, a TIFF pages
_ORIENTATION = 0x0112  # the tag in EXIF and TIFF
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
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


def _check(data: bytes) -> int:
    """The orientation 1…8 that the file states, once it is complete and of one picture.

    OpenCV fills the missing part of a truncated file with grey; Pillow refuses it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd tags of scanners, without effect on the pixels
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(io.BytesIO(data)) as image:
                tags = getattr(image, "tag_v2", {})  # of TIFF; loading takes the orientation out
                in_tiff = _known(tags.get(_ORIENTATION))
                image.load()
                count = getattr(image, "n_frames", 1)
                if image.format in _ANIMATED and count > 1:
                    raise UnreadableImage(
                        f"an animated {image.format} of {count} frames: give the DICOM run that it "
                        "was made from, or each frame as a PNG"
                    )
                return max(in_tiff, _exif_orientation(image.info.get("exif")))
    except PIL.UnidentifiedImageError:
        _check_chunks(data)  # a depth that Pillow does not know (16-bit colour): OpenCV will judge
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnreadableImage(f"corrupt or truncated ({error})") from error
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"too large ({error})") from error
    return 1


def _exif_orientation(exif: object) -> int:
    """That of a block of EXIF, 1 where there is none or it is damaged."""
    if not isinstance(exif, bytes):
        return 1
    found = PIL.Image.Exif()
    try:
        found.load(exif)
        return _known(found.get(_ORIENTATION))
    except (
        SyntaxError,
        struct.error,
        OSError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
    ):
        return 1  # Pillow trusts the lengths and offsets in it, which fails in many ways


def _known(orientation: object) -> int:
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors [H, W] or [H, W, C] as EXIF 2.32, 4.6.5.A, has it."""
    if orientation >= 5:  # the first stored row is a side of the picture
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


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
    """The array of `decode_upright`."""
    return decode_upright(data, suffix)[0]


def decode_upright(data: bytes, suffix: str) -> tuple[np.ndarray, int]:
    """Decodes the bytes of a file, turned as its EXIF orientation says and as viewers show it.

    Returns:
      [H, W] or [H, W, C] of the stored type: uint8, uint16, float…; C in RGB(A) order. And the
      orientation 1…8 that the file states: 1 where nothing was turned.

    Raises:
      UnreadableImage: empty, truncated, animated or not an image.
    """
    if not data:
        raise UnreadableImage("empty file")
    if suffix.lower() == ".npy":
        return _load_npy(data), 1
    orientation = _check(data)
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise UnreadableImage(f"corrupt ({error.err})") from error
    if array is None:
        raise UnreadableImage("not an image")
    if array.ndim == 3 and array.shape[2] in (3, 4):
        array = array[..., [2, 1, 0, 3][: array.shape[2]]]  # OpenCV has BGR(A)
    if data[:4] not in _TIFF:  # of TIFF alone OpenCV has turned the pixels already
        array = _upright(array, orientation)
    return array, orientation


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
