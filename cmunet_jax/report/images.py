"""Pictures of a run as data URIs small enough to be mailed with the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tfds_angio.errors import UserError

WIDTH = 1100  # pixels: sharp at the width of the page, a quarter of the original's bytes
_QUALITY = 84


@dataclass(frozen=True)
class Embedded:
    """A picture inside the page."""

    path: Path
    uri: str
    width: int
    height: int


def check(path: Path) -> None:
    """Decodes a picture.

    Raises:
      UserError: if the file is no complete picture.
    """
    _decode(path)


def embed(path: Path, *, width: int = WIDTH) -> Embedded:
    """Reads a picture, limits its width and encodes it as WebP.

    Args:
      path: PNG.
      width: larger pictures are scaled down to this many pixels.

    Raises:
      UserError: if the file is no complete picture.
    """
    picture = _decode(path)
    if picture.width > width:
        height = max(1, round(picture.height * width / picture.width))
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # WebP needs a third of PNG's bytes for X-ray noise; every browser since 2020 shows it.
    picture.save(buffer, "WEBP", quality=_QUALITY, method=4)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Embedded(path, f"data:image/webp;base64,{data}", picture.width, picture.height)


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        raise UserError(
            f"{path} is no complete picture: run the stage that wrote it again, or delete it."
        ) from None
