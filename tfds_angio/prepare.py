"""Builds a data set: idempotent, atomic, safe against kill -9 and against a second build.

Everything is written into a temporary sibling; the finished version folder is renamed into place
as the last act. A folder with an index.json is therefore complete. What a rebuild replaces waits
beside it under another name until then, and is taken back when the rebuild was killed in between.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from tfds_angio import options as options_lib
from tfds_angio import registry, splits
from tfds_angio.builder import AngioBuilder, Request
from tfds_angio.dataset import INDEX, AngioDataset
from tfds_angio.errors import UserError


def version_directory(name: str, data_dir: str | os.PathLike[str]) -> Path:
    """Where the data set `name` lies (or would lie) under `data_dir`, as TFDS lays it out."""
    base, config = registry.split_name(name)
    version = str(registry.builder_class(base).VERSION)
    return Path(data_dir).expanduser().absolute() / base / config / version


def open_dataset(name: str, *, data_dir: str | os.PathLike[str] = "data") -> AngioDataset:
    """Opens a built data set. UserError with the build command when it is not there."""
    directory = version_directory(name, data_dir)
    if not directory.exists() and _replaced(directory).exists():
        with _lock(_writable(data_dir), name):
            _recover(directory)
    if not (directory / INDEX).is_file():
        raise UserError(
            f"data set {name} is not in {Path(data_dir).absolute()}; build it with "
            f"`python -m tfds_angio.build {name} --data_dir {data_dir}`"
        )
    return AngioDataset(directory)


def build(
    name: str,
    *,
    data_dir: str | os.PathLike[str] = "data",
    source: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    workers: int | None = None,
    progress: bool = True,
    rebuild: bool = False,
) -> AngioDataset:
    """Builds data set `name` under `data_dir`, or opens it if it is already there.

    Args:
      name: TFDS `name` or `name/config`.
      data_dir: root of the data sets.
      source: local folder or archive, for data sets that have one.
      options: of the data set (`OPTIONS` of its builder).
      workers: processes; None for all processors.
      progress: whether to draw progress bars.
      rebuild: replace what is there.

    Raises:
      UserError: unknown name or option, unusable source, or a data set that is there but was
        built from another source or with other options.
    """
    base, config = registry.split_name(name)
    builder = registry.builder_class(base)
    _check_config(builder, name, config)
    given = options_lib.explicit(builder.OPTIONS, options)
    origin = None if source is None else Path(source).expanduser().absolute()
    if origin is not None and not origin.exists():
        raise UserError(f"source {origin} does not exist")
    final = version_directory(name, data_dir)
    if not rebuild and (final / INDEX).is_file():
        return _reuse(final, builder, origin, given)
    root = _writable(data_dir)
    with _lock(root, name) as prefix:
        _recover(final)
        if not rebuild and (final / INDEX).is_file():  # another process has just built it
            return _reuse(final, builder, origin, given)
        if final.exists() and not (final / INDEX).is_file():
            raise UserError(f"{final} is not a finished data set of ours; move it away and retry")
        scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        try:
            request = Request(
                source=origin,
                options=options_lib.complete(builder.OPTIONS, given),
                download_dir=root / "downloads",
                workers=workers,
                progress=progress,
            )
            _write(name, builder, config, request, scratch, final)
            _move_into_place(scratch / "new" / final.relative_to(root), final)
        except (OSError, RuntimeError) as error:
            if not _is_full(error):
                raise
            raise UserError(f"no space left under {root}; nothing was kept") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return AngioDataset(final)


def _is_full(error: OSError | RuntimeError) -> bool:
    """Whether the disk or the quota is used up; ArrayRecord says so in a RuntimeError's text."""
    full = (errno.ENOSPC, errno.EDQUOT)
    number = getattr(error, "errno", None)
    return number in full or any(os.strerror(code) in str(error) for code in full)


def _check_config(builder: type[AngioBuilder], name: str, config: str) -> None:
    known = [c.name for c in builder.BUILDER_CONFIGS]
    if known and config not in known:
        raise UserError(f"{name}: choose one of {', '.join(f'{builder.name}/{k}' for k in known)}")
    if config and not known and not builder.FREE_CONFIGS:
        raise UserError(f"{builder.name} has no configurations; ask for {builder.name!r}")


def _reuse(
    final: Path, builder: type[AngioBuilder], source: Path | None, given: Mapping[str, Any]
) -> AngioDataset:
    dataset = AngioDataset(final)
    there = dataset.metadata
    for key, value in given.items():
        if there["options"].get(key) != value:
            raise UserError(
                f"{final} was built with {key}={there['options'].get(key)!r}, not {value!r}; "
                "add --rebuild to replace it, or choose another --data_dir"
            )
    if source is not None:
        built_with = options_lib.complete(builder.OPTIONS, there["options"])
        if builder.source_signature(source, built_with) != there["source_signature"]:
            raise UserError(
                f"{source} is not what {final} was built from, or has changed since; "
                "add --rebuild to replace it, or choose another --data_dir"
            )
    return dataset


def _writable(data_dir: str | os.PathLike[str]) -> Path:
    root = Path(data_dir).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--data_dir {root} cannot be made: {error.strerror}") from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise UserError(f"--data_dir {root} is not writable; choose another")
    return root


@contextlib.contextmanager
def _lock(root: Path, name: str) -> Iterator[str]:
    """Holds the build lock of `name`; yields the prefix of its temporary folders.

    The kernel frees the lock when its holder dies, so folders with the prefix that are found
    under the lock belong to builds that were killed, and are removed.
    """
    prefix = f".building-{name.replace('/', '-')}-"
    with open(root / f"{prefix}lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"{root} is on a file system without locks ({error.strerror}); build on a local "
                "disk and copy the folder"
            ) from error
        for left in root.glob(f"{prefix}*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        yield prefix


def _write(
    name: str,
    cls: type[AngioBuilder],
    config: str,
    request: Request,
    scratch: Path,
    final: Path,
) -> None:
    """Writes records, index, labelled subsets and lists into `scratch`/new/…."""
    tfds.disable_progress_bar()  # ours counts images and knows the total
    signature = ""
    if request.source is not None:  # before it is read: what changes meanwhile shows next time
        signature = cls.source_signature(request.source, request.options)
    chosen: Any = config or None
    if config and not cls.BUILDER_CONFIGS:
        chosen = tfds.core.BuilderConfig(name=config, version=cls.VERSION)
    builder = cls(data_dir=scratch / "new", config=chosen)
    builder.request = request
    # TFDS announces the temporary folder on standard output.
    with contextlib.redirect_stdout(io.StringIO()), _records_in_memory():
        builder.download_and_prepare(
            download_dir=scratch / "downloads",
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    directory = Path(str(builder.data_path))
    rows = builder.rows
    if request.source is None and builder.built.read is not None:
        signature = cls.source_signature(builder.built.read, request.options)
    index: dict[str, Any] = {
        "name": name,
        "version": str(cls.VERSION),
        "fingerprint": _fingerprint(rows),
        "options": dict(request.options),
        "source": "" if request.source is None else str(request.source),
        "source_signature": signature,
        "notes": [note.replace("{directory}", str(final)) for note in builder.built.notes],
        "files": sorted(builder.built.files),
        "groups": _groups_of(builder.built.groups, rows),
        "splits": {
            split: {
                "ids": [row["id"] for row in part],
                "patients": [row["patient"] for row in part],
                "centres": [row["centre"] for row in part],
            }
            for split, part in rows.items()
        },
    }
    _check(directory, index["splits"])
    for file, text in builder.built.files.items():
        (directory / file).write_text(text, encoding="utf-8")
    (directory / "splits").mkdir()
    draws = splits.labelled_draws(
        [row["id"] for row in rows.get("train", [])],
        name=name,
        version=index["version"],
        fingerprint=index["fingerprint"],
    )
    for draw in draws:
        path = directory / "splits" / f"labelled_draw{draw['draw']}.json"
        path.write_text(json.dumps(draw, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (directory / INDEX).write_text(json.dumps(index, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _records_in_memory() -> Iterator[None]:
    """Keeps TFDS from moving records to temporary files, for which it would import TensorFlow.

    Beyond a gigabyte a split it does, and then reads them all back to sort them: memory for the
    compressed records of a split is needed either way.
    """
    limit, shuffle.MAX_MEM_BUFFER_SIZE = shuffle.MAX_MEM_BUFFER_SIZE, sys.maxsize
    try:
        yield
    finally:
        shuffle.MAX_MEM_BUFFER_SIZE = limit


def _groups_of(
    groups: Mapping[str, str], rows: Mapping[str, list[dict[str, str]]]
) -> dict[str, str]:
    """The groups of the plan, without the images that were left out or stand alone."""
    kept = [row["id"] for part in rows.values() for row in part if groups.get(row["id"])]
    sizes = collections.Counter(groups[i] for i in kept)
    return {i: groups[i] for i in kept if sizes[groups[i]] > 1}


def _fingerprint(rows: Mapping[str, list[dict[str, str]]]) -> str:
    lines = sorted(
        f"{split}\0{row['id']}\0{row['sha256']}\n" for split, part in rows.items() for row in part
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check(directory: Path, parts: Mapping[str, Mapping[str, list[str]]]) -> None:
    """Reads the records back: the order of the index, unique ids, no patient in two splits."""
    ids = [i for part in parts.values() for i in part["ids"]]
    if len(set(ids)) != len(ids):
        raise ValueError("an id occurs twice in the data set")
    seen: dict[str, str] = {}
    for split, part in parts.items():
        side = "train" if split == "unlabelled" else split  # these two form the training pool
        for patient in set(part["patients"]) - {""}:
            if seen.setdefault(patient, side) != side:
                raise ValueError(f"patient {patient} is in {seen[patient]} and in {split}")
    builder = tfds.builder_from_directory(directory)
    raw = {name: tfds.decode.SkipDecoding() for name in builder.info.features if name != "id"}
    for split, part in parts.items():
        stored = [e["id"].decode() for e in builder.as_data_source(split, decoders=raw)]
        if stored != part["ids"]:
            raise ValueError(f"records of {split} are not in the order of the index")


def _replaced(final: Path) -> Path:
    """Where a data set waits while its successor is renamed into place."""
    return final.with_name(f".replaced-{final.name}")


def _recover(final: Path) -> None:
    """Ends what a killed rebuild left: its successor is there, or the old one comes back.

    Only under the lock: another process may be between the two renames.
    """
    old = _replaced(final)
    if old.exists() and not final.exists():
        old.rename(final)
    if (final / INDEX).is_file():
        shutil.rmtree(old, ignore_errors=True)


def _move_into_place(new: Path, final: Path) -> None:
    """Renames `new` to `final`; a kill at any point leaves the old one or the new one."""
    final.parent.mkdir(parents=True, exist_ok=True)
    old = _replaced(final)
    if final.exists():
        final.rename(old)
    try:
        new.rename(final)
    except OSError:
        _recover(final)
        raise
    shutil.rmtree(old, ignore_errors=True)
