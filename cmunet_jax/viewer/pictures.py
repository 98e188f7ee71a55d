"""A list or a folder of images that nobody has segmented yet, to be annotated from scratch."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import os
import pathlib
import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.viewer import confined, layers
from cmunet_jax.viewer.catalogue import Case, Catalogue, Frame
from cmunet_jax.viewer.confined import Unreadable
from tfds_angio import images
from tfds_angio.angio_folder import load
from tfds_angio.errors import UserError

_MAX_LIST, _MAX_IMAGES = 2**24, 100_000
_PERCENTILE = 0.1  # as angio_folder maps wide pixels to 8 bits, which the label's image then is


def of_images(source: pathlib.Path) -> Catalogue:
    """The catalogue of a folder of images, or of a list with a column `path`.

    Relative paths of a list are taken from its folder, or else from where the command runs. A list
    may name any file; of a folder no link is followed out of it.

    Raises:
      UserError: if it is neither, or names no image.
    """
    home = None
    if source.is_dir():
        home = source.resolve()
        paths = [
            path
            for path in sorted(source.rglob("*"))
            if path.suffix.lower() in images.SUFFIXES and not path.name.startswith(".")
        ]
        if not paths:
            kinds = ", ".join(images.SUFFIXES)
            raise UserError(f"config.images={source} holds no image ({kinds}).")
    else:
        paths = _listed(source)
    paths = paths[:_MAX_IMAGES]
    names = _names(paths)
    return Catalogue(
        tuple(_case(path, name, home) for path, name in zip(paths, names, strict=True))
    )


def _listed(source: pathlib.Path) -> list[pathlib.Path]:
    try:
        with source.open("rb") as file:
            data = file.read(_MAX_LIST + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"config.images={source} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise UserError(
            f"config.images={source} is no list of images: a folder, or text with a path a line."
        ) from None
    if len(data) > _MAX_LIST:
        raise UserError(f"config.images={source} is larger than {_MAX_LIST >> 20} MiB.")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    rows = list(csv.reader(io.StringIO("\n".join(lines)), strict=False))
    head = [column.strip().lower() for column in rows[0]] if rows else []
    if "path" in head:
        at = head.index("path")
        found = [row[at].strip() for row in rows[1:] if len(row) > at and row[at].strip()]
    else:
        found = [line.strip() for line in lines]
    if not found:
        raise UserError(f"config.images={source} names no image: write a path a line.")
    beside = [source.resolve().parent / path for path in found]
    return [near if near.exists() else pathlib.Path(path) for near, path in zip(beside, found)]


def _names(paths: list[pathlib.Path]) -> list[str]:
    """What the labels are called: the stem of the file; of equal ones with a digest of the path."""
    stems = [
        re.sub(r"[^A-Za-z0-9_.-]", "-", path.stem).lstrip(".-")[:100] or "image" for path in paths
    ]
    count = Counter(stem.lower() for stem in stems)
    return [
        stem
        if count[stem.lower()] == 1
        else f"{stem}-{hashlib.sha256(os.fsencode(path.as_posix())).hexdigest()[:8]}"
        for path, stem in zip(paths, stems, strict=True)
    ]


def _case(path: pathlib.Path, name: str, home: pathlib.Path | None) -> Case:
    problem = ""
    if path.suffix.lower() not in images.SUFFIXES:
        dicom = " Give a DICOM to configs/predict.py, and its run to config.input."
        problem = f"not an image type that is read.{dicom}"
    elif home is not None:
        try:
            _inside(path, home)
        except Unreadable as error:
            problem = str(error)
    elif not path.is_file():
        problem = "the file does not exist"
    frame = Frame(
        0, name, {} if problem else {"frame": functools.partial(_read, path, home)}, {}, problem
    )
    return Case(name, "", 0, 0, (frame,), 1, problem=problem)


def _inside(path: pathlib.Path, home: pathlib.Path) -> pathlib.Path:
    return confined.inside(home, path, repr(path.name[:80]))


def _read(path: pathlib.Path, home: pathlib.Path | None) -> NDArray[np.uint8]:
    """The pixels; with `home`, links may have changed since it was listed, so it is asked anew."""
    suffix = path.suffix
    if home is not None:
        path = _inside(path, home)
    try:
        if path.stat().st_size > layers.MAX_BYTES:
            raise Unreadable(f"the file is larger than {layers.MAX_BYTES >> 20} MiB")
        values = images.grey(images.decode(path.read_bytes(), suffix))
    except (OSError, images.UnreadableImage) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unreadable(f"the image cannot be read ({reason})") from None
    if values.size > layers.MAX_PIXELS or max(values.shape) > layers.MAX_SIDE:
        raise Unreadable(f"{values.shape[0]} × {values.shape[1]} pixels are more than can be shown")
    finite = np.isfinite(values)
    if not finite.any():
        raise Unreadable("no pixel of it is a number")
    values = np.where(finite, values, np.median(values[finite])).astype(values.dtype)
    if values.min() == values.max():
        raise Unreadable("all of its pixels are equal")
    return load.to_uint8(values, percentile=_PERCENTILE)
