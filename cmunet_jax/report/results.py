"""Reads the result files of training and evaluation; nothing else enters a report.

Every reader returns plain values and raises one clear UserError that names the file and the remedy
when the file is missing, half-written or does not fit its neighbours.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.evaluation.results import ranked
from tfds_angio.errors import UserError

SCALARS, CONFIG = "metrics.jsonl", "config.json"
SUMMARY, CASES = "summary.json", "cases.csv"
PRIMARY = "dice"  # the metric that a report judges by
# Measured where the evaluation knows calibres and probabilities; see `Evaluation.columns`.
COLUMNS = ("sensitivity_thin", "sensitivity_mid", "sensitivity_thick", "brier", "ece")
# Rounding on the way through CSV and JSON, not a difference of results.
_TOLERANCE = 1e-4

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """A file that the report took numbers or pictures from."""

    path: Path
    size: int  # bytes
    digest: str  # SHA-256, hex


@dataclass(frozen=True)
class Curve:
    """One scalar over training: `values[i]` was logged at optimiser step `steps[i]`."""

    steps: Floats
    values: Floats


@dataclass(frozen=True)
class Training:
    """What one training run left behind.

    Attributes:
      directory: its workdir.
      record: content of config.json ('config', 'versions', 'command', facts).
      curves: scalar name, e.g. 'train/loss' or 'val/dice', -> Curve with ascending steps.
      pictures: pictures of the last step that has any, by name.
      pictures_step: that step, or None where the file names do not tell.
    """

    directory: Path
    record: Mapping[str, Any]
    curves: Mapping[str, Curve]
    pictures: Mapping[str, Path]
    pictures_step: int | None

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved config."""
        return self.record["config"]

    @property
    def steps(self) -> int:
        """The last optimiser step that was logged."""
        return int(max((curve.steps[-1] for curve in self.curves.values()), default=0))


@dataclass(frozen=True)
class Metric:
    """One metric of one evaluation; numbers that the files leave out (null) are NaN.

    Attributes:
      name: column of cases.csv.
      text: in words.
      unit: '' for ratios, 'px', 'nat'.
      higher_is_better: direction.
      mean: over images.
      low: lower end of its 95 % interval.
      high: upper end.
      pooled: all images as one.
      values: [n] float64, the column of cases.csv; may hold infinities under the protocol `paper`.
    """

    name: str
    text: str
    unit: str
    higher_is_better: bool
    mean: float
    low: float
    high: float
    pooled: float
    values: Floats

    @property
    def usable(self) -> bool:
        """Whether every image has a finite value, so that means can be compared."""
        return bool(np.isfinite(self.values).all())


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation left behind.

    Attributes:
      directory: where.
      summary: content of summary.json.
      metrics: by name, in the order of the summary.
      ids: image ids.
      patients: patient of each image; '' where unknown.
      columns: name -> [n] float64, further columns of cases.csv (`COLUMNS`) that no entry of the
        summary stands for; NaN where the cell is empty. Only those that the file has.
    """

    directory: Path
    summary: Mapping[str, Any]
    metrics: Mapping[str, Metric]
    ids: list[str]
    patients: list[str]
    columns: Mapping[str, Floats] = field(default_factory=dict)

    def fact(self, *keys: str) -> Any:
        """The entry of the summary under nested keys, or None."""
        return lookup(self.summary, *keys)

    def overlays(self) -> list[tuple[str, int, Path]]:
        """(rank, row of the case, picture) of the cases that were drawn: `results.ranked`.

        The rows follow from the rule by which the evaluator chooses: descending Dice, then id.
        """
        dice = self.metrics[PRIMARY].values
        order = sorted(range(len(self.ids)), key=lambda at: (-dice[at], self.ids[at]))
        rows = ranked(order)
        found = ((rank, at, self.directory / f"overlay_{rank}.png") for rank, at in rows.items())
        return [entry for entry in found if entry[2].is_file()]


def lookup(values: Any, *keys: str) -> Any:
    """values[k0][k1]… or None where a step of the way is missing."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def describe(path: Path) -> Source:
    """Returns path, size and SHA-256 of a file that was read."""
    content = _bytes(path, "it was there a moment ago: write the report again")
    return Source(path, len(content), hashlib.sha256(content).hexdigest())


def _bytes(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {remedy}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {remedy}.") from None


def _text(path: Path, remedy: str) -> str:
    try:
        return _bytes(path, remedy).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged (not UTF-8 text): {remedy}.") from None


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      path: of the file.
      remedy: what to do where it is missing or damaged; the end of the message.

    Raises:
      UserError: naming the file, the reason and the remedy.
    """
    try:
        content = json.loads(_text(path, remedy))
    except ValueError as error:
        raise UserError(f"{path} is damaged or half-written ({error}): {remedy}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (no JSON object): {remedy}.")
    return content


# ----------------------------------------------------------------------------------- training


def read_training(directory: Path) -> Training:
    """Reads config.json, metrics.jsonl and the pictures of a training workdir.

    Raises:
      UserError: naming the file that is missing or half-written.
    """
    remedy = "run the training command again; it continues where it stopped"
    record = read_json(directory / CONFIG, remedy)
    if not isinstance(record.get("config"), dict):
        raise UserError(f"{directory / CONFIG} is damaged (no 'config'): {remedy}.")
    curves = _curves(directory / SCALARS, remedy)
    step, pictures = _last_pictures(directory / "pictures")
    return Training(directory, record, curves, pictures, step)


def _curves(path: Path, remedy: str) -> dict[str, Curve]:
    points: dict[str, dict[int, float]] = {}
    for number, line in enumerate(_text(path, remedy).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = int(row.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path}, line {number}, is damaged or half-written: {remedy}."
            ) from None
        for name, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                # A resumed run repeats the steps since its last save: the later one is kept.
                points.setdefault(name, {})[step] = float(value)
    if not points:
        raise UserError(f"{path} holds no scalars: {remedy}.")
    ordered = {name: sorted(steps.items()) for name, steps in points.items()}
    return {
        name: Curve(*(np.asarray(column, np.float64) for column in zip(*pairs)))
        for name, pairs in ordered.items()
    }


def _last_pictures(directory: Path) -> tuple[int | None, dict[str, Path]]:
    """Returns (step, {name: path}) of the newest step among pictures/<name>_<step>.png."""
    found: dict[int, dict[str, Path]] = {}
    for path in sorted(directory.glob("*.png")):
        name, _, step = path.stem.rpartition("_")
        if name and step.isdigit():
            found.setdefault(int(step), {})[name] = path
    if not found:
        return None, {}
    last = max(found)
    return last, found[last]


# --------------------------------------------------------------------------------- evaluation


def read_evaluation(directory: Path) -> Evaluation:
    """Reads summary.json and cases.csv and checks that they belong together.

    Raises:
      UserError: if one is missing or half-written, or the means are not those of the rows.
    """
    remedy = "run the evaluation again"
    summary = read_json(directory / SUMMARY, remedy)
    found = summary.get("metrics")
    if not isinstance(found, dict) or PRIMARY not in found or "n" not in summary:
        raise UserError(f"{directory / SUMMARY} has no 'n' or no Dice under 'metrics': {remedy}.")
    path = directory / CASES
    cases = _cases(path, remedy)
    if len(cases) != summary["n"]:
        raise UserError(
            f"{path} has {len(cases)} rows but {SUMMARY} counts {summary['n']} images: {remedy}."
        )
    metrics = {
        name: _metric(name, row, _column(path, cases, name, remedy), path, remedy)
        for name, row in found.items()
    }
    ids = [row["id"] for row in cases]
    if len(set(ids)) != len(ids):
        raise UserError(f"{path} has an id twice: {remedy}.")
    columns = {
        name: _column(path, cases, name, remedy, empty=True)
        for name in COLUMNS
        if name in cases[0] and name not in metrics
    }
    patients = [row.get("patient") or "" for row in cases]
    return Evaluation(directory, summary, metrics, ids, patients, columns)


def _metric(name: str, row: Mapping[str, Any], values: Floats, path: Path, remedy: str) -> Metric:
    """One entry of the summary with its column, whose mean must be the one the entry states."""

    def number(key: str) -> float:
        value = row.get(key)
        return float(value) if isinstance(value, int | float) else math.nan

    try:
        text, unit, higher = row["text"], row["unit"], bool(row["higher_is_better"])
    except (KeyError, TypeError):
        raise UserError(f"{path.with_name(SUMMARY)}: {name} is incomplete: {remedy}.") from None
    mean = number("mean")
    finite = bool(np.isfinite(values).all())
    if (
        (name == PRIMARY and not finite)
        or finite
        and not math.isclose(values.mean(), mean, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    ):
        raise UserError(
            f"{path} has mean {name} {values.mean():.5f} but {SUMMARY} says {mean:.5f}: they are "
            f"not of one evaluation; {remedy}."
        )
    ends = (number("low"), number("high"))
    return Metric(name, text, unit, higher, mean, *ends, number("pooled"), values)


def _cases(path: Path, remedy: str) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(_text(path, remedy), newline=""))
    rows = list(reader)
    if "id" not in (reader.fieldnames or []) or not rows:
        raise UserError(f"{path} holds no cases: {remedy}.")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise UserError(f"{path}, line {number}, is half-written: {remedy}.")
    return rows


def _column(
    path: Path, cases: list[dict[str, str]], name: str, remedy: str, *, empty: bool = False
) -> Floats:
    """One column as numbers; an empty cell is NaN where `empty` allows it."""
    values = np.empty(len(cases))
    for index, row in enumerate(cases):
        try:
            values[index] = math.nan if empty and row[name] == "" else float(row[name])
        except (KeyError, ValueError):
            raise UserError(
                f"{path}, line {index + 2}: {name} is {row.get(name)!r}, not a number: {remedy}."
            ) from None
    return values
