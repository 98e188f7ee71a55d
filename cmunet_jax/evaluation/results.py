"""What an evaluation leaves behind: rows, a summary, and both on disk.

`summary.json` is written last and removed first, so a folder that holds one holds a whole result.
JSON knows no infinities: values that are not finite (protocol `paper` has them) are null there.
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.evaluation import statistics
from cmunet_jax.evaluation.metrics import EMPTY_MASK_RULE, Empty, Metric
from tfds_angio.errors import UserError

SUMMARY, CASES = "summary.json", "cases.csv"
WORST = 4  # failures say more than successes
PICTURES = ("best", "median", "worst", *(f"worst_{place}" for place in range(2, WORST + 1)))
_PACKAGES = ("cmunet-jax", "jax", "numpy", "scipy", "scikit-image", "opencv-python-headless")
_PAPER_RULE = (
    "As released: smoothing constants in Dice, IoU and clDice; a Hausdorff distance of infinity "
    "where exactly one mask is empty and 0 where both are; an empty mask has diameter 0."
)


@dataclass(frozen=True)
class Picture:
    """One case to look at.

    Attributes:
        row: its row of metrics.
        image: uint8 [H, W].
        truth: bool [H, W].
        prediction: bool [H, W].
    """

    row: Mapping[str, Any]
    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    prediction: NDArray[np.bool_]


@dataclass(frozen=True)
class Evaluation:
    """A network on a split.

    Attributes:
        rows: one dict an image, in the order of evaluation: id, patient, centre, metrics, pixel
            counts, `empty` ('', 'both', 'truth' or 'prediction').
        summary: what `summary.json` will hold, but for the provenance.
        pictures: by the names of `ranked`, or nothing.
    """

    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    pictures: dict[str, Picture] = field(default_factory=dict)


# -------------------------------------------------------------------------------- the summary


def summarise(
    rows: Sequence[Mapping[str, Any]],
    terms: Sequence[Mapping[str, tuple[float, ...]]],
    table: Mapping[str, Metric],
    *,
    protocol: str,
    batch_size: int,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Means with intervals, pooled values and counts of empty masks.

    Args:
        rows: as in `Evaluation.rows`.
        terms: of each row, by metric.
        table: the metrics that were measured.
        protocol: 'fixed' or 'paper'.
        batch_size: of the column `batch_pooled`.
        resamples: bootstrap draws.
        seed: of the draws.
    """
    clusters = statistics.cluster([row["patient"] for row in rows])
    values = np.array([[row[name] for name in table] for row in rows], np.float64)
    low, high = statistics.bootstrap_intervals(values, clusters, resamples=resamples, seed=seed)
    batches = [range(at, min(at + batch_size, len(rows))) for at in range(0, len(rows), batch_size)]
    metrics = {}
    for column, (name, metric) in enumerate(table.items()):
        pooled = [_pooled(metric, name, rows, terms, batch) for batch in batches]
        measured = values[:, column]
        infinite = int(np.count_nonzero(~np.isfinite(measured)))
        spread = len(rows) > 1 and not infinite
        metrics[name] = {
            "mean": float(np.mean(measured)),
            "low": float(low[column]),
            "high": float(high[column]),
            "std": float(np.std(measured, ddof=1)) if spread else None,
            "median": float(np.median(measured)),
            "infinite": infinite,
            "pooled": _pooled(metric, name, rows, terms, range(len(rows))),
            "batch_pooled": None if None in pooled else float(np.mean(pooled)),  # type: ignore[arg-type]
            "text": metric.text,
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
        }
    empty = Counter(row["empty"] for row in rows)
    return {
        "n": len(rows),
        "n_patients": clusters.count if clusters.unit == "patient" else None,
        "metrics": metrics,
        "empty_masks": {which: empty[which] for which in ("both", "truth", "prediction")},
        "empty_mask_rule": _PAPER_RULE if protocol == "paper" else EMPTY_MASK_RULE,
        "pooled_text": (
            "pooled: all images of the split as one; batch_pooled: each batch of "
            f"{batch_size} as one, mean over batches"
        ),
        "interval": {
            "level": statistics.LEVEL,
            "method": "percentile bootstrap of the mean over images",
            "resampled": clusters.unit,
            "resamples": resamples,
            "seed": seed,
            "note": clusters.note,
        },
    }


def _pooled(
    metric: Metric,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    terms: Sequence[Mapping[str, tuple[float, ...]]],
    members: range,
) -> float | None:
    if not metric.poolable:
        return None
    truth = sum(rows[at]["truth_pixels"] for at in members)
    prediction = sum(rows[at]["predicted_pixels"] for at in members)
    empty: Empty = (
        ("" if prediction else "prediction") if truth else ("truth" if prediction else "both")
    )
    return metric.pooled(
        [sum(column) for column in zip(*(terms[at][name] for at in members))], empty
    )


def text_table(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(metric, mean, interval, pooled) of each metric as text, for consoles and reports."""

    def text(number: float | None) -> str:
        return "–" if number is None or not math.isfinite(number) else f"{number:.4f}"

    return [
        (name, text(row["mean"]), f"{text(row['low'])} to {text(row['high'])}", text(row["pooled"]))
        for name, row in summary["metrics"].items()
    ]


# ------------------------------------------------------------------------------------ on disk


def write(
    evaluation: Evaluation,
    directory: str | os.PathLike[str],
    *,
    overlays: bool = True,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Writes summary.json, cases.csv and overlay_{best,median,worst,worst_2,...}.png.

    Everything is drawn and written beside the folder first and then moved in, the summary last.

    Args:
        evaluation: what `evaluator.evaluate` returned.
        directory: made if missing; results of an earlier evaluation in it are replaced.
        overlays: whether to draw the pictures.
        provenance: merged into the summary: checkpoint digest, command, …

    Returns:
        The path of summary.json.

    Raises:
        UserError: the folder cannot be written, disk full included.
        ValueError: provenance contradicts the summary.
    """
    target = Path(directory)
    summary = {**evaluation.summary, "versions": versions()}
    extra = dict(provenance or {})
    summary["versions"] |= extra.pop("versions", {})
    clash = sorted(key for key in extra if key in summary and extra[key] != summary[key])
    if clash:
        raise ValueError(f"provenance contradicts the summary in {', '.join(clash)}")
    summary |= extra
    try:
        target.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".evaluation-", dir=target))
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from error
    try:
        _write_cases(staging / CASES, evaluation.rows)
        if overlays and evaluation.pictures:
            _draw_overlays(staging, evaluation)
        content = json.dumps(_finite(summary), indent=2, ensure_ascii=False, allow_nan=False)
        (staging / SUMMARY).write_text(content + "\n", encoding="utf-8")
        _move_in(staging, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target / SUMMARY


def ranked(order: Sequence[int]) -> dict[str, int]:
    """Which cases are drawn: name of a picture -> row, from the rows in order, best first.

    Few cases give fewer pictures; the first three are always there.
    """
    places = {"best": 0, "median": len(order) // 2, "worst": -1}
    places |= {f"worst_{n}": -n for n in range(2, min(WORST, len(order)) + 1)}
    return {name: order[place] for name, place in places.items()}


def _draw_overlays(staging: Path, evaluation: Evaluation) -> None:
    from cmunet_jax.evaluation import overlays  # matplotlib takes a second to import

    for name, picture in evaluation.pictures.items():
        overlays.save(picture, staging / f"overlay_{name}.png", rank=name.replace("_", " "))


def _move_in(staging: Path, target: Path) -> None:
    names = sorted(path.name for path in staging.iterdir() if path.name != SUMMARY)
    stale = [SUMMARY, CASES, *(f"overlay_{name}.png" for name in PICTURES)]
    for name in stale:
        (target / name).unlink(missing_ok=True)
    for name in [*names, SUMMARY]:
        os.replace(staging / name, target / name)


def _write_cases(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_cases(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a cases.csv; every column but id, patient, centre and empty is a number.

    An empty cell (the sensitivity of a calibre that an image does not have) is None.

    Raises:
        UserError: there is no such file.
    """
    words = {"id", "patient", "centre", "empty"}

    def value(key: str, text: str) -> Any:
        return text if key in words else float(text) if text else None

    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [{k: value(k, v) for k, v in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run the evaluate stage first") from None


def versions() -> dict[str, str]:
    """Versions of what computes metrics."""
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in _PACKAGES
    }


def _finite(value: Any) -> Any:
    """The same, as plain JSON: numpy scalars to Python's, values that are not finite to null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float)):
        return value
    return str(value)
