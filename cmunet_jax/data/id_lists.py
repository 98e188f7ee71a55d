"""A file that lists images: what a selection wrote, or what somebody typed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from tfds_angio.errors import UserError


def read(path: str | Path, *, key: str) -> list[str]:
    """The ids that a file lists, in its order.

    Args:
      path: JSON with a list `ids` (selection.json, splits/labelled_drawN.json), CSV with a column
        `id` (selection.csv), or text with one id a line ('#' begins a comment).
      key: the config key that names the file, for messages.

    Raises:
      UserError: the file cannot be read, lists nothing, or an image twice.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
        ids = _parse(text)
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"config.{key}={path} cannot be read ({reason}): give a selection.csv, JSON with a "
            "list 'ids', or text with one id a line."
        ) from None
    if not ids:
        raise UserError(f"config.{key}={path} lists no image: write one id a line.")
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UserError(f"config.{key}={path} lists '{twice}' twice: name each image once.")
    return ids


def _parse(text: str) -> list[str]:
    if text.lstrip().startswith(("{", "[")):
        content = json.loads(text)
        ids = content.get("ids") if isinstance(content, dict) else content
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
            raise ValueError("it holds no list of ids")
        return ids
    rows = csv.DictReader(io.StringIO(text))
    if "id" in (rows.fieldnames or []):
        return [row["id"] for row in rows if row["id"]]
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
