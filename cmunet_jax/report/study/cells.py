"""The points of the label-efficiency curves: means over runs and images, with their bands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cmunet_jax.evaluation import repeated
from cmunet_jax.evaluation.calibre import CALIBRES
from cmunet_jax.report.results import PRIMARY, lookup
from cmunet_jax.report.study.ledger import Ledger
from cmunet_jax.report.study.measures import (
    Bin,
    Calibration,
    Cell,
    MetricInfo,
    Number,
    Overlay,
    PerImage,
    Run,
)
from cmunet_jax.report.study.panels import SENSITIVITY, Panel, Panels
from cmunet_jax.report.study.trials import SweepFiles, Trial


def make_cells(
    sweep: SweepFiles,
    panels: Panels,
    metrics: Mapping[str, MetricInfo],
    ledger: Ledger,
    *,
    resamples: int,
) -> list[Cell]:
    """One cell for each method and label count; variants have none."""
    pretrained = {trial.key for trial in sweep.of_kind("pretrain")}
    return [
        _cell(sweep.label, panel, metrics, pretrained, ledger, resamples)
        for panel in panels.values()
        if not panel.variant
    ]


def _cell(
    label: str,
    panel: Panel,
    metrics: Mapping[str, MetricInfo],
    pretrained: set[str],
    ledger: Ledger,
    resamples: int,
) -> Cell:
    means = repeated.mean(panel.values)
    replicates = repeated.resampled_means(
        panel.values, panel.images.clusters, panel.draws, resamples=resamples
    )
    low, high = repeated.interval(replicates)
    key = f"{label}/{panel.method}/{panel.labels}"
    numbers = {
        name: ledger.number(f"{key}/{name}", means[at], low[at], high[at], files=panel.files)
        for at, name in enumerate(panel.names)
    }
    per_run = np.stack([repeated.mean(run[None]) for run in panel.values])
    spread = per_run.std(axis=0, ddof=1) if len(per_run) > 1 else np.full(len(metrics), math.nan)
    starts = {other for trial in panel.trials for other in trial.depends if other in pretrained}
    return Cell(
        sweep=label,
        method=panel.method,
        labels=panel.labels,
        variant=panel.variant,
        metrics={name: numbers[name] for name in metrics if name not in SENSITIVITY},
        pooled=_pooled(panel, metrics),
        spread=dict(zip(panel.names, map(float, spread))),
        calibre={
            calibre: numbers[name]
            for calibre, name in zip(CALIBRES, SENSITIVITY)
            if name in numbers and math.isfinite(numbers[name].value)
        },
        calibration=_calibration(key, panel, ledger),
        per_image=PerImage(
            panel.images.ids, panel.images.patients, panel.column(PRIMARY).mean(axis=0)
        ),
        runs=tuple(_run(t, dict(zip(panel.names, row))) for t, row in zip(panel.trials, per_run)),
        pretrained=len(starts),
        n_images=len(panel.images.ids),
        n_patients=panel.images.n_patients,
        overlays=tuple(overlay for trial in panel.trials for overlay in _overlays(trial)),
    )


def _pooled(panel: Panel, metrics: Mapping[str, MetricInfo]) -> dict[str, float]:
    """Mean over runs of the value of all images taken as one."""
    found = [t.evaluation.metrics for t in panel.trials if t.evaluation]
    return {
        name: float(np.mean([row[name].pooled for row in found]))
        for name in metrics
        if all(name in row for row in found)
    }


def _run(trial: Trial, means: Mapping[str, float]) -> Run:
    assert trial.evaluation is not None
    steps, seconds = trial.number("steps"), trial.number("seconds")
    return Run(
        key=trial.key,
        name=trial.name,
        draw=trial.draw,
        seed=trial.seed,
        learning_rate=trial.learning_rate,
        steps=int(steps) if math.isfinite(steps) else 0,
        seconds=seconds,
        means={name: float(value) for name, value in means.items()},
        digest=str(lookup(trial.result, "checkpoint", "digest") or ""),
        directory=trial.evaluation.directory,
    )


def _overlays(trial: Trial) -> list[Overlay]:
    assert trial.evaluation is not None
    dice = trial.evaluation.metrics[PRIMARY].values
    return [
        Overlay(
            method=trial.method,
            labels=trial.labels,
            draw=trial.draw,
            seed=trial.seed,
            rank=rank,
            id=trial.evaluation.ids[at],
            dice=float(dice[at]),
            path=path,
        )
        for rank, at, path in trial.evaluation.overlays()
    ]


# --------------------------------------------------------------------------------- calibration


def _calibration(key: str, panel: Panel, ledger: Ledger) -> Calibration | None:
    """Bins of all runs together; None unless every run has them, in the same edges."""
    found = [t.evaluation.fact("calibration") for t in panel.trials if t.evaluation]
    tables = [entry["bins"] for entry in found if _has_table(entry)]
    if len(tables) < len(panel.trials):
        return None
    edges = {tuple((row["low"], row["high"]) for row in table) for table in tables}
    if len(edges) > 1:
        return None
    bins = tuple(_merge(rows) for rows in zip(*tables))

    def overall(name: str) -> Number:
        values = [entry.get(name) for entry in found]
        known = all(isinstance(value, int | float) for value in values)
        mean = float(np.mean(values)) if known else math.nan
        return ledger.number(f"{key}/calibration/{name}", mean, files=panel.files)

    return Calibration(overall("ece"), overall("brier"), bins)


def _has_table(entry: Any) -> bool:
    """Whether an entry of a summary holds reliability bins."""
    names = ("low", "high", "count")
    bins = entry.get("bins") if isinstance(entry, Mapping) else None
    return isinstance(bins, list) and all(
        isinstance(row, Mapping) and all(isinstance(row.get(n), int | float) for n in names)
        for row in bins
    )


def _merge(rows: Sequence[Mapping[str, float | None]]) -> Bin:
    """One bin of several runs: its pixels counted together."""
    counts = np.array([row["count"] for row in rows], np.float64)

    def weighted(name: str) -> float:
        pairs = [(n, row.get(name)) for n, row in zip(counts, rows) if n > 0]
        if not pairs or any(value is None for _, value in pairs):
            return math.nan
        return float(sum(n * (value or 0.0) for n, value in pairs) / counts.sum())

    low, high = rows[0]["low"], rows[0]["high"]
    assert low is not None and high is not None
    return Bin(
        float(low),
        float(high),
        float(counts.sum()),
        weighted("mean_probability"),
        weighted("fraction_positive"),
    )
