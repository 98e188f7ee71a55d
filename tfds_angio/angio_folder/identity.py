"""Patient, centre and split of every image: from its name or from a manifest."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path, PurePosixPath

from tfds_angio.angio_folder.problems import Problem
from tfds_angio.angio_folder.scan import Entry
from tfds_angio.base import SPLITS
from tfds_angio.errors import UserError

# <centre>-<patient>_<view>, as the paper's files are named.
PATTERN = r"^(?P<centre>[^-_]+)-(?P<patient>[^_]+)_(?P<view>.+)$"


@dataclasses.dataclass(frozen=True)
class Identity:
    """Whose image it is.

    Attributes:
      patient: unique over centres; '' when unknown.
      centre: '' when unknown.
      split: asked for explicitly; '' when it is to be drawn.
    """

    patient: str = ""
    centre: str = ""
    split: str = ""


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """UserError when it is no regular expression or has no group `patient`."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"option pattern={pattern!r} is no regular expression: {error}") from error
    if "patient" not in compiled.groupindex:
        raise UserError(f"option pattern={pattern!r} has no group (?P<patient>…)")
    return compiled


def from_name(entry_id: str, pattern: re.Pattern[str]) -> Identity:
    """Identity by the file name, or by the whole path inside the folder if only that matches."""
    match = pattern.search(PurePosixPath(entry_id).name) or pattern.search(entry_id)
    if not match or not match["patient"]:
        return Identity()
    groups = match.groupdict()
    centre = groups.get("centre") or ""
    # Patient numbers start anew in every centre.
    return Identity(f"{centre}-{match['patient']}" if centre else match["patient"], centre)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"manifest {path} cannot be read as UTF-8 text ({error})") from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    columns = [(c or "").strip().lower() for c in reader.fieldnames or []]
    if "file" not in columns:
        raise UserError(f"manifest {path} has no column `file` in its first line ({first.strip()})")
    if "patient" not in columns and "split" not in columns:
        raise UserError(f"manifest {path} has neither a column `patient` nor `split`")
    reader.fieldnames = columns
    try:
        return [
            {
                k: (v or "").strip()
                for k, v in row.items()
                if isinstance(k, str) and not isinstance(v, list)
            }
            for row in reader
        ]
    except csv.Error as error:
        raise UserError(f"manifest {path} line {reader.line_num}: {error}") from error


def _match(file: str, by_name: dict[str, str], images_folder: str) -> str | None:
    """Id of the entry a manifest row means; None when there is none."""
    path = PurePosixPath(file.replace("\\", "/"))
    for candidate in (path.as_posix(), path.as_posix().removeprefix(f"{images_folder}/")):
        if candidate in by_name:
            return by_name[candidate]
    return None


def read_manifest(
    path: Path, entries: list[Entry], *, root: Path, images_folder: str
) -> tuple[dict[str, Identity], list[Problem]]:
    """Identities by id from a CSV with the columns file, patient, centre, split.

    `file` is a path inside the images folder, with or without extension and folder name. Only
    names of scanned images are looked up, so a path that leads elsewhere reads nothing.

    Raises:
      UserError: unreadable, no column `file`, or an unknown split.
    """
    by_name: dict[str, str] = {}
    for entry in entries:
        by_name[entry.id] = entry.id
        by_name[entry.image.relative_to(root / images_folder).as_posix()] = entry.id
    known: dict[str, Identity] = {}
    problems = []
    for number, row in enumerate(_rows(path), start=2):
        where = f"{path.name}:{number}"
        file = row.get("file", "")
        parts = PurePosixPath(file.replace("\\", "/"))
        split = row.get("split", "").lower()
        if split and split not in SPLITS:
            raise UserError(f"{where}: split {split!r} is not one of {', '.join(SPLITS)}")
        if not file:
            if any(row.values()):
                problems.append(Problem("warning", where, "no file name", "row ignored"))
            continue
        if parts.is_absolute() or ".." in parts.parts:
            what = f"path {file!r} leads outside the images folder"
            problems.append(Problem("error", where, what, "row ignored"))
            continue
        entry_id = _match(file, by_name, images_folder)
        if entry_id is None:
            problems.append(Problem("error", where, f"no image {file!r}", "row ignored"))
        elif entry_id in known:
            problems.append(Problem("warning", where, f"{file!r} again", "first row is used"))
        else:
            known[entry_id] = Identity(row.get("patient", ""), row.get("centre", ""), split)
    return known, problems


def identify(
    entries: list[Entry], *, pattern: str, manifest: Path | None, root: Path, images_folder: str
) -> tuple[dict[str, Identity], list[Problem]]:
    """Identity of every entry: the manifest first, then the name."""
    compiled = compile_pattern(pattern)
    listed: dict[str, Identity] = {}
    problems: list[Problem] = []
    if manifest is not None:
        listed, problems = read_manifest(manifest, entries, root=root, images_folder=images_folder)
    out = {}
    for entry in entries:
        named = from_name(entry.id, compiled)
        given = listed.get(entry.id)
        name = entry.image.relative_to(root).as_posix()
        if given is None:
            if manifest is not None:
                what = "not in the manifest"
                problems.append(Problem("warning", name, what, "patient taken from its name"))
            given = named
        elif not given.patient:
            given = Identity(named.patient, given.centre or named.centre, given.split)
        if not given.patient:
            what = "no patient id"
            problems.append(Problem("warning", name, what, "counted as a patient of its own"))
        out[entry.id] = given
    return out, problems
