"""Writes the files of a run: all of them beside their place first, then moved there together."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import psutil
from numpy.typing import NDArray

from cmunet_jax.predict import record
from tfds_angio.errors import UserError

PARTIAL, OWNER = ".partial", "process"
PROBABILITIES = ("png", "npz")


class Staging:
    """A folder of results in the making; see `stage`."""

    def __init__(self, folder: pathlib.Path):
        """`folder` is where the results will be."""
        self.folder = folder
        self.partial = folder / PARTIAL

    def path(self, relative: str) -> pathlib.Path:
        """Where to write what will be `relative` to the folder; its parent exists."""
        path = self.partial / relative
        path.parent.mkdir(exist_ok=True)
        return path

    def put(self, relative: str, data: bytes) -> str:
        """Writes a file; returns `relative`."""
        self.path(relative).write_bytes(data)
        return relative

    def forget(self, relative: str) -> None:
        """Removes a file of a case that failed later, if it was written."""
        (self.partial / relative).unlink(missing_ok=True)

    def publish(self, content: Mapping[str, Any]) -> None:
        """Moves all files to their place, and predictions.json last: with it they are complete.

        What an earlier run names goes with its predictions.json, and nothing else.
        """
        before = [record.FILE, *sorted(_named(self.folder))]
        aside = self.partial / "replaced"
        aside.mkdir()
        moved: list[tuple[pathlib.Path, pathlib.Path]] = []
        made: list[pathlib.Path] = []
        try:
            for number, name in enumerate(before):
                if (self.folder / name).is_file() and not (self.folder / name).parent.is_symlink():
                    os.replace(self.folder / name, aside / str(number))
                    moved.append((aside / str(number), self.folder / name))
            for name in record.FOLDERS:
                self._move_in(name, made)
            record.write(self.folder, content)
        except BaseException:
            for place in made:
                place.unlink(missing_ok=True)
            for kept, place in moved:
                os.replace(kept, place)
            raise

    def _move_in(self, name: str, made: list[pathlib.Path]) -> None:
        """Moves one folder's files to their place and notes in `made` where they are."""
        source = self.partial / name
        if not source.is_dir():
            return
        (self.folder / name).mkdir(exist_ok=True)
        for path in sorted(source.iterdir()):
            place = self.folder / name / path.name
            if place.exists():
                raise UserError(
                    f"{place} is no result of predict, so it is not replaced. Choose another "
                    "--workdir or move it."
                )
            os.replace(path, place)
            made.append(place)


@contextlib.contextmanager
def stage(folder: pathlib.Path, *, overwrite: bool) -> Iterator[Staging]:
    """Opens a folder for results, and clears what is unfinished when it is left in any way.

    A run that was killed leaves only FOLDER/.partial, which the next one removes: it starts again
    from the beginning. What an earlier run finished stays until `publish` replaces it.

    Args:
      folder: made if it does not exist.
      overwrite: whether results that are there may be replaced: the files that their
        predictions.json names.

    Raises:
      UserError: there are results, another run is writing, or nothing can be written.
    """
    staging = Staging(folder)
    try:
        if not overwrite and (there := _results(folder)):
            raise UserError(
                f"{folder} holds results already ({there}). Choose another --workdir, or replace "
                "them with --config.overwrite=True"
            )
        if overwrite and (foreign := _foreign(folder)):
            raise UserError(
                f"{folder} holds {foreign}, which no {record.FILE} there names, so it is not "
                "replaced. Choose another --workdir or move it."
            )
        if other := _running(staging.partial / OWNER):
            raise UserError(f"process {other} is predicting into {folder}. Choose another one.")
        if staging.partial.exists():
            shutil.rmtree(staging.partial)
        staging.partial.mkdir(parents=True)
        (staging.partial / OWNER).write_text(str(os.getpid()))
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        yield staging
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        shutil.rmtree(staging.partial, ignore_errors=True)


def _results(folder: pathlib.Path) -> str:
    """What of an earlier run is in a folder, or ''."""
    if (folder / record.FILE).exists():
        return record.FILE
    filled = (name for name in record.FOLDERS if (folder / name).exists())
    return next((f"{name}/" for name in filled if any((folder / name).iterdir())), "")


def _named(folder: pathlib.Path) -> set[str]:
    """The files, relative to a folder, that its predictions.json names; none without one."""
    try:
        content = record.read(folder)
    except UserError:
        return set()
    found: set[str] = set()

    def look(value: Any) -> None:
        if isinstance(value, Mapping):
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                look(item)
        elif isinstance(value, str):
            parts = value.split("/")
            if len(parts) == 2 and parts[0] in record.FOLDERS and parts[1] not in ("", ".", ".."):
                found.add(value)
                if parts[0] == "qca":  # Its tables and picture stand beside it.
                    stem = pathlib.PurePosixPath(parts[1]).stem
                    found.update(f"qca/{stem}{end}" for end in (".csv", "_segments.csv", ".png"))

    look(content["cases"])
    return found


def _foreign(folder: pathlib.Path) -> str:
    """A file in the folders of results that no earlier run names, or ''."""
    named = _named(folder)
    for name in record.FOLDERS:
        if (folder / name).is_dir():
            for path in sorted((folder / name).iterdir()):
                if f"{name}/{path.name}" not in named:
                    return f"{name}/{path.name}"
    return ""


def _running(owner: pathlib.Path) -> int:
    """The process that writes there now, 0 for none."""
    try:
        number = int(owner.read_text())
    except (OSError, ValueError):
        return 0
    return number if number != os.getpid() and psutil.pid_exists(number) else 0


def _unwritable(folder: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"--workdir {folder} cannot be written ({error.strerror or error}). "
        "Choose another one, make it writable or free space."
    )


def png(image: NDArray[Any]) -> bytes:
    """A grey or RGB image as PNG."""
    if image.ndim == 3:
        image = image[..., ::-1]  # OpenCV has BGR
    done, data = cv2.imencode(".png", np.ascontiguousarray(image))
    if not done:
        raise ValueError(f"an image of shape {image.shape} cannot be encoded")
    return data.tobytes()


def put_probability(
    staging: Staging, name: str, probability: NDArray[np.float32], *, kind: str
) -> str:
    """Writes a probability map as 16-bit PNG (0..65535 = 0..1) or as NPZ (exact)."""
    if kind == "npz":
        relative = f"probabilities/{name}.npz"
        np.savez_compressed(staging.path(relative), probability=probability)
        return relative
    levels = np.rint(probability * np.float32(65535)).astype(np.uint16)
    return staging.put(f"probabilities/{name}.png", png(levels))


class StoredMasks(Mapping[int, NDArray[np.bool_]]):
    """Masks that were written, read back one at a time."""

    def __init__(self, staging: Staging, paths: Mapping[int, str]):
        """`paths`: frame index -> path of its mask."""
        self._staging = staging
        self._paths = dict(paths)

    def __getitem__(self, index: int) -> NDArray[np.bool_]:
        """The mask bool [H, W] of a frame."""
        return record.read_mask(self._staging.partial / self._paths[index])

    def __iter__(self) -> Iterator[int]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def to_json(content: Any) -> bytes:
    """Compact JSON; NaN is an error."""
    return (json.dumps(content, allow_nan=False) + "\n").encode()
