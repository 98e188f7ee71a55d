"""Which files a list of files, folders and globs means, and opening each as a `Case`.

What is refused is named to the user by its path, which may hold a patient's name; what is written
into results has another name for it: `Refused.input`.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.imaging import dicom, files
from cmunet_jax.imaging.case import Case, UnreadableCase
from tfds_angio import images

_VIDEO = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".m4v", ".flv")
# Pictures of other kinds: somebody who has them in the folder expects a result for each.
_PICTURES = (".gif", ".webp", ".heic", ".jp2", ".npz", ".nii", ".mha", ".nrrd", ".svg", ".pdf")
_SYSTEM = ("thumbs.db", "desktop.ini", "dicomdir")
# Discs and scanners give images names without a suffix, so these are told from images by a list:
# what is neither on it nor readable may be an image that was cut while it was copied.
_TEXTS = frozenset(
    "authors changelog changes checksums citation codeowners contributing copying copyright "
    "dockerfile install licence license lockfile makefile manifest md5sum md5sums news notice "
    "readme sha1sums sha256sums sha512sums todo version _success".split()
)
_NO_PICTURES = frozenset(
    ".txt .md .rst .csv .tsv .json .yaml .yml .toml .xml .html .htm .css .js .py .sh .log .ini "
    ".inf .cfg".split()
)
# Of a list; the brackets of a glob, in which the first ']' may stand for itself, are not cut.
_PART = re.compile(r"(?:\[!?\]?[^\]/]*\]|[^,])+")
_ANONYMOUS = "input "
_NO_FILE = "is not a file, but a pipe, a socket or a device"
_LONGEST = 80  # characters of a name; with what is appended, any file system takes it


@dataclass(frozen=True)
class Input:
    """A file that looks like one that can be read.

    Attributes:
      path: of the file.
      kind: one of `case.KINDS`.
      name: what an image's or array's outputs are called; '' for a DICOM, which has no name.
      shared: whether another input has that name too.
    """

    path: Path
    kind: str
    name: str
    shared: bool = False

    @property
    def label(self) -> str:
        """What results may call it: the name of an image's file, the digest of a DICOM."""
        return self.path.name if self.name else _digest_name(self.path, "dicom")


@dataclass(frozen=True)
class Refused:
    """An input that cannot be used.

    Attributes:
      path: as the user knows it; for the screen only.
      input: what results may call it.
      reason: why.
    """

    path: str
    input: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What a list of inputs means.

    Attributes:
      inputs: in order of the list, sorted by path within each folder and glob, each file once.
      refused: what cannot be used.
      ignored: files in folders that are no pictures by their name, such as tables and notes.
      left_out: how many files lie in the folder that was left out.
    """

    inputs: list[Input] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    left_out: int = 0


def find(text: str, *, without: Path | None = None) -> Found:
    """Resolves files, folders (with all below them) and globs, separated by commas.

    A path that holds a comma is understood if it is the only one; a comma in the brackets of a glob
    is its own: 'left[,]right.png'. Hidden files are left out, links to folders are not followed.

    Args:
      text: 'scan.png,run.dcm', 'folder', 'folder/**/*.png'.
      without: a folder whose files are none: the masks of an earlier run are no angiograms.
    """
    found = Found()
    parts = [text] if os.path.exists(os.path.expanduser(text)) else _PART.findall(text)
    seen: set[str] = set()
    for number, part in enumerate((p.strip() for p in parts if p.strip()), 1):
        anonymous = f"{_ANONYMOUS}{number}"  # what does not exist may be called like a patient, too
        matches = _matches(part)
        if not matches:
            reason = "matches nothing" if glob.has_magic(part) else "no such file or folder"
            found.refused.append(Refused(part, anonymous, reason))
        for path in matches:
            if path.is_dir():
                _add_folder(path, found, seen, anonymous)
            elif (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                _add(path, found, listed=True)
    if without is not None:
        found = _without(found, without.resolve())
    counts = Counter(item.name.casefold() for item in found.inputs)
    named = [replace(i, shared=counts[i.name.casefold()] > 1) for i in found.inputs]
    return replace(found, inputs=named)


def _without(found: Found, folder: Path) -> Found:
    def outside(path: Path | str) -> bool:
        return not Path(path).resolve().is_relative_to(folder)

    kept = [item for item in found.inputs if outside(item.path)]
    refused = [r for r in found.refused if _is_folder_or_none(r.path) or outside(r.path)]
    ignored = [path for path in found.ignored if outside(path)]
    count = len(found.inputs) + len(found.refused) + len(found.ignored)
    return Found(kept, refused, ignored, count - len(kept) - len(refused) - len(ignored))


def _is_folder_or_none(path: str) -> bool:
    return os.path.isdir(path) or not os.path.exists(path)


def _matches(part: str) -> list[Path]:
    path = Path(part).expanduser()
    if path.exists():
        return [path]
    return [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]


def _add_folder(folder: Path, found: Found, seen: set[str], anonymous: str) -> None:
    before = len(found.inputs) + len(found.refused)

    def unreadable(error: OSError) -> None:
        found.refused.append(Refused(str(error.filename), anonymous, f"{error.strerror}"))

    for path in files_of(folder, onerror=unreadable):
        if (real := os.path.realpath(path)) not in seen:
            seen.add(real)
            _add(path, found, listed=False)
    if len(found.inputs) + len(found.refused) == before:
        found.refused.append(Refused(str(folder), anonymous, "a folder without images"))


def files_of(folder: Path, *, onerror: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """All files below a folder but hidden ones and a system's own; links to folders stay shut.

    Args:
      folder: to look through.
      onerror: is told of a folder that cannot be listed.
    """
    for parent, folders, names in os.walk(folder, onerror=onerror):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower() not in _SYSTEM:
                yield Path(parent, name)


def _add(path: Path, found: Found, *, listed: bool) -> None:
    one = recognise(path, listed=listed)
    if isinstance(one, Input):
        found.inputs.append(one)
    elif one is not None:
        found.refused.append(one)
    else:
        found.ignored.append(path)


def recognise(path: Path, *, listed: bool) -> Input | Refused | None:
    """What a file is, by its first bytes and its name; None for one that is no picture.

    Args:
      path: of the file.
      listed: whether the user named it, and not only a folder that holds it.
    """
    suffix = path.suffix.lower()
    if path.exists() and not path.is_file():  # before anything is opened: a pipe waits for ever
        if listed or path.name.lower().endswith((*images.SUFFIXES, *dicom.SUFFIXES, *_PICTURES)):
            return Refused(str(path), "file-special", _NO_FILE)
        return None
    if dicom.is_dicom(path):  # first: called as an image, its name would get into the results
        return Input(path, "dicom", "")
    if suffix in images.SUFFIXES:
        return Input(path, "array" if suffix == ".npy" else "image", clean_name(path.stem))
    if reason := _why_refused(path, suffix, listed=listed):
        return Refused(str(path), _digest_name(path, "file"), reason)
    return None


def _why_refused(path: Path, suffix: str, *, listed: bool) -> str | None:
    """Why a file that is not recognised counts as a failure; None where it is ignored."""
    named_otherwise = suffix in _NO_PICTURES or path.name.lower() in _TEXTS
    if _is_empty(path) and (listed or not named_otherwise):
        return "empty file"
    if suffix in _VIDEO:
        return "a video: give the DICOM run that it was made from, or its frames as PNG"
    if not named_otherwise and _without_suffix(path.name):
        return "truncated, or no DICOM and no image"
    return "not an image of a kind that is read" if listed or suffix in _PICTURES else None


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def _without_suffix(name: str) -> bool:
    """Whether a name has no suffix, as IM0001, or only one of digits, as 1.2.840.10008.7 has."""
    stem = name[:-3] if name.lower().endswith(".gz") else name
    return not re.search(r"[^\W\d]", Path(stem).suffix)


def clean_name(stem: str) -> str:
    """A name of letters, digits, '-', '_' and '.' from any other; 'image' where nothing stays."""
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip(".-")[:_LONGEST]
    return name or "image"


def _digest_name(path: Path, word: str) -> str:
    """A name that says nothing: `word` and the beginning of the content's SHA-256."""
    try:
        with open(path, "rb") as file:
            return f"{word}-{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
    except OSError as error:
        return f"{word}-unreadable-{error.errno}"


def numbered(refused: Sequence[Refused]) -> list[Refused]:
    """The same, with a number behind what results call the second and later of one name.

    Copies of one file have one digest. The parts of the list are numbers already.
    """
    counts: Counter[str] = Counter()
    named = []
    for one in refused:
        counts[one.input] += 1
        again = counts[one.input] > 1 and not one.input.startswith(_ANONYMOUS)
        named.append(replace(one, input=f"{one.input}-{counts[one.input]}") if again else one)
    return named


def open_case(item: Input, *, opener: Callable[[], int] | None = None) -> Case:
    """Opens an input. Two of the same name are told apart by their content, not by their order.

    Args:
      item: that was found.
      opener: as of `unpacked.Unpacked`, for a DICOM.

    Raises:
      UnreadableCase: with the reason.
    """
    with _reasons():
        if item.kind == "dicom":
            return dicom.open_dicom(item.path, opener=opener)
        case = files.open_file(item.path, kind=item.kind, name=item.name)
    return replace(case, id=f"{item.name}-{case.sha256[:8]}") if item.shared else case


def read_frame(case: Case, index: int) -> NDArray[np.generic]:
    """One frame [H, W] of a case.

    Raises:
      UnreadableCase: with the reason.
    """
    with _reasons():
        return case.read(index)


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Errors of the system as reasons; their own text repeats the path of the file."""
    try:
        yield
    except MemoryError:
        raise UnreadableCase("too large for the memory") from None
    except OSError as error:
        raise UnreadableCase(f"{error.strerror or 'cannot be read'}") from None


def frame_names(case: Case) -> list[str]:
    """What the outputs of each frame are called: the id, and in a run ID_0007 for index 7."""
    return [case.id] if case.frames == 1 else [f"{case.id}_{i:04d}" for i in range(case.frames)]


def distinct(case: Case, taken: set[str]) -> Case:
    """The case under a name of which nothing in `taken` is called; that is added to it.

    Needed for copies of one file in two folders, and for an image that is called as a frame of a
    run. Upper and lower case are the same to some file systems.
    """
    number, tried = 1, case
    while names := {name.casefold() for name in (tried.id, *frame_names(tried))}:
        if not names & taken:
            break
        number += 1
        tried = replace(case, id=f"{case.id}-{number}")
    taken |= names
    return tried
