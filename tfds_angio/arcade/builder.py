"""TFDS builder of ARCADE: syntax images with masks, stenosis images as unlabelled pool."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfds_angio import base, parallel
from tfds_angio.arcade import download, layout, masks, near_duplicates, pool
from tfds_angio.errors import UserError

_CITATION = """@article{popov2024arcade,
  title = {Dataset for Automatic Region-based Coronary Artery Disease Diagnostics Using X-Ray
           Angiography Images},
  author = {Popov, Maxim and Amanturdieva, Akmaral and Zhaksylyk, Nuren and Alkanov, Alsabir and
            Saniyazbekov, Adilbek and Aimyshev, Temirgali and Ismailov, Eldar and
            Bulegenov, Ablay and Kuzhukeyev, Arystan and Kulanbayeva, Aizhan and
            Kalzhanov, Almat and Temenov, Nurzhan and Kolesnikov, Alexey and Sakhov, Orazbek and
            Fazli, Siamac},
  journal = {Scientific Data},
  volume = {11},
  number = {20},
  year = {2024},
  doi = {10.1038/s41597-023-02871-z},
}"""


@dataclasses.dataclass(frozen=True)
class Task:
    """One image to write."""

    archive: layout.Archive
    record: layout.Record
    labelled: bool
    gap_radius: int


def generate(task: Task) -> list[base.Example]:
    """Decodes one image and draws its segments."""
    image = layout.load_image(task.archive, task.record)
    polygons = task.record.polygons if task.labelled else ()
    segments = masks.segment_map(polygons, image.shape, gap_radius=task.gap_radius)
    mask = segments > 0 if task.labelled else None
    return [base.Example(task.record.id, image, mask, extra={"segments": segments})]


def read_signature(record: layout.Record, archive: layout.Archive) -> near_duplicates.Signature:
    """Signature of one image of the archive."""
    return near_duplicates.signature(layout.load_image(archive, record))


def signatures(
    archive: layout.Archive,
    records: Sequence[layout.Record],
    *,
    workers: int | None = None,
    progress: bool = True,
) -> list[near_duplicates.Signature]:
    """Signatures of all records, in order."""
    function = functools.partial(read_signature, archive=archive)
    return list(
        parallel.parallel_map(
            function, records, workers=workers, progress=progress, label="arcade signatures"
        )
    )


def items(archive: layout.Archive) -> tuple[list[layout.Record], list[pool.Item], list[str]]:
    """Every image of the archive with the split it would be in, and notes on irregular ones."""
    records, out, notes = [], [], []
    for task in ("syntax", "stenosis"):
        for part in layout.PARTS:
            for record in layout.read_part(archive, task, part):
                split = part if task == "syntax" else "unlabelled"
                if task == "syntax" and not record.polygons:
                    if part != "train":
                        notes.append(f"{record.id}: no vessel annotation, left out of {part}")
                        continue
                    notes.append(f"{record.id}: no vessel annotation, used as unlabelled")
                    split = "unlabelled"
                records.append(record)
                out.append(pool.Item(record.id, split, record.area))
    return records, out, notes


class Arcade(base.AngioBuilder):
    """ARCADE with near-duplicates removed; README.md beside this file says how and how many."""

    DESCRIPTION = (
        "Coronary X-ray angiograms (512 × 512) with polygons of 25 SYNTAX segments; train, val and "
        "test are those of the syntax task, unlabelled are the images of the stenosis task. "
        "Near-duplicates across splits are removed and listed in removed.csv."
    )
    HOMEPAGE = "https://zenodo.org/records/10390295"
    CITATION = _CITATION
    OPTIONS = {
        "run_correlation": base.Option(
            0.25, "detail correlation from which two images are taken for frames of one run"
        ),
        "frame_correlation": base.Option(
            0.85, "detail correlation from which two images are taken for the same frame"
        ),
        "gap_radius": base.Option(2, "pixels over which gaps between segments are closed; 0: not"),
    }

    @classmethod
    def extra_features(cls) -> dict[str, Any]:
        """The map of SYNTAX segments: 0 background, 1…25 in the order of the archive."""
        return {"segments": base.image_feature()}

    @classmethod
    def source_signature(cls, source: Path, options: Mapping[str, Any]) -> str:
        """Digest of names and sizes of the archive's files, packed or not."""
        del options  # none of them says which files are read
        return layout.signature(layout.open_archive(source))

    def plan(self, request: base.Request) -> base.Plan:
        """Reads the annotations, finds near-duplicates, distributes what is left."""
        options = request.options
        if not options["run_correlation"] <= options["frame_correlation"]:
            raise UserError(
                f"option run_correlation={options['run_correlation']} is above frame_correlation="
                f"{options['frame_correlation']}; frames that look the same are of one run, so "
                "give it at most that value"
            )
        source = request.source or download.download(
            request.download_dir, progress=request.progress
        )
        archive = layout.open_archive(source)
        records, candidates, notes = items(archive)
        found = signatures(archive, records, workers=request.workers, progress=request.progress)
        pairs, removed = pool.decide(
            candidates,
            found,
            run_correlation=options["run_correlation"],
            frame_correlation=options["frame_correlation"],
        )
        gone = {one.item.id for one in removed}
        tasks: dict[str, list[Task]] = {}
        for record, item in zip(records, candidates, strict=True):
            if record.id not in gone:
                task = Task(archive, record, item.split != "unlabelled", options["gap_radius"])
                tasks.setdefault(item.split, []).append(task)
        counts = Counter((one.item.split, one.reason) for one in removed)
        notes += [
            f"left out of {split}: {n} ({reason})" for (split, reason), n in sorted(counts.items())
        ]
        notes.append(f"{len(removed)} images left out; each is named in removed.csv")
        files = {"removed.csv": pool.removed_csv(removed)}
        groups = pool.runs([record.id for record in records], pairs)
        return base.Plan(tasks, generate, files, notes, read=source, groups=groups)
