"""Writes the masks that the user paints, where `tfds_angio.angio_folder` reads labels.

FOLDER/imgs/NAME.png is the frame, FOLDER/masks/NAME.png the mask of 0 and 255, and
FOLDER/provenance.jsonl says of each mask what it was made from. Nothing else is ever written: the
folders are opened once a save, and what is written goes into those (`confined.Folder`), even where
a link has taken the place of one meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import secrets
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.viewer import confined, layers
from cmunet_jax.viewer.catalogue import NAME
from cmunet_jax.viewer.confined import Folder
from tfds_angio import images
from tfds_angio.errors import UserError

IMAGES, MASKS, LOG = "imgs", "masks", "provenance.jsonl"
NONE = "none"
"""In the place of a digest: there is no label."""
# What is looked at before a label is replaced is still so when it is.
_SAVING = threading.Lock()


class Refused(Exception):
    """A label that is not written; the message is the reason and the remedy."""


class Exists(Refused):
    """There is a label of that name, and nobody has said that this one may be replaced.

    `label` is its digest.
    """

    def __init__(self, reason: str, label: str) -> None:
        super().__init__(reason)
        self.label = label


def prepare(folder: pathlib.Path) -> None:
    """Makes the folders, and makes sure that they can be written before anybody paints.

    Raises:
      UserError: if they cannot, or lead elsewhere.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with confined.folder(folder) as home:
            for part in (IMAGES, MASKS):
                home.mkdir(part)
                with home.folder(part) as place:
                    probe = f".{secrets.token_hex(8)}"
                    os.close(place.create(probe))
                    place.unlink(probe)
    except confined.Linked as link:
        raise UserError(
            f"config.labels: {link.filename} is a link; labels need a folder."
        ) from None
    except OSError as error:
        raise UserError(
            f"config.labels={folder} cannot be written ({error.strerror}). "
            "Name another folder with --config.labels=FOLDER."
        ) from None


def _others(places: Mapping[str, Folder], name: str) -> list[str]:
    """Files of the same label in another format, of which a reader would take only one."""
    return [
        f"{part}/{name}{suffix}"
        for part, place in places.items()
        for suffix in images.SUFFIXES
        if suffix != ".png" and place.holds(f"{name}{suffix}")
    ]


def saved(folder: pathlib.Path, name: str) -> bool:
    """Whether there is a label of that name."""
    return (folder / MASKS / f"{name}.png").is_file()


def read(
    folder: pathlib.Path, name: str, frame: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], str]:
    """The saved mask of `frame` [H, W], 0 or 1, and the digest of its file.

    Raises:
      Unreadable: if there is none, or it belongs to another image.
    """
    limit = layers.MAX_BYTES
    image = layers.frame(confined.read(folder, f"{IMAGES}/{name}.png", limit=limit), frame.shape)
    if not np.array_equal(image, frame):
        raise confined.Unreadable(f"the label {name} belongs to another image")
    content = confined.read(folder, f"{MASKS}/{name}.png", limit=limit)
    return layers.mask(content, frame.shape), hashlib.sha256(content).hexdigest()


def _digest(folder: pathlib.Path, name: str) -> str:
    """SHA-256 of the file of a label; NONE where none can be read."""
    try:
        content = confined.read(folder, f"{MASKS}/{name}.png", limit=layers.MAX_BYTES)
    except confined.Unreadable:
        return NONE
    return hashlib.sha256(content).hexdigest()


def save(
    folder: pathlib.Path,
    name: str,
    frame: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    *,
    overwrite: bool,
    facts: Mapping[str, Any],
    known: str | None = None,
) -> str:
    """Writes one label; returns the digest of the mask's file.

    Args:
      folder: that `prepare` has made.
      name: as `catalogue.NAME`.
      frame: grey [H, W].
      mask: [H, W], 0 or 1.
      overwrite: whether a label of that name may be replaced.
      facts: what the mask was made from, for the log.
      known: the digest of the label that whoever saves has seen last, or NONE; None if not said.

    Raises:
      Exists: there is a label of that name, and not `overwrite`; or it is not the `known` one.
      Refused: the name, the mask or the folder does not allow it.
    """
    if not NAME.fullmatch(name):
        raise Refused(f"{name[:80]!r} is no name of a label")
    if mask.shape != frame.shape or mask.max(initial=0) > 1:
        raise Refused("the mask does not fit its frame")
    if mask.all():
        raise Refused("a mask without background is no label")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_SAVING)
        try:
            # Asked anew: a folder may have been exchanged for a link since `prepare`.
            home = stack.enter_context(confined.folder(folder))
            places = {part: stack.enter_context(home.folder(part)) for part in (IMAGES, MASKS)}
        except confined.Linked as link:
            name = pathlib.Path(link.filename).name
            what = f"{name} has become a link; put the folder back in its place"
            raise Refused(what) from None
        except OSError as error:
            raise Refused(f"the folder of labels cannot be opened: {error.strerror}") from None
        if others := _others(places, name):
            raise Refused(f"{others[0]} is there already, in another format; move it away first")
        file = f"{name}.png"
        there = _digest(folder, name)
        # Also where labels are replaced without a question: another's work is not what was meant.
        if known is not None and known != there:
            raise Exists(_changed(name, known, there), there)
        if not overwrite:
            if places[MASKS].holds(file, links=True):
                raise Exists(f"there is a label {name} already", there)
            if places[IMAGES].holds(file) and not _same(folder, name, frame):
                raise Exists(f"imgs/{file} is there already and is another image", there)
        content = layers.png(mask * np.uint8(255))
        # The mask comes last: there is never one without its image.
        _write(places[IMAGES], file, layers.png(frame), replace=True)
        _write(places[MASKS], file, content, replace=overwrite)
        digest = hashlib.sha256(content).hexdigest()
        _log(home, {"name": name, "mask_sha256": digest, **facts})
        return digest


def _changed(name: str, known: str, there: str) -> str:
    if known == NONE:
        return f"a label {name} has been saved elsewhere since this page was loaded"
    what = "been removed" if there == NONE else "changed"
    return f"the saved label {name} has {what} since this page loaded it"


def _same(folder: pathlib.Path, name: str, frame: NDArray[np.uint8]) -> bool:
    try:
        data = confined.read(folder, f"{IMAGES}/{name}.png", limit=layers.MAX_BYTES)
        return bool(np.array_equal(layers.frame(data, frame.shape), frame))
    except confined.Unreadable:
        return False


def _write(place: Folder, name: str, content: bytes, *, replace: bool) -> None:
    """Whole or not at all; without `replace` the system itself refuses to take another's place."""
    # Two savers are threads of one process: the name is no other's, so none removes another's.
    temporary = f".{name[:100]}.{secrets.token_hex(8)}"
    shown = f"{place.path.name}/{name}"
    try:
        handle = place.create(temporary)
    except OSError as error:
        raise Refused(f"{shown}: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        if replace:
            place.replace(name, by=temporary)
        else:
            place.link(name, to=temporary)
    except FileExistsError:
        # By another process, between the look and the writing.
        raise Exists(f"there is a label {name.removesuffix('.png')} already", NONE) from None
    except OSError as error:
        raise Refused(f"{shown}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            place.unlink(temporary)


def _log(home: Folder, row: Mapping[str, Any]) -> None:
    line = json.dumps(row, sort_keys=True) + "\n"
    try:
        # A link could lead out of the folder; one write of a line is not torn by another.
        handle = home.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)
    except OSError as error:
        raise Refused(
            f"the label is saved, but {LOG} cannot be written: {error.strerror}"
        ) from None
