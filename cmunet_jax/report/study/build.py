"""From sweep directories to a study: reads, computes, puts into words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmunet_jax.evaluation.statistics import RESAMPLES
from cmunet_jax.report.findings import count
from cmunet_jax.report.results import PRIMARY
from cmunet_jax.report.study import (
    cells as cells_lib,
)
from cmunet_jax.report.study import (
    changes,
    comparisons,
    limits,
    notes,
    published,
    reading,
    surroundings,
    wording,
)
from cmunet_jax.report.study.changes import Measured
from cmunet_jax.report.study.ledger import Ledger
from cmunet_jax.report.study.measures import METHODS, Cell, Difference, Drop, MetricInfo, Variant
from cmunet_jax.report.study.model import Cost, Failure, Search, SplitRead, Study
from cmunet_jax.report.study.panels import metrics_of, panels_of
from cmunet_jax.report.study.trials import AGAIN, SweepFiles
from tfds_angio.errors import UserError


def read_study(
    directories: Sequence[Path | str], *, title: str = "", resamples: int = RESAMPLES
) -> Study:
    """Reads one or several sweeps and computes everything that a report says about them.

    Args:
      directories: of sweeps, e.g. one under the protocol 'fair', one under 'paper', one with
        variants.
      title: heading; default that of the first sweep.
      resamples: bootstrap replicates of each interval.

    Raises:
      UserError: if a folder is named twice, or nothing can be reported; the reason names what was
        left out. A folder that does not exist beside others is a problem of the study.
    """
    paths = [Path(directory) for directory in directories]
    if not paths:
        raise UserError("config.sweep is empty: name the workdir of a sweep.")
    ledger = Ledger()
    labels = reading.labels_of(paths)
    read = [reading.read_sweep(path, label, ledger) for path, label in zip(paths, labels)]
    files = [sweep for sweep in read if sweep is not None]
    measured = {}
    for sweep in files:
        metrics = metrics_of(sweep)
        measured[sweep.label] = (metrics, Measured(sweep, panels_of(sweep, list(metrics))))
    if not any(found.panels for _, found in measured.values()):
        raise UserError(_nothing_left(paths, ledger))
    return _Computed(measured, ledger, resamples).study(title)


def _nothing_left(paths: Sequence[Path], ledger: Ledger) -> str:
    """Names the first problem of the commonest kind: one odd file is not why all is missing."""
    named = ", ".join(map(str, paths))
    if not ledger.problems:
        why = f", because no fine-tuning trial has finished: {AGAIN}."
        return f"{named} holds no result that can be reported{why}"
    kinds = Counter(problem.kind for problem in ledger.problems)
    kind, alike = kinds.most_common(1)[0]
    first = next(problem for problem in ledger.problems if problem.kind == kind)
    others = len(ledger.problems) - alike
    more = f" ({alike - 1} more like it)" if alike > 1 else ""
    more += f" (and {count(others, 'other problem')})" if others else ""
    return f"{named} holds no result that can be reported: {first.where}: {first.text}{more}"


class _Computed:
    """What is computed of each sweep, gathered over all of them."""

    def __init__(
        self,
        measured: dict[str, tuple[dict[str, MetricInfo], Measured]],
        ledger: Ledger,
        resamples: int,
    ) -> None:
        self.ledger, self.resamples = ledger, resamples
        self.measured = [found for _, found in measured.values()]
        self.metrics: dict[str, MetricInfo] = {}
        self.cells: list[Cell] = []
        self.differences: list[Difference] = []
        self.leaders: dict[tuple[str, int, str], str] = {}
        self.drops: list[Drop] = []
        self.variants: list[Variant] = []
        self.searches: list[Search] = []
        self.costs: list[Cost] = []
        self.failures: list[Failure] = []
        self.reads: list[SplitRead] = []
        for metrics, found in measured.values():
            self._add(metrics, found)

    def _add(self, metrics: dict[str, MetricInfo], found: Measured) -> None:
        sweep, ledger, draws = found.sweep, self.ledger, {"resamples": self.resamples}
        label, panels = sweep.label, found.panels
        self.metrics |= {name: info for name, info in metrics.items() if name not in self.metrics}
        self.cells += cells_lib.make_cells(sweep, panels, metrics, ledger, **draws)
        self.differences += comparisons.differences(label, panels, metrics, ledger, **draws)
        self.leaders |= comparisons.leaders(label, panels, metrics, **draws)
        self.drops += comparisons.drops(label, panels, ledger, **draws)
        if PRIMARY in metrics:
            self.variants += changes.variants(
                found, self.measured, metrics[PRIMARY], ledger, **draws
            )
        self.searches += surroundings.searches(sweep, ledger)
        self.costs += surroundings.costs(sweep, ledger)
        self.failures += surroundings.failures(label, sweep.directory, self.cells, ledger)
        self.reads += surroundings.reads(sweep, ledger)

    def study(self, title: str) -> Study:
        """Everything, with words."""
        files: list[SweepFiles] = [found.sweep for found in self.measured]
        sweeps = [surroundings.describe(sweep) for sweep in files]
        images = {
            found.sweep.label: next(iter(found.panels.values())).images
            for found in self.measured
            if found.panels
        }
        problems = tuple(self.ledger.problems)
        known = [m for m in METHODS if any(cell.method == m for cell in self.cells)]
        others = sorted({cell.method for cell in self.cells} - set(known))
        first = next(iter(images.values()))
        return Study(
            title=title or (sweeps[0].title if sweeps else ""),
            sweeps=tuple(sweeps),
            metrics=self.metrics,
            methods=(*known, *others),
            cells=tuple(self.cells),
            differences=tuple(self.differences),
            leaders=self.leaders,
            drops=tuple(self.drops),
            variants=tuple(self.variants),
            searches=tuple(self.searches),
            costs=tuple(self.costs),
            failures=tuple(self.failures),
            papers=tuple(
                published.beside(s, self.cells, self.drops)
                for s in sweeps
                if any(cell.sweep == s.label for cell in self.cells)
            ),
            test_reads=tuple(self.reads),
            problems=problems,
            findings=tuple(
                wording.findings(
                    sweeps, self.cells, self.differences, self.drops, self.variants, self.costs
                )
            ),
            caveats=tuple(limits.caveats(sweeps, self.cells, images, problems, self.costs)),
            notes=notes.notes(self.resamples, first.clusters.note, _calibre(files)),
            reproduction=limits.reproduction(files, sweeps),
            provenance=self.ledger.provenance,
            sources=self.ledger.sources,
        )


def _calibre(files: Sequence[SweepFiles]) -> Mapping[str, Any]:
    """Bounds of the calibres, as the first evaluation states them."""
    for sweep in files:
        for trial in sweep.trials:
            found = trial.evaluation.fact("calibre") if trial.evaluation else None
            if isinstance(found, Mapping):
                return found
    return {}
