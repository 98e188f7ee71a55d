"""The DICOM runs of a folder, found and opened as predict does it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cmunet_jax.imaging import dicom, inputs
from cmunet_jax.imaging.case import Case, UnreadableCase
from tfds_angio.angio_folder.problems import Problem

WITHHELD = (
    "its pixels may name the patient, so no picture of it is written: predict on it with "
    "config.burned_in=keep if they do not, and choose from the frames"
)


@dataclass(frozen=True)
class Runs:
    """What a folder holds of them.

    Attributes:
      cases: those that can be used, each file once. No frame is read yet.
      failed: (id, reason) of files that cannot be used.
      refused: the same by their paths, which are for the screen only.
      paths: real ones of all files that are DICOMs or refused.
    """

    cases: tuple[Case, ...]
    failed: tuple[tuple[str, str], ...]
    refused: tuple[tuple[Path, str], ...]
    paths: frozenset[str]

    def holds(self, path: Path) -> bool:
        """Whether a file is one of these, and no image."""
        return os.path.realpath(path) in self.paths

    def problems(self, root: Path) -> Iterator[Problem]:
        """One for each file that cannot be used, by its name below `root`."""
        for path, reason in self.refused:
            yield Problem("error", path.relative_to(root).as_posix(), reason, "left out")


def find(folder: Path, *, without: Path) -> Runs:
    """Opens the DICOMs below a folder; the beginning of all other files is read, and no more.

    Args:
      folder: to look through.
      without: a folder whose files are none.
    """
    found = inputs.find(str(folder), without=without)
    cases: list[Case] = []
    failed = [
        (one.input, one.reason, Path(one.path)) for one in found.refused if _meant(Path(one.path))
    ]
    for item in found.inputs:
        if item.kind != "dicom":
            continue
        try:
            case = inputs.open_case(item)
        except UnreadableCase as error:
            failed.append((item.label, str(error), item.path))
            continue
        if case.burned_in:
            failed.append((case.id, WITHHELD, item.path))
        else:
            cases.append(case)
    files = [case.path for case in cases] + [path for _, _, path in failed]
    return Runs(
        cases=tuple(cases),
        failed=tuple((name, reason) for name, reason, _ in failed),
        refused=tuple((path, reason) for _, reason, path in failed),
        paths=frozenset(os.path.realpath(path) for path in files),
    )


def _meant(path: Path) -> bool:
    """Whether what is refused may be a DICOM: a file, or a pipe that is called as one."""
    special = path.exists() and not path.is_dir()
    return path.is_file() or (special and path.name.lower().endswith(dicom.SUFFIXES))
