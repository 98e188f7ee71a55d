"""Lists the images and masks of a folder and pairs them by name."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from tfds_angio import images
from tfds_angio.angio_folder.problems import Problem
from tfds_angio.errors import UserError


@dataclasses.dataclass(frozen=True)
class Entry:
    """An image file and its mask file, if there is one.

    Attributes:
      id: path of the image inside the images folder, without extension, '/' between parts.
      image: path of the image.
      mask: path of the mask, or None.
    """

    id: str
    image: Path
    mask: Path | None


def _walk(folder: Path, root: Path) -> tuple[list[Path], list[Problem]]:
    found, problems = [], []

    def name(path: Path) -> str:
        return path.relative_to(root).as_posix()

    def unreadable(error: OSError) -> None:
        problems.append(
            Problem("error", name(Path(error.filename)), f"{error.strerror}", "folder left out")
        )

    # Links to folders are not followed: they can form a loop or leave the source.
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        for link in [Path(parent, f) for f in folders if Path(parent, f).is_symlink()]:
            problems.append(Problem("warning", name(link), "link to a folder", "not followed"))
        folders.sort()
        for file in sorted(files):
            path = Path(parent, file)
            if file.startswith(".") or file in ("Thumbs.db", "desktop.ini"):
                problems.append(Problem("info", name(path), "system file", "ignored"))
            elif path.suffix.lower() in images.SUFFIXES:
                found.append(path)
            else:
                hint = (
                    " (convert DICOM first)" if path.suffix.lower() in (".dcm", ".ima", "") else ""
                )
                what = f"not an image type that is read{hint}"
                problems.append(Problem("warning", name(path), what, "ignored"))
    return found, problems


def _by_id(folder: Path, root: Path) -> tuple[dict[str, Path], list[Problem]]:
    """One file an id; of several extensions the lossless one that holds most is taken."""
    files, problems = _walk(folder, root)
    ranked = sorted(files, key=lambda p: images.SUFFIXES.index(p.suffix.lower()))
    chosen: dict[str, Path] = {}
    for path in ranked:
        key = path.relative_to(folder).with_suffix("").as_posix()
        name = path.relative_to(root).as_posix()
        try:
            key.encode("utf-8")
        except UnicodeEncodeError:
            problems.append(Problem("error", name, "file name is not UTF-8", "left out"))
            continue
        if key in chosen:
            what = f"same name as {chosen[key].relative_to(root).as_posix()}"
            problems.append(Problem("warning", name, what, "the other one is used"))
        else:
            chosen[key] = path
    return dict(sorted(chosen.items())), problems


def scan(
    root: Path, *, images_folder: str, masks_folder: str, mask_suffix: str
) -> tuple[list[Entry], list[Problem]]:
    """Pairs `images_folder`/<id>.* with `masks_folder`/<id><mask_suffix>.*.

    Returns:
      entries sorted by id, and everything irregular about names.

    Raises:
      UserError: the images folder is missing or holds no image.
    """
    folder = root / images_folder
    if not folder.is_dir():
        raise UserError(
            f"{root} has no folder {images_folder}/; put the images there or name the folder with "
            "--option images=NAME"
        )
    pictures, problems = _by_id(folder, root)
    if not pictures:
        raise UserError(f"{folder} holds no {', '.join(images.SUFFIXES)} file")
    masks: dict[str, Path] = {}
    if (root / masks_folder).is_dir():
        masks, more = _by_id(root / masks_folder, root)
        problems += more
    else:
        what = "folder does not exist"
        problems.append(Problem("info", f"{masks_folder}/", what, "all images are unlabelled"))
    entries = [Entry(i, path, masks.pop(i + mask_suffix, None)) for i, path in pictures.items()]
    for path in masks.values():
        what = "mask without an image of the same name"
        problems.append(Problem("error", path.relative_to(root).as_posix(), what, "left out"))
    for entry in entries:
        if entry.mask is None and masks_folder and (root / masks_folder).is_dir():
            name = entry.image.relative_to(root).as_posix()
            problems.append(Problem("info", name, "no mask", "used as unlabelled"))
    return entries, problems
