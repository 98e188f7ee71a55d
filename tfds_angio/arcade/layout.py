"""The official archive, as a folder or as the zip: where its files are and what they say."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import zipfile
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tfds_angio import images
from tfds_angio.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")
PARTS = ("train", "val", "test")
_ANCHOR = "syntax/train/annotations/train.json"


@dataclasses.dataclass(frozen=True)
class Archive:
    """Read access to the archive; picklable.

    Attributes:
      path: folder or zip file.
      prefix: what precedes 'syntax/…' in the names ('' or 'arcade/').
    """

    path: Path
    prefix: str = ""

    def names(self) -> list[str]:
        """All file names, relative to the folder that holds `syntax` and `stenosis`."""
        return [n.removeprefix(self.prefix) for n in _names(self.path) if n.startswith(self.prefix)]

    def read(self, name: str) -> bytes:
        """Content of a file. UserError when it is damaged or gone."""
        try:
            if self.path.is_dir():
                return (self.path / self.prefix / name).read_bytes()
            return _zip(self.path).read(self.prefix + name)
        except (OSError, KeyError, zipfile.BadZipFile, zlib_error()) as error:
            raise UserError(f"{self.path}: {name} cannot be read ({error})") from error


def zlib_error() -> type[Exception]:
    """Zipfile lets errors of its decompressor through."""
    import zlib

    return zlib.error


@functools.lru_cache(maxsize=1)
def _zip(path: Path) -> zipfile.ZipFile:
    # One open handle a process: reading the directory of the archive takes longer than an image.
    return zipfile.ZipFile(path)


def _names(path: Path) -> list[str]:
    if path.is_dir():
        files = [f for f in path.glob("**/*") if f.is_file()]
        return sorted(f.relative_to(path).as_posix() for f in files)
    with zipfile.ZipFile(path) as archive:
        return sorted(n for n in archive.namelist() if not n.startswith("__MACOSX/"))


def signature(archive: Archive) -> str:
    """sha256 over name and size of all images and annotation files.

    Nothing is read but the folders, or the directory of the zip; so it is the same for the archive
    packed and unpacked, and in any place.
    """
    names = [
        n
        for n in archive.names()
        if n.startswith(("syntax/", "stenosis/"))
        and PurePosixPath(n).suffix.lower() in (*SUFFIXES, ".json")
    ]
    if archive.path.is_dir():
        sizes = [(archive.path / archive.prefix / n).stat().st_size for n in names]
    else:
        with zipfile.ZipFile(archive.path) as packed:
            sizes = [packed.getinfo(archive.prefix + n).file_size for n in names]
    lines = [f"{name}\0{size}" for name, size in zip(names, sizes, strict=True)]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def open_archive(path: Path) -> Archive:
    """Finds the archive in a folder or zip. UserError when it is not the official layout."""
    if path.is_file() and not zipfile.is_zipfile(path):
        raise UserError(f"{path} is neither a folder nor a zip archive (or is damaged)")
    anchors = [n for n in _names(path) if n == _ANCHOR or n.endswith("/" + _ANCHOR)]
    if not anchors:
        raise UserError(f"{path} holds no {_ANCHOR}; give the unpacked arcade folder or arcade.zip")
    return Archive(path, min(anchors, key=len).removesuffix(_ANCHOR))


@dataclasses.dataclass(frozen=True)
class Record:
    """One image of the archive.

    Attributes:
      id: '<task>_<part>_<stem>', e.g. 'syntax_val_12'.
      name: its file in the archive.
      polygons: (class 1…25, float64 [n, 2] x, y in pixels) in the order of the file; empty when
        the image has no annotation.
    """

    id: str
    name: str
    polygons: tuple[tuple[int, np.ndarray], ...] = ()

    @property
    def area(self) -> float:
        """Sum of the areas of the polygons, in square pixels."""
        total = 0.0
        for _, xy in self.polygons:
            x, y = xy[:, 0], xy[:, 1]
            total += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
        return total


def _image_files(archive: Archive, names: list[str], task: str, part: str) -> dict[str, str]:
    folder = f"{task}/{part}/images/"
    found: dict[str, str] = {}
    for name in names:
        path = PurePosixPath(name)
        if name.startswith(folder) and path.suffix.lower() in SUFFIXES:
            found.setdefault(path.stem, name)
    return dict(sorted(found.items(), key=lambda kv: (len(kv[0]), kv[0])))


def _annotations(archive: Archive, name: str) -> dict[str, Any]:
    try:
        content = json.loads(archive.read(name))
        return {key: content[key] for key in ("images", "annotations", "categories")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{archive.path}: {name} is not a COCO annotation file") from error


def _polygons(annotation: dict[str, Any], name: str) -> list[np.ndarray]:
    parts = annotation["segmentation"]
    if not isinstance(parts, list):
        raise UserError(
            f"{name}: annotation {annotation.get('id')} is no polygon; ARCADE has only those"
        )
    polygons = [np.asarray(part, np.float64).reshape(-1, 2) for part in parts]
    return [xy for xy in polygons if len(xy) >= 3 and np.isfinite(xy).all()]


def read_part(archive: Archive, task: str, part: str) -> list[Record]:
    """Images of one part; empty when the archive has no such part.

    Vessel classes are 1…25. Category 26 ('stenosis') outlines lesions, partly beyond the lumen, so
    it is never vessel area here.
    """
    names = archive.names()
    files = _image_files(archive, names, task, part)
    json_name = f"{task}/{part}/annotations/{part}.json"
    if not files:
        return []
    if task == "stenosis":  # used without its annotations
        return [Record(f"{task}_{part}_{stem}", name) for stem, name in files.items()]
    if json_name not in names:
        raise UserError(f"{archive.path} holds no {json_name}")
    content = _annotations(archive, json_name)
    classes = {c["id"]: c["name"] for c in content["categories"]}
    by_image: dict[Any, list[tuple[int, np.ndarray]]] = defaultdict(list)
    for annotation in content["annotations"]:
        category = annotation["category_id"]
        if classes.get(category) == "stenosis" or not 1 <= category <= 25:
            continue
        for xy in _polygons(annotation, json_name):
            by_image[annotation["image_id"]].append((int(category), xy))
    stems = {PurePosixPath(i["file_name"]).stem: i["id"] for i in content["images"]}
    gone = sorted(set(stems) - set(files))
    if gone:
        raise UserError(f"{archive.path}: {task}/{part} lacks {len(gone)} images, e.g. {gone[0]}")
    return [
        Record(f"{task}_{part}_{stem}", name, tuple(by_image.get(stems.get(stem), ())))
        for stem, name in files.items()
    ]


def load_image(archive: Archive, record: Record) -> np.ndarray:
    """uint8 [H, W]. UserError when the file is damaged or not 8-bit."""
    try:
        array = images.grey(
            images.decode(archive.read(record.name), PurePosixPath(record.name).suffix)
        )
    except images.UnreadableImage as error:
        raise UserError(f"{archive.path}: {record.name}: {error}") from error
    if array.dtype != np.uint8:
        raise UserError(f"{archive.path}: {record.name} is {array.dtype}, expected 8 bits")
    return array
