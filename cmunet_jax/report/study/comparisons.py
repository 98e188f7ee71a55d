"""Paired comparisons: a method against scratch, few labels against many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cmunet_jax.evaluation import repeated
from cmunet_jax.report.comparison import ALPHA
from cmunet_jax.report.results import PRIMARY, Floats
from cmunet_jax.report.study.ledger import Ledger
from cmunet_jax.report.study.measures import (
    REFERENCE,
    Difference,
    Drop,
    MetricInfo,
    Number,
    PairedTest,
    fewest_first,
)
from cmunet_jax.report.study.panels import Panel, Panels, shared_runs


@dataclass(frozen=True)
class Pair:
    """Two panels on the runs that both have.

    Attributes:
      ours: what is judged.
      reference: what it is judged against.
    """

    ours: Panel
    reference: Panel

    @property
    def difference(self) -> Floats:
        """[R, N, M] ours − reference, run by run and image by image."""
        return self.ours.values - self.reference.values

    @property
    def files(self) -> list[str]:
        """Files of both."""
        return self.ours.files + self.reference.files


def pair(ours: Panel, reference: Panel, what: str, ledger: Ledger) -> Pair | None:
    """Pairs two panels by draw and seed; None, with a problem, where they share no run."""
    shared = shared_runs(ours, reference)
    alone = len(ours.trials) + len(reference.trials) - 2 * len(shared)
    if alone:
        ledger.problem(
            "pairing",
            what,
            f"{alone} of {len(ours.trials) + len(reference.trials)} runs have no partner with the "
            "same draw and seed, so this comparison leaves them out"
            + ("." if shared else " and cannot be made."),
        )
    return Pair(ours.only(shared), reference.only(shared)) if shared else None


# --------------------------------------------------------------------------- paired differences


def differences(
    label: str,
    panels: Panels,
    metrics: Mapping[str, MetricInfo],
    ledger: Ledger,
    *,
    resamples: int,
) -> list[Difference]:
    """Every method against scratch at each label count, every metric; Holm within a metric."""
    found: list[Difference] = []
    for (method, labels, variant), panel in panels.items():
        reference = panels.get((REFERENCE, labels, ""))
        if method == REFERENCE or variant or reference is None:
            continue
        key = f"{label}/{method}-{REFERENCE}/{labels}"
        pairing = pair(panel, reference, key, ledger)
        if pairing is None:
            continue
        for name, test in tests_of(key, pairing, metrics, ledger, resamples).items():
            found.append(Difference(label, method, REFERENCE, labels, name, test))
    after: dict[int, PairedTest] = {}
    for name, info in metrics.items():
        places = [at for at, difference in enumerate(found) if difference.metric == name]
        family = corrected([found[at].test for at in places], info.higher_is_better)
        after |= dict(zip(places, family))
    return [replace(found[at], test=after[at]) for at in range(len(found))]


def tests_of(
    key: str,
    pairing: Pair,
    metrics: Mapping[str, MetricInfo],
    ledger: Ledger,
    resamples: int,
) -> dict[str, PairedTest]:
    """Uncorrected tests of every metric that has a mean; metric -> test."""
    panel, values = pairing.ours, pairing.difference
    means = repeated.mean(values)
    replicates = repeated.resampled_means(
        values, panel.images.clusters, panel.draws, resamples=resamples
    )
    low, high = repeated.interval(replicates)
    found = {}
    for name, info in metrics.items():
        at = panel.names.index(name)
        # An infinite distance (protocol `paper`) has no difference.
        per_image = values[:, :, at].mean(axis=0)
        if not math.isfinite(means[at]) or np.isinf(values[:, :, at]).any():
            continue
        better = per_image if info.higher_is_better else -per_image
        clusters = panel.images.clusters
        per_patient = repeated.by_patient(per_image, clusters)
        known = panel.images.n_patients > 0
        found[name] = PairedTest(
            difference=ledger.number(
                f"{key}/{name}", means[at], low[at], high[at], files=pairing.files
            ),
            p_images=repeated.wilcoxon(per_image),
            p_images_holm=math.nan,
            p_patients=repeated.wilcoxon(per_patient) if known else math.nan,
            p_patients_holm=math.nan,
            wins=int((better > 0).sum()),
            losses=int((better < 0).sum()),
            n_images=int(np.isfinite(per_image).sum()),
            n_patients=panel.images.n_patients,
            n_runs=len(panel.trials),
            family=1,
            verdict="unclear",
        )
    return found


def corrected(tests: Sequence[PairedTest], higher_is_better: bool) -> list[PairedTest]:
    """The tests of one family after Holm's correction, with their verdicts."""
    images = repeated.holm([test.p_images for test in tests])
    patients = repeated.holm([test.p_patients for test in tests])
    found = []
    for test, by_image, by_patient in zip(tests, images, patients):
        made = replace(
            test,
            p_images_holm=float(by_image),
            p_patients_holm=float(by_patient),
            family=len(tests),
        )
        found.append(replace(made, verdict=_verdict(made, higher_is_better)))
    return found


def _verdict(test: PairedTest, higher_is_better: bool) -> str:
    """'better' or 'worse' only where the interval leaves zero and the corrected test agrees."""
    sign = 1 if higher_is_better else -1
    low, high = sorted((sign * test.difference.low, sign * test.difference.high))
    p_value = test.p_patients_holm if test.n_patients else test.p_images_holm
    if not (low > 0 or high < 0) or not p_value < ALPHA:
        return "unclear"
    return "better" if low > 0 else "worse"


# ---------------------------------------------------------------------------- relative drops


def drops(label: str, panels: Panels, ledger: Ledger, *, resamples: int) -> list[Drop]:
    """How much of its Dice each method loses from the most to the fewest labels of the sweep."""
    counts = {labels for _, labels, variant in panels if not variant}
    if len(counts) < 2:
        return []
    ranked = sorted(counts, key=fewest_first)
    least, most = ranked[0], ranked[-1]
    found = []
    for method in dict.fromkeys(method for method, _, _ in panels):
        ends = [panels.get((method, labels, "")) for labels in (most, least)]
        others = [panels.get((REFERENCE, labels, "")) for labels in (most, least)]
        if ends[0] is None or ends[1] is None:
            continue
        own = [end for end in ends if end is not None]
        both = own + [other for other in others if other is not None]
        key = f"{label}/{method}/{most}-{least}"
        drop = _drop(f"{key}/drop", own, ledger, resamples)
        saved = Number("", math.nan)
        if method != REFERENCE and len(both) == 4:
            saved = _drop(f"{key}/saved", both, ledger, resamples) or saved
        if drop is not None:
            counted = both if math.isfinite(saved.value) else own
            n_runs = len(shared_runs(*counted))
            found.append(Drop(label, method, most, least, drop, saved, n_runs))
    return found


def _drop(key: str, ends: Sequence[Panel], ledger: Ledger, resamples: int) -> Number | None:
    """1 − least/most of two panels (most, least); of four, how much more the last two lose."""
    shared = shared_runs(*ends)
    if not shared:
        return None
    paired = [panel.only(shared) for panel in ends]
    values = np.stack([panel.column(PRIMARY) for panel in paired], axis=2)

    def statistic(means: Floats) -> Floats:
        lost = 1 - means[:, 1::2] / np.where(means[:, ::2] > 0, means[:, ::2], np.nan)
        return lost[:, :1] if lost.shape[1] == 1 else lost[:, 1:] - lost[:, :1]

    replicates = repeated.resampled_means(
        values, paired[0].images.clusters, paired[0].draws, resamples=resamples
    )
    low, high = repeated.interval(statistic(replicates))
    value = statistic(repeated.mean(values)[None])[0, 0]
    files = [name for panel in paired for name in panel.files]
    return ledger.number(key, value, low[0], high[0], files=files)


# ------------------------------------------------------------------------------------ leaders


def leaders(
    label: str, panels: Panels, metrics: Mapping[str, MetricInfo], *, resamples: int
) -> dict[tuple[str, int, str], str]:
    """(sweep, labels, metric) -> the method that is better than each other, by paired intervals.

    Only where there are at least two methods on shared runs, and one is.
    """
    found = {}
    for labels in sorted({labels for _, labels, variant in panels if not variant}):
        row = [p for (_, count, variant), p in panels.items() if count == labels and not variant]
        shared = shared_runs(*row)
        if len(row) < 2 or not shared:
            continue
        paired = [panel.only(shared) for panel in row]
        values = np.concatenate([panel.values for panel in paired], axis=2)
        images, draws = paired[0].images, paired[0].draws
        replicates = repeated.resampled_means(values, images.clusters, draws, resamples=resamples)
        replicates = replicates.reshape(resamples, len(row), -1)
        means = repeated.mean(values).reshape(len(row), -1)
        for at, (name, info) in enumerate(metrics.items()):
            sign = 1.0 if info.higher_is_better else -1.0
            column, scores = sign * replicates[:, :, at], sign * means[:, at]
            if not np.isfinite(scores).all():
                continue
            best = int(np.argmax(scores))
            low, _ = repeated.interval(column[:, [best]] - np.delete(column, best, axis=1))
            if (low > 0).all():
                found[label, labels, name] = row[best].method
    return found
