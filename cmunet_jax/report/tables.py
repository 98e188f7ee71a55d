"""Tables of a study as values, and their writers: CSV for machines, LaTeX for papers."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmunet_jax.report import latex
from cmunet_jax.report.blocks import p_text
from cmunet_jax.report.findings import plain, signed
from cmunet_jax.report.results import read_json
from cmunet_jax.report.study import Number, Study
from tfds_angio.errors import UserError

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes:
      value: text or number; NaN is empty in CSV and a dash in LaTeX.
      digits: decimals in LaTeX; CSV keeps all.
      is_signed: print a plus (differences).
      percent: multiply by 100 in LaTeX.
      is_best: print bold.
      is_p: a p value: no printed digits may make it zero.
    """

    value: str | int | float | Number
    digits: int = 3
    is_signed: bool = False
    percent: bool = False
    is_best: bool = False
    is_p: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a name.

    Attributes:
      name: of its files.
      caption: what it shows and how it was computed.
      header: of each column.
      rows: as long as the header.
      in_latex: whether it is short enough to be printed.
    """

    name: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    in_latex: bool = True

    def to_csv(self) -> str:
        """A number with an interval fills four columns: value, low, high, and its key."""
        wide = [
            any(isinstance(row[at].value, Number) for row in self.rows)
            for at in range(len(self.header))
        ]
        header = [
            name
            for text, is_wide in zip(self.header, wide)
            for name in (
                [text, f"{text} low", f"{text} high", f"{text} key"] if is_wide else [text]
            )
        ]
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(header)
        for row in self.rows:
            writer.writerow(
                [text for entry, is_wide in zip(row, wide) for text in _csv_cells(entry, is_wide)]
            )
        return buffer.getvalue()

    def to_latex(self) -> str:
        """A booktabs table; intervals stand below their numbers."""
        numeric = [
            any(not isinstance(row[at].value, str) for row in self.rows)
            for at in range(len(self.header))
        ]
        return latex.table(
            self.name,
            self.caption,
            "".join("r" if number else "l" for number in numeric),
            self.header,
            [[_latex_cell(entry) for entry in row] for row in self.rows],
        )


def _csv_cells(entry: Entry, is_wide: bool) -> list[str]:
    value = entry.value
    if isinstance(value, Number):
        return [_exact(value.value), _exact(value.low), _exact(value.high), value.key]
    text = _exact(value) if isinstance(value, float) else str(value)
    return [text, "", "", ""] if is_wide else [text]


def _exact(value: float) -> str:
    """All digits that matter; empty where there is no number."""
    return f"{value:.10g}" if math.isfinite(value) else ""


def _latex_cell(entry: Entry) -> str:
    value = entry.value
    if isinstance(value, str):
        return latex.escape(value)
    if isinstance(value, int):
        return latex.escape(str(value))
    number = value if isinstance(value, Number) else Number("", value)
    first = latex.escape(_printed(number.value, entry))
    if entry.is_best:
        first = latex.bold(first)
    second = ""
    if number.has_interval:
        second = f"{_printed(number.low, entry)} to {_printed(number.high, entry)}"
    return latex.stacked(first, latex.escape(second))


def _printed(value: float, entry: Entry) -> str:
    if entry.is_p:
        return p_text(value)
    scaled = 100 * value if entry.percent else value
    text = signed(scaled, entry.digits) if entry.is_signed else plain(scaled, entry.digits)
    return f"{text} %" if entry.percent and math.isfinite(value) else text


# -------------------------------------------------------------------------------------- files


def write(study: Study, tables: Sequence[Table], directory: Path) -> list[Path]:
    """Writes <name>.csv, <name>.tex, all.tex and provenance.json into a folder.

    Everything is written beside the folder's files first and then moved in; tables of an earlier
    report that this one does not have are removed.

    Returns:
      The paths of the tables.

    Raises:
      UserError: if the folder cannot be written, disk full included.
    """
    printed = [table.name for table in tables if table.in_latex]
    contents = {f"{table.name}.csv": table.to_csv() for table in tables}
    contents |= {f"{table.name}.tex": table.to_latex() for table in tables if table.in_latex}
    contents["all.tex"] = latex.document(printed)
    staging = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        before = _listed(directory / PROVENANCE)
        staging = Path(tempfile.mkdtemp(prefix=".tables-", dir=directory))
        for name, text in contents.items():
            (staging / name).write_text(text, encoding="utf-8", newline="")
        text = json.dumps(provenance(study, sorted(contents)), indent=1, ensure_ascii=False)
        (staging / PROVENANCE).write_text(text + "\n", encoding="utf-8")
        for name in [*contents, PROVENANCE]:
            os.replace(staging / name, directory / name)
        for name in before - set(contents):
            (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{directory} cannot be written ({error.strerror}): choose another --workdir or free "
            "space."
        ) from None
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return [directory / name for name in contents]


def _listed(path: Path) -> set[str]:
    """The tables that an earlier report wrote here."""
    if not path.is_file():
        return set()
    try:
        names = read_json(path, "it is written anew").get("tables", [])
    except UserError:
        return set()  # A damaged list names nothing to remove; the new one replaces it.
    return {n for n in names if isinstance(n, str) and Path(n).name == n}


def provenance(study: Study, tables: Sequence[str]) -> dict[str, Any]:
    """The index that traces numbers to files.

    Returns:
      'files': [{'name', 'bytes', 'sha256'}], 'numbers': key -> places in 'files', 'tables': names.
    """
    files = sorted(study.sources)
    place = {name: at for at, name in enumerate(files)}
    return {
        "version": 1,
        "text": "numbers: the key of each number -> places in files of those it was computed from",
        "tables": list(tables),
        "files": [
            {
                "name": name,
                "bytes": study.sources[name].size,
                "sha256": study.sources[name].digest,
            }
            for name in files
        ],
        "numbers": {
            key: [place[name] for name in names] for key, names in study.provenance.items()
        },
    }
