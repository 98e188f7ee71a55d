"""Writes a selection: the list for the annotator, its record, pictures; all of it or nothing."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunet_jax.selection.features import Embedded
from cmunet_jax.selection.methods import Chosen
from tfds_angio.errors import UserError

LIST, RECORD, IMAGES, SHEET, MAP = (
    "selection.csv",
    "selection.json",
    "images",
    "contact_sheet.png",
    "map.png",
)
COLUMNS = ("rank", "id", "path", "patient", "centre", "cluster", "score", "why")
FORMAT = 1


def check(workdir: Path, *, overwrite: bool) -> None:
    """Refuses a folder that cannot be written, or that holds a selection or files of its names.

    Raises:
      UserError: with the remedy.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file. Choose a folder.")
    parent = next(p for p in [workdir, *workdir.parents] if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"--workdir {workdir} cannot be written ({parent} is read-only).")
    if (workdir / LIST).exists() and not overwrite:
        raise UserError(
            f"{workdir} holds a selection, whose images may be with an annotator. Choose another "
            "--workdir, or --config.overwrite=True"
        )
    if not (workdir / LIST).exists():
        for name in (RECORD, SHEET, MAP, IMAGES):
            if (workdir / name).exists():
                raise UserError(
                    f"{workdir / name} is there, of no selection: choose another --workdir or "
                    "move it."
                )


def file_names(ids: Sequence[str]) -> list[str]:
    """A file name for each id, without an ending: letters, digits, '.', '_', '-'; all distinct."""
    plain = [re.sub(r"[^A-Za-z0-9_.-]", "-", i).lstrip(".-")[:100] or "image" for i in ids]
    count = Counter(name.lower() for name in plain)
    return [
        name if count[name.lower()] == 1 else f"{name}-{rank}"
        for rank, name in enumerate(plain, start=1)
    ]


def write(
    workdir: Path, embedded: Embedded, chosen: Chosen, record: Mapping[str, Any], *, title: str
) -> list[dict[str, Any]]:
    """Writes selection.csv, selection.json, contact_sheet.png, map.png and, of a data set, images/.

    Everything is made beside its place first; the list comes last, so that where it is, all is. Of
    an earlier selection only the images that its list names are removed.

    Args:
      workdir: made where it is missing.
      embedded: the pool that was chosen from.
      chosen: from it.
      record: what belongs into selection.json beside ids and method's result.
      title: of the map.

    Returns:
      The rows of the list.

    Raises:
      UserError: the folder cannot be written, or a chosen image cannot be read any more.
    """
    items = [embedded.pool.items[c.index] for c in chosen.choices]
    images = [embedded.pool.read(c.index).image for c in chosen.choices]
    names = file_names([item.id for item in items])
    rows = [
        {
            "rank": rank,
            "id": item.id,
            "path": f"{IMAGES}/{name}.png" if item.path is None else str(item.path),
            "patient": item.patient,
            "centre": item.centre,
            "cluster": "" if choice.cluster < 0 else choice.cluster,
            "score": f"{choice.score:.6g}",
            "why": choice.why,
        }
        for rank, (item, name, choice) in enumerate(
            zip(items, names, chosen.choices, strict=True), start=1
        )
    ]
    content = {
        "format": FORMAT,
        "ids": [item.id for item in items],
        "labelled": [item.id for item in embedded.pool.items if item.labelled],
        "failed": [{"id": name, "reason": reason} for name, reason in embedded.failed],
        "settled": dict(chosen.settled),
        "sha256": {
            item.id: embedded.sha256[choice.index]
            for item, choice in zip(items, chosen.choices, strict=True)
            if embedded.sha256[choice.index]
        },
        **record,
    }
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".selection-", dir=workdir))
    except OSError as error:
        raise UserError(f"{workdir} cannot be written: {error.strerror or error}") from error
    try:
        _fill(staging, embedded, chosen, rows, images, content, title)
        _move_in(staging, workdir)
    except OSError as error:
        raise UserError(f"{workdir} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return rows


def _fill(
    staging: Path,
    embedded: Embedded,
    chosen: Chosen,
    rows: Sequence[Mapping[str, Any]],
    images: Sequence[NDArray[np.uint8]],
    content: Mapping[str, Any],
    title: str,
) -> None:
    from cmunet_jax.selection import pictures  # matplotlib takes a second to import

    (staging / IMAGES).mkdir()
    for row, image in zip(rows, images, strict=True):
        if row["path"].startswith(f"{IMAGES}/"):
            (staging / row["path"]).write_bytes(cv2.imencode(".png", image)[1].tobytes())
    captions = [f"{row['rank']}. {row['id'][-28:]}" for row in rows]
    pictures.contact_sheet(images, captions, staging / SHEET)
    ranks = [choice.index for choice in chosen.choices]
    labelled = embedded.pool.labelled
    pictures.draw_map(embedded.features, labelled, ranks, staging / MAP, title=title)
    text = json.dumps(_plain(content), indent=1, sort_keys=True, ensure_ascii=False)
    (staging / RECORD).write_text(text + "\n", encoding="utf-8")
    with (staging / LIST).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _move_in(staging: Path, workdir: Path) -> None:
    if (workdir / LIST).exists():
        with (workdir / LIST).open(newline="", encoding="utf-8") as file:
            before = [Path(row.get("path") or "") for row in csv.DictReader(file)]
        (workdir / LIST).unlink()
        for path in before:
            if path.parent == Path(IMAGES):
                (workdir / path).unlink(missing_ok=True)
    pictures = sorted((staging / IMAGES).iterdir())
    if pictures:
        (workdir / IMAGES).mkdir(exist_ok=True)
    for path in pictures:
        os.replace(path, workdir / IMAGES / path.name)
    for name in (SHEET, MAP, RECORD, LIST):
        os.replace(staging / name, workdir / name)


def _plain(value: Any) -> Any:
    """The same as JSON has it: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
