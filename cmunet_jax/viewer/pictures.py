"""A list or a folder of images that nobody has segmented yet, to be annotated from scratch.

What is an image, and what is a DICOM whatever its name, `imaging.inputs` says, as for predict; so
are the frames of a DICOM called by its digest, and withheld where they may name the patient.
"""

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

from cmunet_jax.imaging import case as imaging
from cmunet_jax.imaging import inputs
from cmunet_jax.imaging.case import UnreadableCase
from cmunet_jax.imaging.dicom import SUFFIXES
from cmunet_jax.viewer import catalogue, confined, layers
from cmunet_jax.viewer.catalogue import Case, Catalogue, Frame
from cmunet_jax.viewer.confined import Unreadable
from tfds_angio import images
from tfds_angio.angio_folder import load
from tfds_angio.errors import UserError

_MAX_LIST, _MAX_IMAGES = 2**24, 100_000
_PERCENTILE = 0.1  # as angio_folder maps wide pixels to 8 bits, which the label's image then is


def of_images(source: pathlib.Path) -> Catalogue:
    """The catalogue of a folder of images and DICOM runs, or of a list with a column `path`.

    Relative paths of a list are taken from its folder, or else from where the command runs. A list
    may name any file; of a folder no link is followed out of it.

    Raises:
      UserError: if it is neither, or names no image.
    """
    home = None
    if source.is_dir():
        home = source.resolve()
        found = [_look(path, home) for path in sorted(inputs.files_of(source))]
    else:
        found = [_look(path, None) for path in _listed(source)]
    kept = [one for one in found if one is not None][:_MAX_IMAGES]
    if not kept:
        kinds = ", ".join(images.SUFFIXES)
        raise UserError(f"config.images={source} holds no image ({kinds}) and no DICOM.")
    named = [one for one in kept if isinstance(one, inputs.Input) and one.kind != "dicom"]
    called = zip(named, _names([one.path for one in named]), strict=True)
    names: dict[inputs.Input | inputs.Refused, str] = dict(called)
    taken = {name.casefold() for name in names.values()}
    opened = [_case(one, names.get(one, ""), home, taken) for one in kept]
    refused = iter(inputs.numbered([one for one in opened if isinstance(one, inputs.Refused)]))
    cases = tuple(one if isinstance(one, Case) else _nothing(next(refused)) for one in opened)
    told = [
        f"{one.path} -> {case.id}" + (f": {case.problem}" if case.problem else "")
        for one, case in zip(kept, cases, strict=True)
        if one not in names
    ]
    return Catalogue(cases, told=tuple(map(catalogue.sendable, told)))


def _case(
    one: inputs.Input | inputs.Refused, name: str, home: pathlib.Path | None, taken: set[str]
) -> Case | inputs.Refused:
    """A file as a case; `name` is an image's, `taken` as of `_run`."""
    if isinstance(one, inputs.Refused):
        return one
    return _run(one, home, taken) if one.kind == "dicom" else _image(one.path, name, home)


def _nothing(refused: inputs.Refused) -> Case:
    return Case(refused.input, "", 0, 0, (), 0, problem=refused.reason)


def _look(path: pathlib.Path, home: pathlib.Path | None) -> inputs.Input | inputs.Refused | None:
    """What a file is; one that leads out of `home` is judged by its name, and not opened."""
    if home is not None:
        try:
            confined.inside(home, path, "it")
        except Unreadable as error:
            if path.suffix.lower() in images.SUFFIXES:
                return inputs.Input(path, "image", "")
            dicom = not path.suffix or path.name.lower().endswith(SUFFIXES)
            return inputs.Refused(str(path), "a file", str(error)) if dicom else None
    return inputs.recognise(path, listed=home is None)


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


def _image(path: pathlib.Path, name: str, home: pathlib.Path | None) -> Case:
    problem = ""
    if home is not None:
        try:
            confined.inside(home, path, _shown(path))
        except Unreadable as error:
            problem = str(error)
    elif not path.is_file():
        problem = "the file does not exist"
    frame = Frame(
        0, name, {} if problem else {"frame": functools.partial(_read, path, home)}, {}, problem
    )
    return Case(name, "", 0, 0, (frame,), 1, problem=problem)


def _run(item: inputs.Input, home: pathlib.Path | None, taken: set[str]) -> Case | inputs.Refused:
    """The frames of a DICOM; `taken` are names of labels, to which theirs are added."""
    opener = None if home is None else functools.partial(_descriptor, item.path, home)
    try:
        found = inputs.distinct(inputs.open_case(item, opener=opener), taken)
    except UnreadableCase as error:
        return inputs.Refused(str(item.path), _label(item, home), str(error))
    problem = ""
    if found.burned_in:
        problem = "the picture is withheld: it may name the patient"
    elif _too_large(found.height, found.width):
        problem = _too_large(found.height, found.width)
    frames = tuple(
        Frame(
            index,
            name,
            {} if problem else {"frame": functools.partial(_frame, found, index)},
            {},
            problem,
        )
        for index, name in enumerate(inputs.frame_names(found))
    )
    size = found.spacing
    return Case(
        id=found.id,
        sha256=found.sha256,
        height=found.height,
        width=found.width,
        frames=frames,
        source_frames=found.frames,
        problem=problem,
        spacing_mm=(size.rows_mm, size.columns_mm) if size else None,
    )


def _label(item: inputs.Input, home: pathlib.Path | None) -> str:
    """What a DICOM that cannot be used is called: as by predict, if it lies in `home` now."""
    if home is None:
        return item.label
    try:
        with confined.opened(home, item.path, "it") as file:
            return f"dicom-{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
    except (Unreadable, OSError):
        return "a DICOM"


def _descriptor(path: pathlib.Path, home: pathlib.Path) -> int:
    """The opened file, if it lies in `home` now."""
    try:
        with confined.opened(home, path, "it") as file:
            return os.dup(file.fileno())
    except Unreadable as error:
        raise UnreadableCase(str(error)) from None


def _frame(case: imaging.Case, index: int) -> NDArray[np.uint8]:
    try:
        values = inputs.read_frame(case, index)
    except UnreadableCase as error:
        raise Unreadable(f"the frame cannot be read ({error})") from None
    return _grey(values)


def _too_large(height: int, width: int) -> str:
    """Why a picture is not shown, or ''."""
    if height * width <= layers.MAX_PIXELS and max(height, width) <= layers.MAX_SIDE:
        return ""
    return f"{height} × {width} pixels are more than can be shown"


def _shown(path: pathlib.Path) -> str:
    return repr(path.name[:80])


def _read(path: pathlib.Path, home: pathlib.Path | None) -> NDArray[np.uint8]:
    """The pixels; with `home`, links may have changed since it was listed, so it is asked anew."""
    try:
        with path.open("rb") if home is None else confined.opened(home, path, _shown(path)) as file:
            data = file.read(layers.MAX_BYTES + 1)
        if len(data) > layers.MAX_BYTES:
            raise Unreadable(f"the file is larger than {layers.MAX_BYTES >> 20} MiB")
        values = images.grey(images.decode(data, path.suffix))
    except (OSError, images.UnreadableImage) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unreadable(f"the image cannot be read ({reason})") from None
    return _grey(values)


def _grey(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """8 bits of each pixel [H, W], which a label's image then has."""
    height, width = values.shape
    if reason := _too_large(height, width):
        raise Unreadable(reason)
    finite = np.isfinite(values)
    if not finite.any():
        raise Unreadable("no pixel of it is a number")
    values = np.where(finite, values, np.median(values[finite])).astype(values.dtype)
    if values.min() == values.max():
        raise Unreadable("all of its pixels are equal")
    return load.to_uint8(values, percentile=_PERCENTILE)
