"""Image files and arrays as cases: PNG, JPEG, BMP, TIFF with one or many pages, NPY."""

from __future__ import annotations

import functools
import hashlib
import pathlib
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunet_jax.imaging import tiff
from cmunet_jax.imaging.case import Case, UnreadableCase
from tfds_angio import images


def open_file(path: pathlib.Path, *, kind: str, name: str) -> Case:
    """Opens a file that is not DICOM.

    Args:
      path: with one of `tfds_angio.images.SUFFIXES`.
      kind: 'image', of which a TIFF may have many pages, or 'array': an NPY of [H, W] or
        [H, W, 1…4], or a run [T, H, W] or [T, H, W, 1…4], of which one frame is in memory.
      name: the case's id.

    Raises:
      UnreadableCase: empty, truncated, not grey or colour, or (when a frame is read) NaN in it.
      OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    notes: tuple[str, ...] = ()
    run = _array_run(path) if kind == "array" else None
    pages = _pages(path) if path.suffix.lower() in (".tif", ".tiff") else 1
    if run is not None:
        count, (height, width) = run.shape[0], run.shape[1:3]
        read = functools.partial(_read_array, run)
    else:
        # A single image is decoded once, and kept for as long as the case is.
        first, orientation = _decode(path)
        if orientation != 1:
            notes = (f"EXIF orientation {orientation}: {images.TURNED}, and so are its results",)
        count, (height, width) = pages, first.shape
        read = functools.partial(_read_image, path, first)
    if not height or not width or not count:
        raise UnreadableCase("it has no pixels")
    return Case(
        id=name,
        path=path,
        kind=kind,
        sha256=sha256,
        frames=count,
        height=height,
        width=width,
        spacing=None,
        burned_in=False,
        read=read,
        notes=notes,
    )


def _array_run(path: pathlib.Path) -> NDArray[Any] | None:
    """The memory-mapped frames of an NPY that holds several, else None."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, TypeError):
        return None  # the reader of single arrays says what is wrong with it
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        return None
    channels = array.shape[-1] in (1, 2, 3, 4)
    frames = (array.ndim == 3 and not channels) or (array.ndim == 4 and channels)
    return array if frames else None


def _read_array(run: NDArray[Any], index: int) -> NDArray[np.generic]:
    return _levels(np.array(run[index]))


def _pages(path: pathlib.Path) -> int:
    """The pages of a TIFF, all of which can be reached; OpenCV counts up to the first damage."""
    linked = tiff.count_pages(path)
    try:
        counted = cv2.imcount(str(path))
    except cv2.error:
        counted = 0
    # A first page that cannot be read is not counted, either: decoding it says what is wrong.
    if linked is not None and 0 < counted != linked:
        raise UnreadableCase(f"truncated or corrupt ({counted} of its {linked} pages can be read)")
    if linked is not None and linked > 1 and not counted:
        raise UnreadableCase(f"corrupt or unsupported (none of its {linked} pages can be read)")
    return max(counted, 1)


def _decode(path: pathlib.Path) -> tuple[NDArray[np.generic], int]:
    """Grey [H, W], upright, and the orientation that the file states."""
    try:
        array, orientation = images.decode_upright(path.read_bytes(), path.suffix)
        return images.grey(array), orientation
    except images.UnreadableImage as error:
        raise UnreadableCase(str(error)) from None


def _read_image(path: pathlib.Path, first: NDArray[np.generic], index: int) -> NDArray[np.generic]:
    if index == 0:
        return _levels(first)
    try:
        read, pages = cv2.imreadmulti(str(path), start=index, count=1, flags=cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise UnreadableCase(f"corrupt ({error.err})") from None
    if not read or len(pages) != 1:
        raise UnreadableCase("corrupt or truncated")
    page = pages[0]
    if page.ndim == 3:
        page = page[..., [2, 1, 0, 3][: page.shape[2]]]  # OpenCV has BGR(A)
    if page.shape[:2] != first.shape:
        raise UnreadableCase("its pages have different sizes")
    return _levels(page)


def _levels(array: NDArray[Any]) -> NDArray[np.generic]:
    """Grey [H, W] as uint8, uint16 or float32, whatever numbers the file holds."""
    try:
        grey = images.grey(array)
    except images.UnreadableImage as error:
        raise UnreadableCase(str(error)) from None
    if grey.dtype in (np.uint8, np.uint16):
        return grey
    if grey.dtype == bool:
        return grey.astype(np.uint8) * np.uint8(255)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        values = grey.astype(np.float32)
    if not np.isfinite(values).all():
        raise UnreadableCase("it holds NaN or infinity: mend or remove it")
    return values
