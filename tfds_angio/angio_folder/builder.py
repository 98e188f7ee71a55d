"""TFDS builder of a user's folder."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfds_angio import base, parallel
from tfds_angio.angio_folder import assign, identity, load, problems, scan
from tfds_angio.errors import UserError


@dataclasses.dataclass(frozen=True)
class Task:
    """One image to write."""

    entry: scan.Entry
    identity: identity.Identity
    labelled: bool
    root: Path
    percentile: float


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a first reading tells: usable, labelled, digest of the pixels, problems."""

    usable: bool
    labelled: bool
    digest: str
    problems: tuple[problems.Problem, ...]


def inspect(entry: scan.Entry, *, root: Path, percentile: float) -> Inspection:
    """Reads an entry once to learn whether and how it can be used."""
    loaded = load.load(entry, root=root, percentile=percentile)
    digest = ""
    if loaded.image is not None:
        content = f"{loaded.image.shape}".encode() + loaded.image.tobytes()
        digest = hashlib.sha256(content).hexdigest()
    return Inspection(loaded.image is not None, loaded.mask is not None, digest, loaded.problems)


def generate(task: Task) -> list[base.Example]:
    """The example of one image."""
    loaded = load.load(task.entry, root=task.root, percentile=task.percentile)
    mask = loaded.mask if task.labelled else None
    if loaded.image is None or (task.labelled and mask is None):
        raise UserError(f"{task.entry.image} changed while the data set was built; build again")
    who = task.identity
    return [base.Example(task.entry.id, loaded.image, mask, who.patient, who.centre)]


def drop_copies(
    entries: list[scan.Entry], seen: list[Inspection], *, root: Path
) -> tuple[list[scan.Entry], dict[str, bool], list[problems.Problem]]:
    """Usable entries without pixel-identical copies (labelled ones are kept first)."""
    usable = [(e, s) for e, s in zip(entries, seen, strict=True) if s.usable]
    first: dict[str, scan.Entry] = {}
    for entry, inspection in sorted(usable, key=lambda pair: not pair[1].labelled):
        first.setdefault(inspection.digest, entry)
    found, kept = [], []
    for entry, inspection in usable:
        other = first[inspection.digest]
        if other is entry:
            kept.append((entry, inspection.labelled))
        else:
            name = entry.image.relative_to(root).as_posix()
            what = f"same pixels as {other.image.relative_to(root).as_posix()}"
            found.append(problems.Problem("warning", name, what, "left out"))
    return [e for e, _ in kept], {e.id: labelled for e, labelled in kept}, found


class AngioFolder(base.AngioBuilder):
    """Your own data; README.md beside this file says what is read and how."""

    DESCRIPTION = "Coronary X-ray angiograms of a local folder, some with artery masks."
    FREE_CONFIGS = True
    OPTIONS = {
        "images": base.Option("imgs", "folder of the images in the source"),
        "masks": base.Option("masks", "folder of the masks; same names as the images"),
        "mask_suffix": base.Option("", "what a mask's name has after the image's, e.g. _mask"),
        "pattern": base.Option(identity.PATTERN, "regular expression with a group `patient`"),
        "manifest": base.Option("", "CSV with the columns file, patient, centre, split"),
        "val_fraction": base.Option(0.1, "share of the labelled images, by patient"),
        "test_fraction": base.Option(0.2, "share of the labelled images, by patient"),
        "seed": base.Option(0, "of the draw of the patients"),
        "percentile": base.Option(0.1, "window for 16-bit and float images, percent, 0…49"),
    }

    @classmethod
    def source_signature(cls, source: Path, options: Mapping[str, Any]) -> str:
        """Digest of the names, sizes and times of the images, the masks and the manifest."""
        manifest = options["manifest"]
        paths = [source / Path(manifest).expanduser()] if manifest else []
        for part in dict.fromkeys((options["images"], options["masks"])):
            for parent, folders, files in os.walk(source / part):
                folders.sort()
                paths += [Path(parent, file) for file in sorted(files)]
        lines = []
        for path in paths:
            try:
                stat = path.stat()
            except OSError:
                continue  # a dangling link: named as a problem when it is read
            name = os.path.relpath(path, source)
            lines.append(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}")
        text = "\n".join(lines).encode("utf-8", "surrogateescape")
        return hashlib.sha256(text).hexdigest()

    def plan(self, request: base.Request) -> base.Plan:
        """Reads everything once, names what is irregular, distributes what is usable."""
        options = request.options
        root, manifest = _check(request)
        entries, found = scan.scan(
            root,
            images_folder=options["images"],
            masks_folder=options["masks"],
            mask_suffix=options["mask_suffix"],
        )
        who, more = identity.identify(
            entries,
            pattern=options["pattern"],
            manifest=manifest,
            root=root,
            images_folder=options["images"],
        )
        read = functools.partial(inspect, root=root, percentile=options["percentile"])
        seen = list(
            parallel.parallel_map(
                read, entries, workers=request.workers, progress=request.progress, label="reading"
            )
        )
        found += more + [p for inspection in seen for p in inspection.problems]
        usable, labelled, more = drop_copies(entries, seen, root=root)
        found += more
        if not usable:
            first = problems.ordered(found)[0]
            raise UserError(f"no usable image in {root}; {len(found)} problem(s), first: {first}")
        split_of, more = assign.assign(
            labelled,
            who,
            val_fraction=options["val_fraction"],
            test_fraction=options["test_fraction"],
            seed=options["seed"],
        )
        found += more
        tasks: dict[str, list[Any]] = {}
        for entry in usable:
            split = split_of.get(entry.id)
            if split is not None:
                task = Task(
                    entry, who[entry.id], split != "unlabelled", root, options["percentile"]
                )
                tasks.setdefault(split, []).append(task)
        return base.Plan(
            tasks, generate, {"problems.csv": problems.to_csv(found)}, problems.summary(found)
        )


def _check(request: base.Request) -> tuple[Path, Path | None]:
    """Source and manifest. UserError for what the options cannot be."""
    options = request.options
    if request.source is None:
        raise UserError("angio_folder needs --source PATH, a folder with imgs/ (and masks/)")
    if not request.source.is_dir():
        raise UserError(f"--source {request.source} is not a folder")
    for key in ("val_fraction", "test_fraction"):
        if not 0 <= options[key] < 1:
            raise UserError(f"option {key}={options[key]} is not in [0, 1)")
    if options["val_fraction"] + options["test_fraction"] >= 1:
        raise UserError("options val_fraction and test_fraction leave nothing for training")
    if not 0 <= options["percentile"] < 50:
        raise UserError(f"option percentile={options['percentile']} is not in [0, 50)")
    if not options["manifest"]:
        return request.source, None
    manifest = request.source / Path(options["manifest"]).expanduser()
    if not manifest.is_file():
        raise UserError(f"option manifest={options['manifest']}: {manifest} does not exist")
    return request.source, manifest
