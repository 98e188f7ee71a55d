"""metrics.jsonl: every scalar of a run, one JSON object a line, exact across interruptions."""

import errno
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from clu.metric_writers.interface import Scalar

from cmunet_jax.train.sink import Sink
from tfds_angio.errors import UserError

NAME = "metrics.jsonl"
_log = logging.getLogger(__name__)
_WORDS = ("NaN", "Infinity", "-Infinity")


class JsonLinesWriter(Sink):
    """Appends one line a `write_scalars` call: {"step": 100, "train/loss": 0.5, ...}.

    Each line reaches the operating system before the call returns, so a killed process loses none.
    JSON has no NaN and infinity; they are written as the strings "NaN", "Infinity", "-Infinity".
    """

    def __init__(self, path: str | Path, *, start_step: int = 0):
        """Opens the file for a run that has done `start_step` steps.

        Rows of later steps, which the run is about to repeat, are dropped, and so is a line that
        a kill or a full disk cut off.

        Raises:
          UserError: if the file cannot be written.
        """
        self._path = Path(path)
        self._start = start_step
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            rows = [row for row in _rows(self._path) if row["step"] <= start_step]
            # The evaluation at the restored step may be repeated; its rows must not be.
            self._known = {k for row in rows if row["step"] == start_step for k in row}
            _replace(self._path, "".join(json.dumps(row) + "\n" for row in rows))
            self._file = open(self._path, "ab", buffering=0)
        except OSError as error:
            raise self._failure(error) from error

    def write_scalars(self, step: int, scalars: Mapping[str, Scalar]) -> None:
        """Appends a row.

        Raises:
          UserError: if it cannot be written.
        """
        row = {name: _number(value) for name, value in scalars.items()}
        if step == self._start:
            row = {name: value for name, value in row.items() if name not in self._known}
        if not row:
            return
        line = (json.dumps({"step": int(step)} | row, allow_nan=False) + "\n").encode()
        size = self._file.tell()
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(size)  # No half a row.
            raise self._failure(error) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _failure(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self._path}: {error.strerror or error}. "
            "Free space or make the workdir writable, then resume."
        )


def read_metrics(workdir: str | Path) -> list[dict[str, float]]:
    """Reads a run's metrics.jsonl: rows in the order written, 'step' an int, the rest floats.

    Returns an empty list if the run wrote none.
    """
    return [
        {name: value if name == "step" else float(value) for name, value in row.items()}
        for row in _rows(Path(workdir) / NAME)
    ]


def _number(value: Any) -> int | float | str:
    number = np.asarray(value).item()
    if isinstance(number, float) and not math.isfinite(number):
        return "NaN" if math.isnan(number) else ("Infinity" if number > 0 else "-Infinity")
    return number


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    rows = [row for line in lines if (row := _parse(line)) is not None]
    if len(rows) < len(lines) - 1:  # A cut last line is expected after a kill.
        _log.warning("%s: %d unreadable lines were left out.", path, len(lines) - len(rows))
    return rows


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    numbers = all(isinstance(v, int | float) or v in _WORDS for v in row.values())
    return row if numbers else None


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
