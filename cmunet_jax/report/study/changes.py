"""Variants: one thing changed in a method, against the same method unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cmunet_jax import config as config_lib
from cmunet_jax.evaluation import repeated
from cmunet_jax.report.results import PRIMARY
from cmunet_jax.report.study.comparisons import Pair, corrected, pair, tests_of
from cmunet_jax.report.study.ledger import Ledger
from cmunet_jax.report.study.measures import MetricInfo, Number, Variant
from cmunet_jax.report.study.panels import Panel, Panels
from cmunet_jax.report.study.trials import SweepFiles, Trial

# Config entries in which two runs differ without being of different kinds: where things lie.
_NOT_COMPARED = (
    "data.dir",
    "data.source",
    "data.workers",
    "checkpoint.keep",
    "init_from",
    "evaluate.checkpoint",
    "evaluate.data.dir",
    "evaluate.data.source",
    "evaluate.data.workers",
)


@dataclass(frozen=True)
class Measured:
    """A sweep with its panels."""

    sweep: SweepFiles
    panels: Panels


def variants(
    own: Measured,
    all_sweeps: Sequence[Measured],
    primary: MetricInfo,
    ledger: Ledger,
    *,
    resamples: int,
) -> list[Variant]:
    """Each variant of a sweep against the same method unchanged, in the primary metric.

    The unchanged method is that of the sweep itself or, where that holds only variants, of another
    sweep that was measured on the same images. Holm's correction is over all variants of the sweep.
    """
    trials = {trial.key: trial for other in all_sweeps for trial in other.sweep.trials}
    label, found = own.sweep.label, []
    for (method, labels, variant), panel in own.panels.items():
        if not variant:
            continue
        key = f"{label}/{method}+{variant}/{labels}"
        base = _base(own, all_sweeps, panel)
        if base is None:
            text = "Its method was not measured unchanged at this label count: add that trial."
            ledger.problem("missing", key, text)
            continue
        pairing = pair(panel, base.just(PRIMARY), key, ledger)
        tests = tests_of(key, pairing, {PRIMARY: primary}, ledger, resamples) if pairing else {}
        if pairing is None or PRIMARY not in tests:
            continue
        before, after = (
            _mean(f"{key}/{name}", side, ledger, resamples)
            for name, side in (("base", pairing.reference), ("varied", pairing.ours))
        )
        changed = tuple(_changed(trials, pairing))
        found.append(
            Variant(label, variant, method, labels, changed, before, after, tests[PRIMARY])
        )
    family = corrected([variant.test for variant in found], primary.higher_is_better)
    return [replace(variant, test=test) for variant, test in zip(found, family)]


def _base(own: Measured, all_sweeps: Sequence[Measured], panel: Panel) -> Panel | None:
    """The method unchanged: of its own sweep, else of the first that shares protocol and images."""
    others = [other for other in all_sweeps if other is not own]
    protocol = own.sweep.record.get("protocol")
    others.sort(
        key=lambda other: (other.sweep.record.get("protocol") != protocol, other.sweep.label)
    )
    for other in (own, *others):
        found = other.panels.get((panel.method, panel.labels, ""))
        same = other.sweep.record["data"]["fingerprint"] == own.sweep.record["data"]["fingerprint"]
        if found is not None and same and found.images.ids == panel.images.ids:
            return found
    return None


def _mean(key: str, panel: Panel, ledger: Ledger, resamples: int) -> Number:
    replicates = repeated.resampled_means(
        panel.values, panel.images.clusters, panel.draws, resamples=resamples
    )
    low, high = repeated.interval(replicates)
    value = repeated.mean(panel.values)[0]
    return ledger.number(key, value, low[0], high[0], files=panel.files)


def _changed(trials: Mapping[str, Trial], pairing: Pair) -> Iterator[str]:
    """Config entries in which the variant, or its pre-training, differs from the method."""
    ours, theirs = pairing.ours.trials[0], pairing.reference.trials[0]
    yield from _differences(theirs, ours)
    before, after = (_start(trials, trial) for trial in (theirs, ours))
    if before and after and before.key != after.key:
        yield from (f"pre-training: {line}" for line in _differences(before, after))


def _start(trials: Mapping[str, Trial], trial: Trial) -> Trial | None:
    """The pre-training that a trial starts from."""
    found = (trials[key] for key in trial.depends if key in trials)
    return next((other for other in found if other.kind == "pretrain"), None)


def _differences(ours: Trial, theirs: Trial) -> list[str]:
    lines = config_lib.differences(ours.config, theirs.config)
    return [line for line in lines if line.partition(": ")[0] not in _NOT_COMPARED]
