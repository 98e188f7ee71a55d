"""Keeps arrays on disk under a digest: atomic, checked at every load."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import logging

_MANIFEST = "manifest.json"
_ABANDONED = 3600.0  # seconds after which a temporary folder belongs to a killed process


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(folder: Path, digest: str) -> dict[str, np.ndarray] | None:
    """The arrays of an entry, memory-mapped read-only, or None if absent or damaged.

    A damaged entry is reported on one line; saving replaces it.
    """
    entry = folder / digest[:32]
    if not entry.is_dir():
        return None
    try:
        manifest = json.loads((entry / _MANIFEST).read_text())
        if manifest["digest"] != digest:
            raise ValueError("it belongs to something else")
        arrays = {}
        for name, expected in manifest["arrays"].items():
            if _checksum(entry / f"{name}.npy") != expected:
                raise ValueError(f"{name}.npy has changed")
            arrays[name] = np.load(entry / f"{name}.npy", mmap_mode="r")
        return arrays
    except (OSError, ValueError, KeyError, TypeError) as error:
        logging.warning("prepared images in %s are damaged (%s): making them again", entry, error)
        return None


def save(folder: Path, digest: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stores the arrays in one rename and returns them as ``load`` does.

    Where the folder cannot be written (a read-only share, a full disk) the arrays themselves are
    returned, with a warning: a cache must not stop a run.
    """
    entry = folder / digest[:32]
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
        sums = {}
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
            sums[name] = _checksum(temporary / f"{name}.npy")
        manifest = {"digest": digest, "arrays": sums}
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        if entry.exists():  # damaged, or another process was faster; ours is good
            os.replace(entry, temporary / "old")
        os.replace(temporary, entry)
        shutil.rmtree(entry / "old", ignore_errors=True)
    except OSError as error:
        logging.warning("prepared images cannot be kept in %s (%s)", folder, error.strerror)
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        return dict(arrays)
    return {name: np.load(entry / f"{name}.npy", mmap_mode="r") for name in arrays}


def _sweep(folder: Path) -> None:
    """Removes what killed processes left behind."""
    for left in folder.glob(".writing-*"):
        with contextlib.suppress(FileNotFoundError):  # its owner finished meanwhile
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
