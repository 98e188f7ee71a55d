"""Arranges results for the page: tables, drawings and picture groups with their sources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cmunet_jax.report import figures
from cmunet_jax.report.comparison import Comparison, Result
from cmunet_jax.report.figures import Drawing
from cmunet_jax.report.findings import plain, signed
from cmunet_jax.report.images import Embedded, embed
from cmunet_jax.report.results import PRIMARY, Curve, Metric, Training

# The columns of the first table: overlap, centreline, boundary, outliers. All others follow below.
KEY_METRICS = (PRIMARY, "cldice", "nsd_2px", "hd95")
HEADINGS = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "Precision",
    "recall": "Recall",
    "cldice": "clDice",
    "soft_cldice": "Soft clDice",
    "nsd_2px": "NSD 2 px",
    "hausdorff_modified": "Modified Hausdorff",
    "hd95": "HD95",
    "assd": "ASSD",
    "diameter_error_px": "Diameter error",
    "ce": "Cross-entropy",
}
MOST_CASES = 300  # rows of the per-image table; the rest is in cases.csv
_TERMS = {
    "loss": "Total loss",
    "loss_reconstruction": "Reconstruction loss",
    "loss_contrast": "Contrastive loss",
    "loss_adapter": "Adapter loss",
    "contrast_accuracy": "Share of positives ranked first",
    "key_spread": "Spread of the keys (0: collapsed)",
}


@dataclass(frozen=True)
class Value:
    """A number with its interval as text, and what to sort by."""

    text: str
    interval: str
    sort: float
    mark: str = ""  # words for a difference whose interval leaves zero
    hint: str = ""  # the files that it is from


@dataclass(frozen=True)
class Column:
    """Heading of a metric."""

    heading: str
    text: str
    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class MetricRow:
    """One metric under all arms, and its differences to the reference."""

    column: Column
    values: list[Value]
    pooled: list[str]
    differences: list[Value]


@dataclass(frozen=True)
class CaseRow:
    """One image under all arms."""

    id: str
    patient: str
    dice: list[float]
    difference: float | None


@dataclass(frozen=True)
class Plate:
    """A picture with its words."""

    picture: Embedded
    title: str
    caption: str
    alt: str


def digits(unit: str) -> int:
    """Decimals of a metric: pixels are not known to a thousandth."""
    return 2 if unit == "px" else 3


def column(metric: Metric) -> Column:
    """The heading of a metric."""
    heading = HEADINGS.get(metric.name, metric.name)
    return Column(heading, metric.text, metric.unit, metric.higher_is_better)


def value(metric: Metric) -> Value:
    """Mean and interval of a metric."""
    places = digits(metric.unit)
    interval = ""
    if math.isfinite(metric.low):
        interval = f"{plain(metric.low, places)} to {plain(metric.high, places)}"
    return Value(plain(metric.mean, places), interval, metric.mean)


def key_metrics(results: Sequence[Result]) -> list[str]:
    """The metrics of the first table that every arm has."""
    return [n for n in KEY_METRICS if all(n in r.evaluation.metrics for r in results)]


def metric_rows(results: Sequence[Result], comparisons: Sequence[Comparison]) -> list[MetricRow]:
    """Every metric that all arms have, in the order of the first summary."""
    rows = []
    for name, first in results[0].evaluation.metrics.items():
        if not all(name in result.evaluation.metrics for result in results):
            continue
        own = [result.evaluation.metrics[name] for result in results]
        rows.append(
            MetricRow(
                column(first),
                [value(metric) for metric in own],
                [plain(metric.pooled, digits(metric.unit)) for metric in own],
                [_difference(c, name, digits(first.unit)) for c in comparisons],
            )
        )
    return rows


def _difference(comparison: Comparison, name: str, places: int) -> Value:
    if name not in comparison.differences:
        return Value("–", "not finite for every image", math.nan)
    found = comparison.differences[name]
    interval = ""
    if math.isfinite(found.low):
        interval = f"{signed(found.low, places)} to {signed(found.high, places)}"
    verdict = comparison.verdict(name)
    mark = "" if verdict == "unclear" else verdict
    return Value(signed(found.mean, places), interval, found.mean, mark)


def case_rows(results: Sequence[Result], comparisons: Sequence[Comparison]) -> list[CaseRow]:
    """Dice of each image under each arm, the largest differences first, at most MOST_CASES."""
    first = results[0].evaluation
    columns = [
        dict(zip(r.evaluation.ids, r.evaluation.metrics[PRIMARY].values.tolist())) for r in results
    ]
    rows = [
        CaseRow(
            identity,
            patient,
            [values[identity] for values in columns],
            float(comparisons[0].per_image[at]) if comparisons else None,
        )
        for at, (identity, patient) in enumerate(zip(first.ids, first.patients))
    ]
    rows.sort(key=lambda row: (-abs(row.difference or 0), row.id))
    return rows[:MOST_CASES]


# ----------------------------------------------------------------------------------- drawings


def _ends(curve: Curve) -> str:
    first, last = curve.values[0], curve.values[-1]
    start, end = curve.steps[0], curve.steps[-1]
    return f"from {plain(first)} at step {start:.0f} to {plain(last)} at step {end:.0f}"


def _term(name: str) -> str:
    return _TERMS.get(name, name.replace("_", " ").capitalize())


def pretraining_curves(training: Training) -> list[Drawing]:
    """One panel for each training scalar of the pre-training: the loss and its terms."""
    names = sorted(n for n in training.curves if n.startswith("train/"))
    known = [f"train/{term}" for term in _TERMS]
    names.sort(key=lambda n: known.index(n) if n in known else len(known))
    drawings = []
    for index, name in enumerate(names):
        curve, title = training.curves[name], _term(name.removeprefix("train/"))
        drawings.append(
            figures.curves(
                {0: curve},
                key=f"pretrain{index}",
                title=title,
                ylabel=name,
                description=f"{title} of the pre-training {_ends(curve)}.",
                small=True,
            )
        )
    return drawings


def finetuning_curves(results: Sequence[Result]) -> list[Drawing]:
    """Training loss and validation Dice of all arms, where they were logged."""
    names = [name for result in results for name in result.training.curves]
    watched = [n for n in names if n.endswith(f"/{PRIMARY}") and not n.startswith("train/")]
    wanted = [("train/loss", "Training loss")]
    wanted += [(name, f"Mean Dice on {name.split('/')[0]}") for name in dict.fromkeys(watched)]
    drawings = []
    for name, title in wanted:
        series = {r.index: r.training.curves[name] for r in results if name in r.training.curves}
        if series:
            each = "; ".join(f"{results[i].short} {_ends(curve)}" for i, curve in series.items())
            drawings.append(
                figures.curves(
                    series,
                    key="finetune-" + name.replace("/", "-"),
                    title=title,
                    ylabel=name,
                    description=f"{title} over optimiser steps: {each}.",
                )
            )
    return drawings


def paired_drawings(comparison: Comparison) -> list[Drawing]:
    """How the images fare under an arm and under the reference."""
    names = (comparison.reference.short, comparison.arm.short)
    ours = comparison.arm.evaluation.metrics[PRIMARY].values
    difference, index = comparison.primary, comparison.arm.index
    return [
        figures.paired_scatter(
            comparison.reference_values, ours, names=names, key=f"scatter{index}", colour=index
        ),
        figures.sorted_differences(
            comparison.per_image,
            mean=difference.mean,
            low=difference.low,
            high=difference.high,
            names=names,
            key=f"sorted{index}",
            colour=index,
        ),
    ]


def interval_drawing(comparison: Comparison) -> Drawing | None:
    """The difference in mean Dice on a line through zero; None without an interval."""
    found = comparison.primary
    if not math.isfinite(found.low):
        return None
    return figures.interval(
        found.mean,
        found.low,
        found.high,
        key=f"interval{comparison.arm.index}",
        labels=(f"{comparison.reference.short} better", f"{comparison.arm.short} better"),
    )


# ----------------------------------------------------------------------------------- pictures


def overlay_groups(results: Sequence[Result]) -> list[tuple[str, list[Plate]]]:
    """(rank, one plate an arm) for the best, median and worst image of each arm.

    The other bad cases lie beside the evaluation; here they would crowd out the rest.
    """
    groups: dict[str, list[Plate]] = {}
    for result in results:
        for rank, at, path in result.evaluation.overlays():
            if rank not in ("best", "median", "worst"):
                continue
            identity = result.evaluation.ids[at]
            dice = result.evaluation.metrics[PRIMARY].values[at]
            caption = f"case {identity}, Dice {plain(dice)}"
            for other in results:
                if other is not result:
                    row = other.evaluation.ids.index(identity)
                    theirs = other.evaluation.metrics[PRIMARY].values[row]
                    caption += f"; {other.short} has {plain(theirs)} on it"
            alt = (
                f"Three panels of case {identity}, the {rank} of {result.short}: the angiogram, "
                "the contours of truth and prediction on it, and where they agree and differ."
            )
            plate = Plate(embed(path), result.short, caption + ".", alt)
            groups.setdefault(rank, []).append(plate)
    return list(groups.items())


_VIEWS = {
    "view": "View A, what the network should reconstruct",
    "masked": "The same with patches hidden, what it sees",
    "reconstruction": "Its reconstruction in the hidden patches",
    "error": "Absolute error, white is large",
}


def pretraining_plates(training: Training) -> list[Plate]:
    """Rows of pictures of the same few images: view, masked view, reconstruction, error."""
    names = sorted(training.pictures, key=lambda n: (list(_VIEWS) + [n]).index(n))
    return [
        Plate(
            embed(training.pictures[name]),
            _VIEWS.get(name, name.replace("_", " ")),
            "",
            f"{_VIEWS.get(name, name)}: a row of example images, in the same order in each row.",
        )
        for name in names
    ]
