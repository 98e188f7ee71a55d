"""Prepares a split once and keeps it: codes, masks and geometries of every image."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmunet_jax.data import cache
from cmunet_jax.data.geometry import Geometry
from cmunet_jax.data.preprocessing import Preprocessing
from tfds_angio.base import AngioDataset, default_workers, parallel_map
from tfds_angio.errors import UserError

_FORMAT = 1  # of the stored arrays; the numbers themselves are versioned by Preprocessing
_CHUNK = 16  # images a task: a task has a cost of its own
_IMAGES_WORTH_A_WORKER = 100  # below, starting a process takes longer than it saves


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedSplit:
    """A split as the network sees it; example i is row i of every array. Read-only.

    Attributes:
      name: of the data set.
      split: of the data set, e.g. ``train+unlabelled``.
      digest: of everything that the arrays depend on.
      code: uint8 or uint16 [N, S, S].
      scale: float32 [N].
      offset: float32 [N].
      mask: uint8 0/1 [N, S, S], or None if prepared without masks.
      ids: of the images.
      patients: of the images; '' unknown.
      geometries: of the images.
    """

    name: str
    split: str
    digest: str
    code: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    mask: np.ndarray | None
    ids: list[str]
    patients: list[str]
    geometries: list[Geometry]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def arrays(self) -> dict[str, np.ndarray]:
        """What ``gather`` takes, to be put on the device: code, scale, offset and any mask."""
        arrays = {"code": self.code, "scale": self.scale, "offset": self.offset}
        return arrays if self.mask is None else {**arrays, "mask": self.mask}

    @property
    def nbytes(self) -> int:
        """Bytes that ``arrays()`` takes on a device."""
        return sum(array.nbytes for array in self.arrays().values())

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Example ``index`` as one row of a raw batch."""
        row = {name: array[index] for name, array in self.arrays().items()}
        return {**row, "index": np.int32(index)}

    def __getstate__(self) -> dict[str, Any]:
        """Arrays that lie in the cache travel to other processes by their path."""
        return {
            name: Path(str(value.filename)) if isinstance(value, np.memmap) else value
            for name, value in self.__dict__.items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Maps them again."""
        for name, value in state.items():
            array = np.load(value, mmap_mode="r") if isinstance(value, Path) else value
            object.__setattr__(self, name, array)


class OnTheFly:
    """The same rows as ``PreparedSplit``, prepared at every access; for sets too large to keep.

    Picklable, random access, no state but open readers.
    """

    def __init__(
        self,
        dataset: AngioDataset,
        split: str,
        preprocessing: Preprocessing,
        *,
        ids: Sequence[str] | None = None,
        with_masks: bool = True,
    ):
        """See ``prepare`` for the arguments and errors."""
        self.positions = positions(dataset, split, ids)
        self._source = dataset.source(split)
        self._preprocessing = preprocessing
        self._with_masks = with_masks

    def __len__(self) -> int:
        """Number of images."""
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Example ``index`` as one row of a raw batch."""
        example = self._source[self.positions[index]]
        row, _ = prepare_example(example, self._preprocessing, self._with_masks)
        return {**row, "index": np.int32(index)}

    def __repr__(self) -> str:
        """For Grain's logs."""
        return f"OnTheFly({self._source!r}, {self._preprocessing!r})"


def positions(dataset: AngioDataset, split: str, ids: Sequence[str] | None) -> list[int]:
    """Places of ``ids`` in the split, in the order of ``ids`` (all of them for None).

    Raises:
      UserError: if the split is empty, or an id is unknown or repeated.
    """
    known = dataset.ids(split)
    if not known or (ids is not None and not len(ids)):
        raise UserError(f"split '{split}' of {dataset.name} holds no images: choose another")
    if ids is None:
        return list(range(len(known)))
    if len(set(ids)) != len(ids):
        raise UserError(f"ids are repeated in the subset of '{split}': name each image once")
    place = {name: position for position, name in enumerate(known)}
    unknown = [name for name in ids if name not in place]
    if unknown:
        raise UserError(
            f"{len(unknown)} ids are not in split '{split}' of {dataset.name}, "
            f"the first is '{unknown[0]}': was the data set rebuilt?"
        )
    return [place[name] for name in ids]


def prepare_example(
    example: Mapping[str, Any], preprocessing: Preprocessing, with_masks: bool
) -> tuple[dict[str, Any], Geometry]:
    """One decoded example -> its row {code, scale, offset, mask?} and its geometry.

    Raises:
      UserError: naming the image, if it cannot be prepared or its mask is missing.
    """
    try:
        prepared = preprocessing.apply(example["image"])
        row: dict[str, Any] = {
            "code": prepared.code,
            "scale": np.float32(prepared.scale),
            "offset": np.float32(prepared.offset),
        }
        if with_masks:
            if not example["has_mask"]:
                raise UserError("it has no mask: use a labelled split")
            row["mask"] = preprocessing.apply_mask(example["mask"], prepared.geometry)
    except UserError as error:
        raise UserError(f"image '{example['id']}': {error}") from error
    return row, prepared.geometry


def _prepare_chunk(
    chunk: Sequence[int], *, source: Any, preprocessing: Preprocessing, with_masks: bool
) -> dict[str, np.ndarray]:
    """A task of the pool: rows of some positions, stacked."""
    rows: dict[str, list[np.ndarray]] = {}
    for position in chunk:
        row, window = prepare_example(source[position], preprocessing, with_masks)
        for name, value in {**row, "geometry": window.to_array()}.items():
            rows.setdefault(name, []).append(value)
    return {name: np.stack(values) for name, values in rows.items()}


def prepare(
    dataset: AngioDataset,
    split: str,
    preprocessing: Preprocessing,
    *,
    ids: Sequence[str] | None = None,
    with_masks: bool = True,
    workers: int | None = None,
    progress: bool = True,
    cache_dir: str | Path | None = None,
) -> PreparedSplit:
    """Prepares all images of a split, or loads them where that was done before.

    The result is kept in ``cache_dir`` under a digest of the data set's content, the ids, the
    preprocessing and the code's version. A damaged entry is noticed and made again. Where the
    folder cannot be written to, nothing is kept.

    Args:
      dataset: an open data set.
      split: e.g. ``train`` or ``train+unlabelled``.
      preprocessing: the chain to apply.
      ids: a subset, and its order; all for None.
      with_masks: whether to prepare masks; every image must then have one.
      workers: processes; None for as many as pay.
      progress: whether to draw a progress bar.
      cache_dir: default ``prepared/`` inside the data set's folder.

    Raises:
      UserError: if the split is empty, an id unknown or repeated, a mask missing, or an image
        unusable (by name).
    """
    chosen = positions(dataset, split, ids)
    names, patients = dataset.ids(split), dataset.patients(split)
    identity: dict[str, Any] = {
        "dataset": dataset.fingerprint,
        "split": split,
        "ids": [names[position] for position in chosen],
        "preprocessing": preprocessing.digest,
        "masks": with_masks,
        "format": _FORMAT,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = Path(cache_dir) if cache_dir else dataset.directory / "prepared"
    arrays = cache.load(folder, digest)
    if arrays is None:
        if workers is None:
            workers = min(default_workers(), len(chosen) // _IMAGES_WORTH_A_WORKER)
        task = functools.partial(
            _prepare_chunk,
            source=dataset.source(split),
            preprocessing=preprocessing,
            with_masks=with_masks,
        )
        label = f"preparing {dataset.name} {split}"
        arrays = _run(task, chosen, workers=workers, progress=progress, label=label)
        arrays = cache.save(folder, digest, arrays)
    return PreparedSplit(
        name=dataset.name,
        split=split,
        digest=digest,
        code=arrays["code"],
        scale=arrays["scale"],
        offset=arrays["offset"],
        mask=arrays.get("mask"),
        ids=identity["ids"],
        patients=[patients[position] for position in chosen],
        geometries=[Geometry.from_array(row) for row in arrays["geometry"]],
    )


def _run(
    task: Any, chosen: Sequence[int], *, workers: int, progress: bool, label: str
) -> dict[str, np.ndarray]:
    """Runs the task over chunks and fills arrays [N, ...] in place, so memory is held once."""
    chunks = [chosen[start : start + _CHUNK] for start in range(0, len(chosen), _CHUNK)]
    arrays: dict[str, np.ndarray] = {}
    results = parallel_map(task, chunks, workers=workers, progress=progress, label=label)
    for number, rows in enumerate(results):
        for name, values in rows.items():
            if name not in arrays:
                arrays[name] = np.empty((len(chosen), *values.shape[1:]), values.dtype)
            arrays[name][number * _CHUNK : number * _CHUNK + len(values)] = values
    return arrays
