"""Pictures during training, as PNG files."""

import math
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from clu.metric_writers.interface import Array
from PIL import Image

from cmunet_jax.train.sink import Sink
from tfds_angio.errors import UserError

_GAP = 2  # pixels between the images of a grid
_ONE_ROW = 8  # images up to which a grid is one row


class PictureWriter(Sink):
    """Writes each named set of images as one PNG: <directory>/<name>_<step>.png."""

    def __init__(self, directory: str | Path):
        self._directory = Path(directory)

    def write_images(self, step: int, images: Mapping[str, Array]) -> None:
        """Writes one file a name; see `grid` for what images may be.

        Raises:
          UserError: if the folder cannot be written.
        """
        for name, values in images.items():
            stem = re.sub(r"[^\w.-]+", "_", name).strip("_.") or "picture"
            path = self._directory / f"{stem}_{step:08d}.png"
            try:
                save_png(path, grid(values))
            except OSError as error:
                raise UserError(
                    f"cannot write the picture {path}: {error.strerror or error}. "
                    "Free space or make the workdir writable."
                ) from error


def grid(values: Array) -> np.ndarray:
    """Puts images side by side.

    Args:
      values: [N, H, W, C] or [H, W, C] with C 1 or 3; uint8, bool, or floats in [0, 1] (others
        are clipped, NaN is black).

    Returns:
      uint8 [h, w, 3] or, for one channel, [h, w].

    Raises:
      ValueError: for another shape or no image.
    """
    array = np.asarray(values)
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise ValueError(f"images must be [N, H, W, 1 or 3], not {np.shape(values)}")
    pixels = as_uint8(array)
    count, height, width, channels = pixels.shape
    columns = count if count <= _ONE_ROW else math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full(
        (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels), 128, np.uint8
    )
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (height + _GAP), (i % columns) * (width + _GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet[..., 0] if channels == 1 else sheet


def as_uint8(array: np.ndarray) -> np.ndarray:
    """Grey or colour values as bytes: uint8 as they are, bool and floats in [0, 1] times 255."""
    if array.dtype == np.uint8:
        return array
    if array.dtype != bool and np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"images of {array.dtype} have no range: use uint8 or floats in [0, 1]")
    scaled = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    return np.round(np.clip(scaled, 0.0, 1.0) * 255.0).astype(np.uint8)


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Writes uint8 [H, W] or [H, W, 3] so that a killed run leaves no half-written file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".png")
    try:
        with os.fdopen(handle, "wb") as file:
            Image.fromarray(pixels).save(file, format="PNG")
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide pictures from colleagues.
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
