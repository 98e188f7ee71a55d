"""Arranges the evaluations of a sweep as arrays: runs × images × metrics, in one order for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cmunet_jax.evaluation.calibre import CALIBRES
from cmunet_jax.evaluation.statistics import Clusters, cluster
from cmunet_jax.report.results import COLUMNS, PRIMARY, Floats
from cmunet_jax.report.sections import HEADINGS
from cmunet_jax.report.study.measures import MetricInfo
from cmunet_jax.report.study.trials import SweepFiles, Trial

SENSITIVITY = tuple(f"sensitivity_{calibre}" for calibre in CALIBRES)
# Columns of cases.csv that older evaluations state without words for them.
_WORDS: Mapping[str, MetricInfo] = {
    "brier": MetricInfo("brier", "Brier", "Brier score of the pixels", "", False),
    "ece": MetricInfo("ece", "ECE", "expected calibration error of the pixels", "", False),
} | {
    f"sensitivity_{calibre}": MetricInfo(
        f"sensitivity_{calibre}",
        f"Sensitivity, {calibre}",
        f"share of the true artery pixels of {calibre} vessels that were found",
        "",
        True,
    )
    for calibre in CALIBRES
}


@dataclass(frozen=True)
class Images:
    """The images that a sweep was measured on, in the order of all its panels.

    Attributes:
      ids: sorted.
      patients: of each; '' where unknown.
      clusters: of them.
    """

    ids: tuple[str, ...]
    patients: tuple[str, ...]
    clusters: Clusters

    @property
    def n_patients(self) -> int:
        """Patients, or 0 where they are unknown."""
        return self.clusters.count if self.clusters.unit == "patient" else 0


@dataclass(frozen=True)
class Panel:
    """All runs of one method at one label count.

    Attributes:
      method: its name.
      labels: label count.
      variant: '' or what was changed.
      trials: [R] by draw, seed.
      values: [R, N, M] float64; NaN where an image has no value.
      names: [M] of the metrics.
      images: [N].
    """

    method: str
    labels: int
    variant: str
    trials: tuple[Trial, ...]
    values: Floats
    names: tuple[str, ...]
    images: Images

    @property
    def draws(self) -> list[int]:
        """The draw of each run."""
        return [trial.draw for trial in self.trials]

    @property
    def files(self) -> list[str]:
        """Names of the files that the values are from."""
        return [name for trial in self.trials for name in trial.files]

    def column(self, name: str) -> Floats:
        """[R, N] values of one metric."""
        return self.values[:, :, self.names.index(name)]

    def only(self, runs: Sequence[tuple[int, int]]) -> Panel:
        """The same with these runs, (draw, seed), in this order."""
        place = {(trial.draw, trial.seed): at for at, trial in enumerate(self.trials)}
        rows = [place[run] for run in runs]
        trials = tuple(self.trials[row] for row in rows)
        return replace(self, trials=trials, values=self.values[rows])

    def just(self, name: str) -> Panel:
        """The same with one metric."""
        return replace(self, names=(name,), values=self.column(name)[:, :, None])


Panels = Mapping[tuple[str, int, str], Panel]


def shared_runs(*panels: Panel) -> list[tuple[int, int]]:
    """(draw, seed) of the runs that all panels have, in order."""
    runs = [{(trial.draw, trial.seed) for trial in panel.trials} for panel in panels]
    return sorted(set.intersection(*runs))


def metrics_of(sweep: SweepFiles) -> dict[str, MetricInfo]:
    """The metrics that every evaluation of a sweep has, in the order of the first.

    Variants do not count: they may measure otherwise, and are compared in the primary one only.
    """
    measured = [trial for trial in sweep.trials if trial.evaluation]
    plain = [trial for trial in measured if not trial.variant] or measured
    found = [trial.evaluation for trial in plain if trial.evaluation]
    words: dict[str, MetricInfo] = {}
    for evaluation in found[:1]:
        for name, metric in evaluation.metrics.items():
            words[name] = MetricInfo(
                name,
                HEADINGS.get(name, _WORDS[name].heading if name in _WORDS else name),
                metric.text,
                metric.unit,
                metric.higher_is_better,
            )
        words |= {name: _WORDS[name] for name in COLUMNS if name in evaluation.columns}
    return {
        name: info
        for name, info in words.items()
        if all(name in e.metrics or name in e.columns for e in found)
    }


def panels_of(sweep: SweepFiles, names: Sequence[str]) -> dict[tuple[str, int, str], Panel]:
    """(method, labels, variant) -> its runs, in the order of `Trial.order`."""
    groups: dict[tuple[str, int, str], list[Trial]] = {}
    for trial in sweep.of_kind("finetune"):
        groups.setdefault((trial.method, trial.labels, trial.variant), []).append(trial)
    first = next((trial.evaluation for trial in sweep.trials if trial.evaluation), None)
    if first is None:
        return {}
    patient_of = dict(zip(first.ids, first.patients))
    ids = tuple(sorted(first.ids))
    patients = tuple(patient_of[identity] for identity in ids)
    images = Images(ids, patients, cluster(patients))
    return {
        (method, labels, variant): Panel(
            method,
            labels,
            variant,
            tuple(trials),
            np.stack([_values(trial, ids, wanted) for trial in trials]),
            tuple(wanted),
            images,
        )
        for (method, labels, variant), trials in groups.items()
        for wanted in [(PRIMARY,) if variant else names]
    }


def _values(trial: Trial, ids: Sequence[str], names: Sequence[str]) -> Floats:
    """[N, M] of one evaluation, images in the order of `ids`."""
    found = trial.evaluation
    assert found is not None
    place = {identity: at for at, identity in enumerate(found.ids)}
    order = [place[identity] for identity in ids]
    columns = [
        found.metrics[name].values if name in found.metrics else found.columns[name]
        for name in names
    ]
    return np.stack(columns, axis=1)[order]
