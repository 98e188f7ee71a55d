"""Reads one image and its mask, by written rules for everything irregular.

Images: uint8 stays as it is; so do wider types that hold nothing but whole numbers from 0 to 255.
16-bit and float images (z-scored ones included) are mapped linearly from the percentiles p and
100 − p of their finite values to 0…255, and clipped; p is an option, 0.1 by default. So one bright
lead or dead pixel does not decide the contrast of the whole image.

Masks: artery is 1 in 0/1, 255 in 0/255, the larger of any two values; any label of a map of a few
small whole numbers; any colour but black; otherwise the mask is soft and half of its range (1, 255
or 65535) is the threshold.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from tfds_angio import images
from tfds_angio.angio_folder.problems import Problem
from tfds_angio.angio_folder.scan import Entry

MIN_SIDE = 32
MAX_LABEL = 32  # whole numbers up to this are labels of vessels, not grey values of a soft mask
_LOSSY = (".jpg", ".jpeg")
_MATCH = "image and mask have to match as they are shown"


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What an entry became: image uint8 [H, W] or None, mask bool [H, W] or None."""

    image: np.ndarray | None
    mask: np.ndarray | None
    problems: tuple[Problem, ...]


class _Unusable(Exception):
    """What is wrong with a file that cannot be used."""


def _read(path: Path) -> tuple[np.ndarray, list[tuple[str, str, str]]]:
    """The pixels, upright, and what is to be said of that."""
    try:
        if path.exists() and not path.is_file():  # to read a pipe is to wait for ever
            raise _Unusable("is not a file, but a pipe, a socket or a device")
        array, orientation = images.decode_upright(path.read_bytes(), path.suffix)
    except images.UnreadableImage as error:
        raise _Unusable(str(error)) from error
    except OSError as error:
        raise _Unusable(f"cannot be read ({error.strerror})") from error
    except MemoryError as error:
        raise _Unusable("too large for the memory") from error
    if orientation == 1:
        return array, []
    return array, [("warning", f"EXIF orientation {orientation}", f"{images.TURNED}; {_MATCH}")]


def to_uint8(values: np.ndarray, *, percentile: float) -> np.ndarray:
    """uint8 [H, W] of finite numbers [H, W], by the rule at the top of this file."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    low, high = values.min(), values.max()
    if low >= 0 and 1 < high <= 255 and np.array_equal(values, np.rint(values)):
        return values.astype(np.uint8)
    wide = values.astype(np.float64)
    bottom, top = np.percentile(wide, [percentile, 100 - percentile])
    if top <= bottom:  # nearly all pixels are equal
        bottom, top = float(low), float(high)
    return np.rint(np.clip((wide - bottom) / (top - bottom), 0, 1) * 255).astype(np.uint8)


def _load_image(path: Path, percentile: float) -> tuple[np.ndarray, list[tuple[str, str, str]]]:
    array, said = _read(path)
    try:
        values = images.grey(array)
    except images.UnreadableImage as error:
        raise _Unusable(f"{error}; one frame a file is expected") from error
    if array.ndim == 3 and array.shape[2] >= 3 and not _equal_channels(array):
        said.append(("warning", "colour image", "luminance is used"))
    if min(values.shape) < MIN_SIDE:
        raise _Unusable(f"{values.shape[0]} × {values.shape[1]} pixels, fewer than {MIN_SIDE}")
    finite = np.isfinite(values)
    if not finite.all():
        share = 1 - finite.mean()
        if share > 0.5:
            raise _Unusable(f"{share:.0%} of the pixels are NaN or infinite")
        values = np.where(finite, values, np.median(values[finite])).astype(values.dtype)
        said.append(("warning", f"{share:.2%} NaN or infinite", "set to the median"))
    if values.min() == values.max():
        raise _Unusable(f"constant image, all pixels are {values.flat[0]}")
    image = to_uint8(values, percentile=percentile)
    if image.min() == image.max():
        raise _Unusable("constant after scaling to 8 bits")
    if values.dtype != np.uint8:
        kind = f"{values.dtype} from {values.min():.6g} to {values.max():.6g}"
        same = np.array_equal(image, values)
        how = "taken as 8 bits" if same else "scaled to 8 bits by percentiles"
        said.append(("info", kind, how))
    return image, said


def _equal_channels(array: np.ndarray) -> bool:
    return bool(np.array_equal(array[..., :3].min(2), array[..., :3].max(2), equal_nan=False))


def binarise(values: np.ndarray, *, lossy: bool, colour: bool) -> tuple[np.ndarray, str]:
    """Artery in the values of a mask.

    Args:
      values: finite numbers [H, W]; of a colour mask the largest channel.
      lossy: from a JPEG, whose black is not exactly 0.
      colour: whether the channels differ.

    Returns:
      bool [H, W], and the kind of mask in words ('' for a plain 0/1 mask).

    Raises:
      ValueError: the values are not those of any kind of mask.
    """
    if values.dtype == bool:
        return values, ""
    distinct = np.unique(values)
    low, high = distinct[0], distinct[-1]
    if len(distinct) == 1:
        if high == 0:
            return values > 0, "empty mask"
        raise ValueError(f"all pixels are {high}")
    if len(distinct) == 2:
        kind = "" if (low, high) == (0, 1) else f"values {low} and {high}"
        return values == high, f"colour mask, {kind}" if colour else kind
    if low < 0:
        raise ValueError(f"{len(distinct)} values from {low:.4g} to {high:.4g}")
    if colour and not lossy:
        return values > 0, "colour mask, any colour but black"
    whole = np.array_equal(distinct, np.rint(distinct))
    if whole and high <= MAX_LABEL:
        return values > 0, f"labels up to {high}, any of them"
    full = next((f for f in (1, 255, 65535) if high <= f), None)
    if full is None:
        raise ValueError(f"{len(distinct)} values up to {high:.4g}")
    return values >= full / 2, f"soft mask, half of {full} is the threshold"


def _load_mask(path: Path, shape: tuple[int, int]) -> tuple[np.ndarray, list[tuple[str, str, str]]]:
    array, said = _read(path)
    if array.ndim == 3 and array.shape[0] == 1 and array.shape[2] > 4:
        array = array[0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] > 4):
        raise _Unusable(f"shape {array.shape}")
    if array.shape[:2] != shape:
        sizes = f"{array.shape[0]} × {array.shape[1]}, the image {shape[0]} × {shape[1]}"
        raise _Unusable(f"mask is {sizes}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        said.append(("warning", "NaN or infinite in the mask", "taken as background"))
        array = np.where(np.isfinite(array), array, 0)
    colour = array.ndim == 3 and array.shape[2] >= 3 and not _equal_channels(array)
    if array.ndim == 3:
        array = array[..., :3].max(2) if array.shape[2] >= 3 else array[..., 0]
    try:
        mask, kind = binarise(array, lossy=path.suffix.lower() in _LOSSY, colour=colour)
    except ValueError as error:
        raise _Unusable(f"not a mask: {error}") from error
    if kind == "empty mask":
        said.append(("warning", kind, "kept: labelled, without artery"))
    elif kind:
        plain = kind == "values 0 and 255"
        said.append(("info" if plain else "warning", kind, "taken as artery = 1"))
    if mask.mean() > 0.5:
        what = f"mask covers {mask.mean():.0%} of the image; is it inverted?"
        said.append(("warning", what, "used as it is"))
    return mask, said


def load(entry: Entry, *, root: Path, percentile: float) -> Loaded:
    """Reads an entry. Never raises for what a file holds: it is named in `problems`."""

    def named(path: Path, said: list[tuple[str, str, str]]) -> list[Problem]:
        name = path.relative_to(root).as_posix()
        return [Problem(severity, name, what, done) for severity, what, done in said]

    try:
        image, said = _load_image(entry.image, percentile)
    except _Unusable as error:
        problems = named(entry.image, [("error", str(error), "left out")])
        if entry.mask is not None:
            problems += named(entry.mask, [("error", "its image is left out", "left out")])
        return Loaded(None, None, tuple(problems))
    problems = named(entry.image, said)
    if entry.mask is None:
        return Loaded(image, None, tuple(problems))
    try:
        mask, said = _load_mask(entry.mask, image.shape)
    except _Unusable as error:
        problems += named(entry.mask, [("error", str(error), "not used; the image is unlabelled")])
        return Loaded(image, None, tuple(problems))
    return Loaded(image, mask, (*problems, *named(entry.mask, said)))
