"""Arranges the numbers of a study into rows that the page shows, each with its files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cmunet_jax.report.charts import Look
from cmunet_jax.report.findings import plain, signed
from cmunet_jax.report.sections import HEADINGS, Column, Value, digits
from cmunet_jax.report.study import (
    CALIBRES,
    Calibration,
    Cell,
    Difference,
    MetricInfo,
    Number,
    PairedTest,
    Study,
    fewest_first,
)

_HINTED = 3  # files named in a tooltip; all of them are in the list below each part


# ------------------------------------------------------------------------------ where from


@dataclass(frozen=True)
class Origin:
    """Numbers that were computed from the same files.

    Attributes:
      numbers: their keys, braces around what differs: 'fair/cmunet/18/{dice, iou}'.
      files: the files in the same way: 'fair/trials/{0a…, 1b…}/{result.json, trial.json}'.
    """

    numbers: str
    files: list[str]


def origins(study: Study, keys: Iterable[str]) -> list[Origin]:
    """The files behind numbers; numbers of one cell with the same files share a line."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for key in dict.fromkeys(keys):
        files = study.provenance.get(key, ())
        if files:
            head, _, tail = key.rpartition("/")
            groups.setdefault((head, files), []).append(tail)
    return [
        Origin(_braces([head, tails]), _folded(files)) for (head, files), tails in groups.items()
    ]


def _folded(files: Sequence[str]) -> list[str]:
    """Trials with the same kinds of files share a line; other files have their own."""
    tails: dict[tuple[str, str], list[str]] = {}
    for name in files:
        sweep, folder, *rest = name.split("/", 3)
        if folder == "trials" and len(rest) == 2:
            tails.setdefault((sweep, rest[0]), []).append(rest[1])
        else:
            tails.setdefault((name, ""), [])
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (sweep, trial), names in tails.items():
        alike.setdefault((sweep, tuple(names)), []).append(trial)
    return [
        _braces([sweep, "trials", trials, names]) if names else sweep
        for (sweep, names), trials in alike.items()
    ]


def _braces(parts: Iterable[str | Sequence[str]]) -> str:
    """['a', ['b', 'c'], 'd'] -> 'a/{b, c}/d'."""
    said = []
    for part in parts:
        if not isinstance(part, str):
            part = part[0] if len(part) == 1 else "{" + ", ".join(part) + "}"
        said.append(part)
    return "/".join(filter(None, said))


def hint(study: Study, key: str) -> str:
    """The tooltip of a number: its name and the first of its files."""
    files = study.provenance.get(key, ())
    if not files:
        return ""
    more = len(files) - _HINTED
    said = "; ".join(files[:_HINTED]) + (f"; and {more} more" if more > 0 else "")
    return f"{key}, from {said}"


# ---------------------------------------------------------------------------------- numbers


def label_text(labels: int) -> str:
    """'18', or 'all' for 0."""
    return str(labels) if labels else "all"


def column(info: MetricInfo) -> Column:
    """The heading of a metric."""
    return Column(info.heading, info.text, info.unit, info.higher_is_better)


def ordered(study: Study) -> list[tuple[str, MetricInfo]]:
    """The metrics in the order in which readers look for them, unknown ones last."""
    places = {name: at for at, name in enumerate(HEADINGS)}
    return sorted(study.metrics.items(), key=lambda item: places.get(item[0], len(places)))


def shown(study: Study, number: Number | None, *, places: int = 3, scale: float = 1.0) -> Value:
    """A number with its interval; '–' where it was not measured."""
    if number is None or not math.isfinite(number.value):
        return Value("–", "", math.nan)
    interval = ""
    if number.has_interval:
        interval = f"{plain(scale * number.low, places)} to {plain(scale * number.high, places)}"
    text = plain(scale * number.value, places)
    return Value(text, interval, scale * number.value, hint=hint(study, number.key))


def shown_difference(study: Study, test: PairedTest, *, places: int = 3) -> Value:
    """A difference with its sign, its interval and its verdict."""
    number = test.difference
    if not math.isfinite(number.value):
        return Value("–", "", math.nan)
    ends = ""
    if number.has_interval:
        ends = f"{signed(number.low, places)} to {signed(number.high, places)}"
    mark = "" if test.verdict == "unclear" else test.verdict
    source = hint(study, number.key)
    return Value(signed(number.value, places), ends, number.value, mark, source)


def p_text(p: float) -> str:
    """'0.034', '< 0.001'; '–' where there is none."""
    if not math.isfinite(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def duration(seconds: float) -> str:
    """'52 s', '14 min', '3.2 h'; '–' where unknown."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def energy(joules: float) -> str:
    """'0.15 kWh', '12 Wh'; 'not measured' where unknown."""
    if not math.isfinite(joules):
        return "not measured"
    hours = joules / 3600
    return f"{hours / 1000:.2f} kWh" if hours >= 100 else f"{hours:.2g} Wh"


# -------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class MetricRow:
    """One cell in several metrics."""

    look: Look
    labels: int
    runs: int
    values: list[Value]


@dataclass(frozen=True)
class MetricTable:
    """The metrics that were measured in a sweep, with a row for each cell."""

    columns: list[Column]
    rows: list[MetricRow]


def metric_table(study: Study, sweep: str, looks: Mapping[str, Look]) -> MetricTable:
    """Means over images: label counts rising, methods in their order."""

    def value(cell: Cell, name: str, info: MetricInfo) -> Value:
        leads = study.leaders.get((cell.sweep, cell.labels, name)) == cell.method
        found = shown(study, cell.metrics.get(name), places=digits(info.unit))
        return replace(found, mark="best" if leads else "")

    return _table(study, sweep, looks, value)


def pooled_table(study: Study, sweep: str, looks: Mapping[str, Look]) -> MetricTable:
    """All pixels of the split as one, without intervals; in the same order."""

    def value(cell: Cell, name: str, info: MetricInfo) -> Value:
        number, source = cell.pooled.get(name, math.nan), cell.metrics.get(name)
        told = hint(study, source.key) if source else ""
        return Value(plain(number, digits(info.unit)), "", number, hint=told)

    return _table(study, sweep, looks, value)


def _table(
    study: Study,
    sweep: str,
    looks: Mapping[str, Look],
    value: Callable[[Cell, str, MetricInfo], Value],
) -> MetricTable:
    """Leaves out the metrics that no cell of the sweep has."""
    cells = [cell for cell in study.cells if cell.sweep == sweep]
    cells.sort(key=lambda cell: fewest_first(cell.labels))
    found = {name: [value(cell, name, info) for cell in cells] for name, info in ordered(study)}
    found = {n: vs for n, vs in found.items() if any(math.isfinite(v.sort) for v in vs)}
    rows = [
        MetricRow(looks[c.method], c.labels, len(c.runs), [vs[at] for vs in found.values()])
        for at, c in enumerate(cells)
    ]
    return MetricTable([column(study.metrics[name]) for name in found], rows)


@dataclass(frozen=True)
class CalibreRow:
    """What share of thin, mid and thick arteries one cell finds."""

    look: Look
    labels: int
    values: list[Value]


def calibre_rows(
    study: Study, cells: Sequence[Cell], looks: Mapping[str, Look]
) -> list[CalibreRow]:
    """One row for each cell in which it was measured."""
    return [
        CalibreRow(
            looks[cell.method],
            cell.labels,
            [shown(study, cell.calibre.get(name)) for name in CALIBRES],
        )
        for cell in sorted(cells, key=lambda cell: fewest_first(cell.labels))
        if cell.calibre
    ]


@dataclass(frozen=True)
class CalibrationRow:
    """How far the probabilities of one cell can be believed."""

    look: Look
    labels: int
    ece: Value
    brier: Value


def calibration_rows(
    study: Study, found: Sequence[tuple[Look, Cell, Calibration]]
) -> list[CalibrationRow]:
    """One row for each cell in which it was measured."""
    return [
        CalibrationRow(
            look,
            cell.labels,
            shown(study, calibration.ece, places=4),
            shown(study, calibration.brier, places=4),
        )
        for look, cell, calibration in sorted(found, key=lambda row: fewest_first(row[1].labels))
    ]


@dataclass(frozen=True)
class DifferenceRow:
    """A method against scratch in one metric; `p` is over images, and over patients, as text."""

    column: Column
    look: Look
    labels: int
    value: Value
    p: tuple[str, str]
    test: PairedTest


def difference_rows(
    study: Study, found: Sequence[Difference], looks: Mapping[str, Look]
) -> list[DifferenceRow]:
    """Every comparison to scratch, with the Holm-corrected p over images and over patients."""
    places = {name: at for at, (name, _) in enumerate(ordered(study))}
    return [
        DifferenceRow(
            column(study.metrics[row.metric]),
            looks[row.method],
            row.labels,
            shown_difference(study, row.test, places=digits(study.metrics[row.metric].unit)),
            (p_text(row.test.p_images_holm), p_text(row.test.p_patients_holm)),
            row.test,
        )
        for row in sorted(found, key=lambda row: (places[row.metric], fewest_first(row.labels)))
    ]
