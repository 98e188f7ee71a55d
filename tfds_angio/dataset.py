"""A built data set: ids and patients from its index, examples by random access."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfds_angio.builder import SPLITS
from tfds_angio.errors import UserError

INDEX = "index.json"
_COLUMNS = ("ids", "patients", "centres")


class Source:
    """Random access to the decoded examples of a split; picklable, opened at first use.

    `source[i]` is a dict: image uint8 [H, W, 1], mask uint8 [H, W, 1] in {0, 1}, has_mask bool,
    id, patient, centre str, and the data set's own features.
    """

    def __init__(self, directory: Path, split: str, length: int):
        self._directory = directory
        self._split = split
        self._length = length

    @functools.cached_property
    def _records(self) -> Any:
        builder = tfds.builder_from_directory(self._directory)
        records = builder.as_data_source(self._split)
        if len(records) != self._length:
            raise ValueError(f"{len(records)} records, of {self._length}")
        return records

    def __len__(self) -> int:
        """Number of examples."""
        return self._length

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """Decodes one example; negative indices count from the end. UserError if damaged."""
        position = int(index)
        if not -self._length <= position < self._length:
            raise IndexError(f"index {position} of {self._length} examples of {self._split}")
        try:
            return _plain(self._records[position % self._length])
        except MemoryError:
            raise
        except Exception as error:  # TFDS, ArrayRecord and protobuf have kinds of their own.
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            what = f"example {position} of {self._split} in {self._directory}"
            raise _damaged(what, text) from error

    def __getitems__(self, indices: Any) -> list[dict[str, Any]]:
        """Several examples at once."""
        return [self[index] for index in indices]

    def __getstate__(self) -> dict[str, Any]:
        """Without the open readers, which cannot travel to another process."""
        return {name: v for name, v in self.__dict__.items() if name != "_records"}

    def __repr__(self) -> str:
        """For logs (Grain prints its sources)."""
        return f"Source({str(self._directory)!r}, {self._split!r}, {self._length})"


def _plain(example: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for name, value in example.items():
        if isinstance(value, bytes):
            value = value.decode("utf-8")
        elif isinstance(value, np.bool_):
            value = bool(value)
        out[name] = value
    return out


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turns what a damaged file of ours does to its reader into one line with the remedy."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _check_types(name: Any, fingerprint: Any, groups: Any, splits: Any) -> None:
    """ValueError where an index is JSON, but not of the kind that a build writes."""
    columns = [part[key] for part in splits.values() for key in _COLUMNS]
    if not all(isinstance(column, list) for column in columns):
        raise ValueError("a column is no list")
    texts = [name, fingerprint, *groups.values(), *(text for column in columns for text in column)]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a name is no text")


def _damaged(what: object, why: str) -> UserError:
    return UserError(
        f"{what} is damaged ({why}); build the data set again: its "
        "`python -m tfds_angio.build` command with --rebuild"
    )


class AngioDataset:
    """A data set on disk, opened by `open_dataset`.

    Attributes:
      name: TFDS `name` or `name/config`.
      directory: the version folder that holds the records, index.json and splits/.
      fingerprint: sha256 over splits, ids and decoded content; the same on every machine and for
        every worker count.
      sizes: images in every non-empty split.

      left_out: ids that are in no split of a divided set, with the reason.
      splits: 'built', or the rule by which `resplit.resplit` has divided the images anew.

    Raises:
      UserError: index.json is damaged.
    """

    splits: str = "built"
    left_out: Mapping[str, str] = MappingProxyType({})

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        path = self.directory / INDEX
        with _whole(path):
            self._index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self.name: str = self._index["name"]
            self.fingerprint: str = self._index["fingerprint"]
            # Absent where a build is older than the record of its groups.
            self._groups: dict[str, str] | None = self._index.get("groups")
            self._splits: dict[str, dict[str, list[str]]] = self._index["splits"]
            _check_types(self.name, self.fingerprint, self._groups or {}, self._splits)
            self.sizes: dict[str, int] = {s: len(v["ids"]) for s, v in self._splits.items()}
            lengths = {s: {len(v[key]) for key in _COLUMNS} for s, v in self._splits.items()}
            if any(len(of_split) != 1 for of_split in lengths.values()):
                raise ValueError("columns of unequal length")
            for key in ("options", "source_signature"):  # what a second build compares
                self._index[key]

    @property
    def metadata(self) -> dict[str, Any]:
        """Version, options, source and seed of the build, for provenance records."""
        return {k: v for k, v in self._index.items() if k not in ("splits", "groups")}

    def _parts(self, split: str) -> list[str]:
        parts = [part.strip() for part in split.split("+")]
        known = set(SPLITS) | set(self._splits)
        for part in parts:
            if part not in known:
                raise UserError(f"{self.name}: no split {part!r}; it has {', '.join(self.sizes)}")
        if len(set(parts)) != len(parts):
            raise UserError(f"{self.name}: split {split!r} names a part twice")
        # A pool 'train+unlabelled' is meaningful for a set without unlabelled images.
        present = [part for part in parts if part in self._splits]
        if not present:
            raise UserError(f"{self.name}: split {split!r} is empty; it has {self.sizes}")
        return present

    def ids(self, split: str) -> list[str]:
        """Ids in the order of the records; `split` may be 'a+b'. UserError if empty."""
        return [i for part in self._parts(split) for i in self._splits[part]["ids"]]

    def patients(self, split: str) -> list[str]:
        """Patient of every id of `ids(split)`; '' when unknown."""
        return [p for part in self._parts(split) for p in self._splits[part]["patients"]]

    def centres(self, split: str) -> list[str]:
        """Centre of every id of `ids(split)`; '' when unknown."""
        return [c for part in self._parts(split) for c in self._splits[part]["centres"]]

    def groups(self, split: str) -> list[str]:
        """What must stay together, for every id of `ids(split)`; '' for an image by itself.

        The patient where it is known, else the group that the build recorded (frames of one run).
        """
        known = self._groups or {}
        pairs = zip(self.ids(split), self.patients(split), strict=True)
        return [patient or known.get(i, "") for i, patient in pairs]

    @property
    def knows_groups(self) -> bool:
        """Whether `groups` is all that the build could know; older builds did not record it."""
        return self._groups is not None or all(self.patients("+".join(self.sizes)))

    def source(self, split: str) -> Source:
        """Picklable random access to the decoded examples; `split` may be 'a+b'."""
        parts = self._parts(split)
        return Source(self.directory, "+".join(parts), sum(self.sizes[p] for p in parts))

    def labelled_order(self, draw: int) -> list[str]:
        """All labelled training ids in the random order of a draw; UserError if there is none."""
        path = self.directory / "splits" / f"labelled_draw{draw}.json"
        if not path.exists():
            raise UserError(f"{self.name}: no labelled draw {draw}; see {path.parent}")
        with _whole(path):
            ids = list(json.loads(path.read_text(encoding="utf-8"))["ids"])
            if not all(isinstance(name, str) for name in ids):
                raise ValueError("an id is no text")
            return ids

    def labelled_ids(self, n: int, *, draw: int) -> list[str]:
        """The first `n` ids of a draw of the labelled training images.

        Subsets of one draw are nested (18 ⊂ 40 ⊂ …). UserError for an unknown draw, or when the
        training split holds fewer than `n` images.
        """
        order = self.labelled_order(draw)
        if not 0 < n <= len(order):
            raise UserError(f"{self.name}: {n} labelled images asked, train holds {len(order)}")
        return order[:n]
