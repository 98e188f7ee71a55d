"""What each sweep of a study contributes to the page: drawings, tables and their files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cmunet_jax.report import blocks, charts, figures, forest
from cmunet_jax.report.blocks import Origin
from cmunet_jax.report.charts import Look
from cmunet_jax.report.figures import Drawing
from cmunet_jax.report.forest import Forest
from cmunet_jax.report.results import PRIMARY
from cmunet_jax.report.sections import KEY_METRICS, Value
from cmunet_jax.report.study import (
    REFERENCE,
    Calibration,
    Cell,
    Number,
    Study,
    Sweep,
    fewest_first,
    method_name,
)


@dataclass(frozen=True)
class Part:
    """What one sweep contributes to the sections; what it does not hold stays empty.

    Attributes:
      sweep: it.
      number: place among the sweeps, for ids.
      looks: of its methods.
      metrics: table of all metrics.
      pooled: the same with all images as one.
      curves: label efficiency of Dice.
      each_curve: the same, each method alone with scratch.
      more_curves: label efficiency in other metrics.
      drops: relative drops.
      drop_rows: (look, drop, what it saves against scratch).
      forest: differences to scratch.
      differences: (metric heading, look, label count, difference, p, corrected p) of all metrics.
      scatter: label count -> drawings.
      calibre: drawings, one for each label count.
      calibre_rows: the same as a table.
      reliability: drawings, one for each label count.
      calibration_rows: ECE and Brier score.
      changes: one thing changed at a time.
      search: learning rates, one drawing for each label count.
      origins: section -> files.
    """

    sweep: Sweep
    number: int
    looks: list[Look]
    metrics: blocks.MetricTable
    pooled: blocks.MetricTable
    curves: Drawing | None = None
    each_curve: list[Drawing] = field(default_factory=list)
    more_curves: list[Drawing] = field(default_factory=list)
    drops: Drawing | None = None
    drop_rows: list[tuple[Look, Value, Value]] = field(default_factory=list)
    forest: Forest | None = None
    differences: list[blocks.DifferenceRow] = field(default_factory=list)
    scatter: list[tuple[int, list[Drawing]]] = field(default_factory=list)
    calibre: list[Drawing] = field(default_factory=list)
    calibre_rows: list[blocks.CalibreRow] = field(default_factory=list)
    reliability: list[Drawing] = field(default_factory=list)
    calibration_rows: list[blocks.CalibrationRow] = field(default_factory=list)
    changes: Forest | None = None
    search: list[Drawing] = field(default_factory=list)
    origins: Mapping[str, list[Origin]] = field(default_factory=dict)


def make_part(study: Study, sweep: Sweep, number: int, looks: Mapping[str, Look]) -> Part:
    """Draws and arranges what belongs to one sweep.

    Args:
      study: all of it.
      sweep: one of its sweeps.
      number: place among them, for ids that are unique within the page.
      looks: of every method of the study.
    """
    label = sweep.label
    cells = [cell for cell in study.cells if cell.sweep == label]
    own = [m for m in study.methods if any(cell.method == m for cell in cells)]
    many = len({cell.labels for cell in cells}) > 1
    found = [d for d in study.differences if d.sweep == label]
    changed = [v for v in study.variants if v.sweep == label]
    drops = [(looks[d.method], d) for d in study.drops if d.sweep == label]
    calibrated = [(looks[c.method], c, c.calibration) for c in cells if c.calibration]
    curves = _curves(study, label, number, own, looks) if many else []
    return Part(
        sweep=sweep,
        number=number,
        looks=[looks[method] for method in own],
        metrics=blocks.metric_table(study, label, looks),
        pooled=blocks.pooled_table(study, label, looks),
        curves=curves[0] if curves else None,
        each_curve=_each_curve(study, label, number, own, looks) if many else [],
        more_curves=curves[1:],
        drops=_drops(drops, f"drops{number}") if drops else None,
        drop_rows=[
            (
                look,
                blocks.shown(study, drop.drop, places=1, scale=100),
                blocks.shown(study, drop.saved, places=1, scale=100),
            )
            for look, drop in drops
        ],
        forest=forest.make(study, [d for d in found if d.metric == PRIMARY], looks),
        differences=blocks.difference_rows(study, found, looks),
        scatter=_scatter(cells, number, looks),
        calibre=_calibre(cells, number, looks),
        calibre_rows=blocks.calibre_rows(study, cells, looks),
        reliability=_reliability(calibrated, number),
        calibration_rows=blocks.calibration_rows(study, calibrated),
        changes=forest.make(study, changed, looks),
        search=_search(study, label, number),
        origins=_origins(study, label, cells),
    )


def _labels(labels: int) -> str:
    return f"{labels} labels" if labels else "all labels"


def _by_labels(
    cells: Iterable[Cell], looks: Mapping[str, Look]
) -> list[tuple[int, list[tuple[Look, Cell]]]]:
    """Cells of each label count, the fewest labels first and 'all' (0) last."""
    groups: dict[int, list[tuple[Look, Cell]]] = {}
    for cell in cells:
        groups.setdefault(cell.labels, []).append((looks[cell.method], cell))
    return sorted(groups.items(), key=lambda item: fewest_first(item[0]))


def _curves(
    study: Study, label: str, number: int, methods: Sequence[str], looks: Mapping[str, Look]
) -> list[Drawing]:
    """The curve of the primary metric, then small ones of the other key metrics."""
    wanted = [PRIMARY, *(name for name in KEY_METRICS if name != PRIMARY)]
    drawings = []
    for name in wanted:
        if name in study.metrics:
            info = study.metrics[name]
            lines = [charts.Line(looks[m], study.curve(label, m, name)) for m in methods]
            arrow = "higher" if info.higher_is_better else "lower"
            drawings.append(
                charts.efficiency(
                    lines,
                    key=f"curve{number}-{name}",
                    title=f"{info.heading} ({arrow} is better)",
                    ylabel=f"{info.heading}{', ' + info.unit if info.unit else ''}",
                    small=name != PRIMARY,
                    everything=study.everything(label),
                )
            )
    return drawings


def _each_curve(
    study: Study, label: str, number: int, methods: Sequence[str], looks: Mapping[str, Look]
) -> list[Drawing]:
    """Each method with scratch on one scale, where more than two make the bands overlap."""
    if len(methods) < 3 or REFERENCE not in methods:
        return []
    lines = {m: charts.Line(looks[m], study.curve(label, m)) for m in methods}
    limits = charts.limits(number for line in lines.values() for _, number in line.points)
    return [
        charts.efficiency(
            [lines[REFERENCE], lines[method]],
            key=f"each{number}-{method}",
            title=method_name(method),
            ylabel="Dice",
            small=True,
            limits=limits,
            everything=study.everything(label),
        )
        for method in methods
        if method != REFERENCE
    ]


def _calibre(cells: Sequence[Cell], number: int, looks: Mapping[str, Look]) -> list[Drawing]:
    limits = charts.limits(share for cell in cells for share in cell.calibre.values())
    return [
        charts.calibre(group, key=f"calibre{number}-{labels}", title=_labels(labels), limits=limits)
        for labels, group in _by_labels(cells, looks)
        if any(cell.calibre for _, cell in group)
    ]


def _drops(found: Sequence[tuple[Look, Any]], key: str) -> Drawing:
    most, least = found[0][1].most, found[0][1].least
    title = f"Dice lost from {blocks.label_text(most)} to {blocks.label_text(least)} labels"
    return charts.drops(found, key=key, title=title)


def _scatter(
    cells: Sequence[Cell], number: int, looks: Mapping[str, Look]
) -> list[tuple[int, list[Drawing]]]:
    """Each method against scratch, image by image; all panels of a sweep on one scale."""
    found = []
    limits = figures.dice_limits(*(cell.per_image.values for cell in cells)) if cells else None
    for labels, group in _by_labels(cells, looks):
        base = next((cell for _, cell in group if cell.method == REFERENCE), None)
        others = [(look, cell) for look, cell in group if cell.method != REFERENCE]
        if base is None or not others:
            continue
        place = {identity: at for at, identity in enumerate(base.per_image.ids)}
        drawings = []
        for look, cell in others:
            shared = [at for at, identity in enumerate(cell.per_image.ids) if identity in place]
            if shared:
                theirs = [place[cell.per_image.ids[at]] for at in shared]
                drawings.append(
                    figures.paired_scatter(
                        base.per_image.values[theirs],
                        cell.per_image.values[shared],
                        names=(method_name(REFERENCE), look.name),
                        key=f"scatter{number}-{labels}-{cell.method}",
                        colour=look.index,
                        title=look.name,
                        small=True,
                        limits=limits,
                    )
                )
        found.append((labels, drawings))
    return found


def _reliability(found: Sequence[tuple[Look, Cell, Calibration]], number: int) -> list[Drawing]:
    groups: dict[int, list[tuple[Look, Calibration]]] = {}
    for look, cell, calibration in found:
        groups.setdefault(cell.labels, []).append((look, calibration))
    return [
        charts.reliability(group, key=f"reliability{number}-{labels}", title=_labels(labels))
        for labels, group in sorted(groups.items(), key=lambda item: fewest_first(item[0]))
    ]


def _search(study: Study, label: str, number: int) -> list[Drawing]:
    """One drawing for each label count; draws with a search of their own are averaged."""
    found = [s for s in study.searches if s.sweep == label and not s.variant]
    drawings = []
    for labels in sorted({s.labels for s in found}, key=fewest_first):
        groups: dict[str, list[Any]] = {}
        for entry in found:
            if entry.labels == labels:
                groups.setdefault(entry.method, []).append(entry)
        key = f"search{number}-{labels}"
        drawings.append(charts.search(groups, key=key, title=_labels(labels)))
    return drawings


def _origins(study: Study, label: str, cells: Sequence[Cell]) -> dict[str, list[Origin]]:
    def of(numbers: Iterable[Number]) -> list[Origin]:
        return blocks.origins(study, [number.key for number in numbers])

    calibrated = [c.calibration for c in cells if c.calibration]
    own = [v for v in study.variants if v.sweep == label]
    return {
        "cells": of(number for cell in cells for number in cell.metrics.values()),
        "drops": of(n for d in study.drops if d.sweep == label for n in (d.drop, d.saved)),
        "differences": of(d.test.difference for d in study.differences if d.sweep == label),
        "calibre": of(number for cell in cells for number in cell.calibre.values()),
        "calibration": of(n for found in calibrated for n in (found.ece, found.brier)),
        "changes": of(n for v in own for n in (v.base, v.varied, v.test.difference)),
        "search": of(s.value for s in study.searches if s.sweep == label),
    }
