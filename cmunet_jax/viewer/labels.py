"""Writes the masks that the user paints, where `tfds_angio.angio_folder` reads labels.

FOLDER/imgs/NAME.png is the frame, FOLDER/masks/NAME.png the mask of 0 and 255, and
FOLDER/provenance.jsonl says of each mask what it was made from. Nothing else is ever written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.viewer import confined, layers
from cmunet_jax.viewer.catalogue import NAME
from tfds_angio import images
from tfds_angio.errors import UserError

IMAGES, MASKS, LOG = "imgs", "masks", "provenance.jsonl"


class Refused(Exception):
    """A label that is not written; the message is the reason and the remedy."""


class Exists(Refused):
    """There is a label of that name, and nobody has said that it may be replaced."""


def prepare(folder: pathlib.Path) -> None:
    """Makes the folders, and makes sure that they can be written before anybody paints.

    Raises:
      UserError: if they cannot, or lead elsewhere.
    """
    try:
        for part in (IMAGES, MASKS):
            (folder / part).mkdir(parents=True, exist_ok=True)
        if link := _link(folder):
            raise UserError(f"config.labels: {link} is a link; labels need a folder.")
        for part in (IMAGES, MASKS):
            probe = folder / part / f".{secrets.token_hex(8)}"
            os.close(_create(probe))
            probe.unlink()
    except OSError as error:
        raise UserError(
            f"config.labels={folder} cannot be written ({error.strerror}). "
            "Name another folder with --config.labels=FOLDER."
        ) from None


def _link(folder: pathlib.Path) -> pathlib.Path | None:
    """Which of the folders is a link, through which files would be written elsewhere."""
    places = (folder, folder / IMAGES, folder / MASKS)
    return next((place for place in places if place.is_symlink()), None)


def _create(path: pathlib.Path) -> int:
    """A new file to write; what has its name already is neither opened nor followed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o666)


def _others(folder: pathlib.Path, name: str) -> list[str]:
    """Files of the same label in another format, of which a reader would take only one."""
    return [
        f"{part}/{name}{suffix}"
        for part in (IMAGES, MASKS)
        for suffix in images.SUFFIXES
        if suffix != ".png" and (folder / part / f"{name}{suffix}").exists()
    ]


def saved(folder: pathlib.Path, name: str) -> bool:
    """Whether there is a label of that name."""
    return (folder / MASKS / f"{name}.png").is_file()


def read(folder: pathlib.Path, name: str, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The saved mask of `frame` [H, W], 0 or 1.

    Raises:
      Unreadable: if there is none, or it belongs to another image.
    """
    limit = layers.MAX_BYTES
    image = layers.frame(confined.read(folder, f"{IMAGES}/{name}.png", limit=limit), frame.shape)
    if not np.array_equal(image, frame):
        raise confined.Unreadable(f"the label {name} belongs to another image")
    return layers.mask(confined.read(folder, f"{MASKS}/{name}.png", limit=limit), frame.shape)


def save(
    folder: pathlib.Path,
    name: str,
    frame: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    *,
    overwrite: bool,
    facts: Mapping[str, Any],
) -> None:
    """Writes one label.

    Args:
      folder: that `prepare` has made.
      name: as `catalogue.NAME`.
      frame: grey [H, W].
      mask: [H, W], 0 or 1.
      overwrite: whether a label of that name may be replaced.
      facts: what the mask was made from, for the log.

    Raises:
      Exists: there is a label of that name, and not `overwrite`.
      Refused: the name, the mask or the folder does not allow it.
    """
    if not NAME.fullmatch(name):
        raise Refused(f"{name[:80]!r} is no name of a label")
    if mask.shape != frame.shape or mask.max(initial=0) > 1:
        raise Refused("the mask does not fit its frame")
    if mask.all():
        raise Refused("a mask without background is no label")
    # Asked anew: a folder may have been exchanged for a link since `prepare`.
    if link := _link(folder):
        raise Refused(f"{link.name} has become a link; put the folder back in its place")
    if others := _others(folder, name):
        raise Refused(f"{others[0]} is there already, in another format; move it away first")
    image, drawn = (folder / part / f"{name}.png" for part in (IMAGES, MASKS))
    if not overwrite:
        if drawn.exists() or drawn.is_symlink():
            raise Exists(f"there is a label {name} already")
        if image.exists() and not _same(image, frame):
            raise Exists(f"imgs/{name}.png is there already and is another image")
    content = layers.png(mask * np.uint8(255))
    # The mask comes last: there is never one without its image.
    _write(image, layers.png(frame), replace=True)
    _write(drawn, content, replace=overwrite)
    _log(folder, {"name": name, "mask_sha256": hashlib.sha256(content).hexdigest(), **facts})


def _same(path: pathlib.Path, frame: NDArray[np.uint8]) -> bool:
    try:
        data = confined.read(path.parent, path.name, limit=layers.MAX_BYTES)
        return bool(np.array_equal(layers.frame(data, frame.shape), frame))
    except confined.Unreadable:
        return False


def _write(path: pathlib.Path, content: bytes, *, replace: bool) -> None:
    """Whole or not at all; without `replace` the system itself refuses to take another's place."""
    # Two savers are threads of one process: the name is no other's, so none removes another's.
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}")
    try:
        handle = _create(temporary)
    except OSError as error:
        raise Refused(f"{path.parent.name}/{path.name}: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    except FileExistsError:
        raise Exists(f"there is a label {path.stem} already") from None
    except OSError as error:
        raise Refused(f"{path.parent.name}/{path.name}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _log(folder: pathlib.Path, row: Mapping[str, Any]) -> None:
    path = folder / LOG
    line = json.dumps(row, sort_keys=True) + "\n"
    try:
        # A link could lead out of the folder; one write of a line is not torn by another.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        handle = os.open(path, flags, 0o666)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)
    except OSError as error:
        raise Refused(
            f"the label is saved, but {LOG} cannot be written: {error.strerror}"
        ) from None
