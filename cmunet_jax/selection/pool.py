"""The images to choose from: of a built data set, or of a folder of image files and DICOM runs.

Which files are DICOMs, whatever they are called, `imaging.inputs` says, as for predict; so are
their frames called by a digest, and left out where they may name the patient. A pool is in the
order of its ids, so that nothing depends on how files happen to be listed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.imaging import inputs
from cmunet_jax.imaging.case import Case, UnreadableCase
from cmunet_jax.selection import dicoms
from tfds_angio.angio_folder import identity, load, scan
from tfds_angio.angio_folder.problems import Problem
from tfds_angio.base import AngioDataset
from tfds_angio.errors import UserError
from tfds_angio.paths import absolute

PERCENTILE = 0.1  # that of angio_folder: what is chosen looks as it will in training


class Unreadable(Exception):
    """An image that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
      id: as in the data set; the path in the folder without its extension; of a DICOM, whose path
        may name the patient, that which predict gives to its frame.
      patient: patient, or run where no patient is known; '' where neither is.
      centre: '' where unknown.
      labelled: whether it has its annotation already.
      path: of the file; None in a data set, and of a frame of a DICOM.
    """

    id: str
    patient: str
    centre: str
    labelled: bool
    path: Path | None = None


@dataclass(frozen=True)
class Picture:
    """What was read: grey uint8 [H, W], and the SHA-256 (hex) of the file, '' in a data set."""

    image: NDArray[np.uint8]
    sha256: str


@dataclass(frozen=True)
class Pool:
    """Images in the order of their ids.

    Attributes:
      items: what is known without reading an image.
      read: position -> `Picture`; raises `Unreadable`; may be called from several threads.
      about: where they are from, for the record.
      problems: what was irregular about the files, by their names: for the screen only.
      failed: (id, reason) of DICOMs that cannot be used.
      names: (path, id) of those that can, for the screen only.
    """

    items: tuple[Item, ...]
    read: Callable[[int], Picture]
    about: Mapping[str, Any]
    problems: tuple[Problem, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    names: tuple[tuple[str, str], ...] = ()

    def take(self, positions: Sequence[int]) -> Pool:
        """The pool without the images at other positions; `positions` ascend."""
        kept = [int(at) for at in positions]
        read = self.read
        return replace(self, items=tuple(self.items[i] for i in kept), read=lambda i: read(kept[i]))

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which images have their annotation, bool [N]."""
        return np.array([item.labelled for item in self.items], bool)


def of_dataset(dataset: AngioDataset, split: str, *, masks: str) -> Pool:
    """The images of a split; those of any part but `unlabelled` have masks.

    Args:
      dataset: opened.
      split: of it, also 'a+b'.
      masks: 'labelled', or 'ignore' to choose among images that are labelled in truth.

    Raises:
      UserError: no such split, or it is empty.
    """
    ids = dataset.ids(split)
    parts = [part.strip() for part in split.split("+") if part.strip() in dataset.sizes]
    has_mask = [part != "unlabelled" for part in parts for _ in range(dataset.sizes[part])]
    columns = zip(ids, dataset.groups(split), dataset.centres(split), has_mask, strict=True)
    found = [Item(i, group, centre, masks == "labelled" and m) for i, group, centre, m in columns]
    order = sorted(range(len(found)), key=lambda at: found[at].id)
    source = dataset.source(split)

    def read(position: int) -> Picture:
        return Picture(np.asarray(source[order[position]]["image"])[..., 0], "")

    about = {
        "kind": "data set",
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "split": split,
        "splits": dataset.splits,
    }
    return Pool(tuple(found[at] for at in order), read, about)


def of_folder(folder: str | Path, *, pattern: str, manifest: str = "", masks: str) -> Pool:
    """The images and DICOM runs below a folder, or below its `imgs/` beside which `masks/` may lie.

    Args:
      folder: of image files (`tfds_angio.images.SUFFIXES`) and DICOMs, of which each frame is one.
      pattern: regular expression with a group `patient`, for images that the manifest lacks. The
        frames of a DICOM that it lacks are of one patient.
      manifest: CSV with the columns file, patient, centre; '' for none.
      masks: 'labelled' or 'ignore': whether an image with a mask has its annotation.

    Raises:
      UserError: no such folder, no image in it, or a pattern or manifest that cannot be used.
    """
    root = absolute(folder)
    if not root.is_dir():
        raise UserError(f"config.input={folder} is no folder: name the one that holds the images.")
    images_folder = "imgs" if (root / "imgs").is_dir() else "."
    runs = dicoms.find(root / images_folder, without=root / "masks")
    try:
        entries, problems = scan.scan(
            root, images_folder=images_folder, masks_folder="masks", mask_suffix=""
        )
    except UserError:  # no image file
        if not runs.cases:
            raise
        entries, problems = [], []
    entries = [entry for entry in entries if not runs.holds(entry.image)]
    if images_folder == ".":
        entries = [entry for entry in entries if not entry.id.startswith("masks/")]
    listed = Path(manifest).expanduser() if manifest else None
    # DICOMs are looked up in the manifest, too, but their names are not searched for patients.
    files = [scan.Entry(case.id, case.path, None) for case in runs.cases]
    who, more = identity.identify(
        [*entries, *files], pattern=pattern, manifest=listed, root=root, images_folder=images_folder
    )
    known: dict[str, identity.Identity] = {}
    if listed and files:
        known, _ = identity.read_manifest(listed, files, root=root, images_folder=images_folder)
    found: list[tuple[Item, Callable[[], Picture]]] = []
    for entry in entries:
        labelled = masks == "labelled" and entry.mask is not None
        person = who[entry.id]
        item = Item(entry.id, person.patient, person.centre, labelled, entry.image)
        found.append((item, functools.partial(_read, item, root)))
    taken = {entry.id.casefold() for entry in entries}
    names = []
    for case in runs.cases:
        person = known.get(case.id, identity.Identity())
        named = inputs.distinct(case, taken)
        names.append((str(case.path), named.id))
        for index, name in enumerate(inputs.frame_names(named)):
            item = Item(name, person.patient or case.id, person.centre, False)
            found.append((item, functools.partial(_read_frame, case, index)))
    found.sort(key=lambda pair: pair[0].id)
    # Masks and images without one are what the pool is made of, not irregularities; that a DICOM
    # has no name to find a patient in is none, either.
    told = [p for p in (*problems, *more) if p.severity != "info" and not runs.holds(root / p.file)]
    about = {"kind": "folder", "folder": str(root), "pattern": pattern, "manifest": manifest}
    if runs.cases or runs.failed:  # folders of DICOMs, too, are often called like the patient
        about |= {"folder": "", "manifest": ""}
    return Pool(
        tuple(item for item, _ in found),
        lambda at: found[at][1](),
        about,
        (*told, *runs.problems(root)),
        runs.failed,
        tuple(names),
    )


def _read(item: Item, root: Path) -> Picture:
    assert item.path is not None
    loaded = load.load(scan.Entry(item.id, item.path, None), root=root, percentile=PERCENTILE)
    if loaded.image is None:
        raise Unreadable(loaded.problems[0].problem)
    try:
        return Picture(loaded.image, hashlib.sha256(item.path.read_bytes()).hexdigest())
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from error


def _read_frame(case: Case, index: int) -> Picture:
    try:
        values = inputs.read_frame(case, index)
    except UnreadableCase as error:
        raise Unreadable(str(error)) from None
    if min(values.shape) < load.MIN_SIDE:
        sides = f"{values.shape[0]} × {values.shape[1]}"
        raise Unreadable(f"{sides} pixels, fewer than {load.MIN_SIDE}")
    if values.min() == values.max():
        raise Unreadable(f"constant image, all pixels are {values.flat[0]}")
    return Picture(load.to_uint8(values, percentile=PERCENTILE), case.sha256)


def mark_labelled(pool: Pool, ids: Sequence[str], *, path: str) -> Pool:
    """The pool in which the images of `ids` count as labelled too.

    Args:
      pool: to choose from.
      ids: of it.
      path: of the file that lists them, for the message.

    Raises:
      UserError: an id that the pool does not hold.
    """
    unknown = sorted(set(ids) - {item.id for item in pool.items})
    if unknown:
        raise UserError(
            f"config.labelled={path}: {len(unknown)} of its {len(ids)} ids are not in the pool, "
            f"the first is '{unknown[0]}'. Ids look like '{pool.items[0].id}'; a split that holds "
            "them belongs into config.split."
        )
    known = set(ids)
    items = (replace(i, labelled=i.labelled or i.id in known) for i in pool.items)
    return replace(pool, items=tuple(items))
