"""What surrounds the results: searches, costs, failures, reads of the test split."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmunet_jax.report import images
from cmunet_jax.report.results import lookup
from cmunet_jax.report.study import partitions
from cmunet_jax.report.study.ledger import Ledger
from cmunet_jax.report.study.measures import Cell, Failure, Overlay, fewest_first
from cmunet_jax.report.study.model import Cost, Search, SplitRead, Sweep
from cmunet_jax.report.study.trials import READS, SweepFiles, Trial
from tfds_angio.errors import UserError

MOST_FAILURES = 6  # of each label count that is looked at


def describe(sweep: SweepFiles) -> Sweep:
    """What a sweep says of itself, and what became of its trials."""
    record = sweep.record
    spent = [trial.number("seconds") for trial in sweep.trials]
    measured = [trial for trial in sweep.trials if trial.evaluation]
    # A variant may select or divide otherwise: that is then what it is there to show.
    plain = [trial for trial in measured if not trial.variant] or measured
    found = [trial.evaluation for trial in plain if trial.evaluation]
    first = found[0] if found else None
    return Sweep(
        label=sweep.label,
        directory=sweep.directory,
        title=str(record.get("title") or sweep.label),
        protocol=str(record.get("protocol") or ""),
        scale=str(record.get("scale") or ""),
        created=str(record.get("created") or ""),
        data=record["data"],
        split=str(first.fact("split") or "") if first else "",
        config=record.get("config") or {},
        versions=record.get("versions") or {},
        planned=sweep.planned,
        done=len(sweep.trials),
        failed=sweep.failed,
        seconds=float(np.nansum(spent)) if spent else 0.0,
        energy_joules=_energy(sweep.trials),
        everything=_everything(record["data"]),
        selected_on=partitions.selected_on(found),
        seen=partitions.overlap(found),
        rule=partitions.rule(found),
        deviations=_lines(record.get("deviations")),
    )


def _lines(value: object) -> tuple[str, ...]:
    return tuple(str(line) for line in value) if isinstance(value, list) else ()


def _everything(data: Mapping[str, Any]) -> int:
    """Images of the training split, all of which a label count of 0 takes; 0 where unknown."""
    size = lookup(data, "splits", "train")
    return size if isinstance(size, int) else 0


def _energy(trials: Iterable[Trial]) -> float:
    """Joules of all; NaN where one is unknown, which would make the sum a lie."""
    values = [trial.number("energy_joules") for trial in trials]
    return float(np.sum(values)) if values else math.nan


# ------------------------------------------------------------------------------------ searches


def searches(sweep: SweepFiles, ledger: Ledger) -> list[Search]:
    """The learning rates that were tried, and which was taken."""
    groups: dict[tuple[str, int, str, int], dict[float, list[Trial]]] = {}
    for trial in sweep.of_kind("search"):
        group = (trial.method, trial.labels, trial.variant, trial.draw)
        groups.setdefault(group, {}).setdefault(trial.learning_rate, []).append(trial)
    chosen = {
        (search, trial.learning_rate)
        for trial in sweep.of_kind("finetune")
        for search in trial.chosen_from
    }
    found = []
    for (method, labels, variant, draw), rates in groups.items():
        for rate, trials in sorted(rates.items()):
            values = np.array([trial.number("selection", "value") for trial in trials])
            judged = [lookup(t.result, "selection") or {} for t in trials]
            judge = sorted({f"{row.get('split')}/{row.get('metric')}" for row in judged})
            key = f"{sweep.label}/search/{method}/{labels}/{variant}/{draw}/{rate:g}"
            files = [name for trial in trials for name in trial.files]
            found.append(
                Search(
                    sweep=sweep.label,
                    method=method,
                    labels=labels,
                    draw=draw,
                    variant=variant,
                    learning_rate=rate,
                    trials=len(trials),
                    value=ledger.number(key, float(values.mean()), files=files),
                    spread=float(values.std(ddof=1)) if len(values) > 1 else math.nan,
                    metric="; ".join(judge),
                    chosen=any((trial.key, rate) in chosen for trial in trials),
                )
            )
    return found


# --------------------------------------------------------------------------------------- costs


def costs(sweep: SweepFiles, ledger: Ledger) -> list[Cost]:
    """Steps, time and energy by kind, method and variant."""
    groups: dict[tuple[str, str, str], list[Trial]] = {}
    for kind in ("pretrain", "search", "finetune"):
        for trial in sweep.of_kind(kind):
            groups.setdefault((kind, trial.method, trial.variant), []).append(trial)
    found = []
    for (kind, method, variant), trials in groups.items():
        seconds = [trial.number("seconds") for trial in trials]
        steps = [trial.number("steps") for trial in trials]
        key = "/".join(filter(None, (sweep.label, "cost", kind, method, variant)))
        total = ledger.number(
            key, float(np.nansum(seconds)), files=[name for t in trials for name in t.files]
        )
        found.append(
            Cost(
                sweep=sweep.label,
                method=method,
                kind=kind,
                variant=variant,
                trials=len(trials),
                steps=int(np.nansum(steps)),
                seconds=total.value,
                energy_joules=_energy(trials),
                devices="; ".join(hardware(trials)),
                key=key,
            )
        )
    return found


def hardware(trials: Iterable[Trial]) -> list[str]:
    """The devices that trials ran on, each once."""
    found = (lookup(trial.result, "versions", "devices") for trial in trials)
    return sorted({str(devices) for devices in found if devices})


# ------------------------------------------------------------------------------------ failures


def failures(label: str, directory: Path, cells: Sequence[Cell], ledger: Ledger) -> list[Failure]:
    """The images that all methods do worst on, at the fewest and at the most labels."""
    own = [cell for cell in cells if cell.sweep == label]
    counts = sorted({cell.labels for cell in own}, key=fewest_first)
    found = []
    for labels in dict.fromkeys([*counts[:1], *counts[-1:]]):
        row = [cell for cell in own if cell.labels == labels]
        values = np.stack([cell.per_image.values for cell in row])
        mean = values.mean(axis=0)
        ids, patients = row[0].per_image.ids, row[0].per_image.patients
        order = sorted(range(len(ids)), key=lambda at: (mean[at], ids[at]))
        for at in order[:MOST_FAILURES]:
            files = [name for cell in row for name in ledger.provenance[cell.primary.key]]
            key = f"{label}/failure/{labels}/{ids[at]}"
            drawn = [o for cell in row for o in cell.overlays if o.id == ids[at]]
            found.append(
                Failure(
                    sweep=label,
                    labels=labels,
                    id=ids[at],
                    patient=patients[at],
                    mean=ledger.number(key, mean[at], files=files),
                    dice={cell.method: float(cell.per_image.values[at]) for cell in row},
                    overlays=tuple(o for o in drawn if _is_whole(label, directory, o, ledger)),
                )
            )
    return found


def _is_whole(label: str, directory: Path, overlay: Overlay, ledger: Ledger) -> bool:
    """Whether a picture can be shown; it becomes a source, or a problem."""
    where = f"{label}/{overlay.path.relative_to(directory).as_posix()}"
    try:
        images.check(overlay.path)
        ledger.source(label, directory, overlay.path)
    except UserError as error:
        ledger.problem("damaged", where, f"The report is without this picture: {error}")
        return False
    return True


# --------------------------------------------------------------------------------------- reads


def reads(sweep: SweepFiles, ledger: Ledger) -> list[SplitRead]:
    """The log of test reads; a study that should read the test split once and did not says so."""
    trials = {trial.key: trial for trial in sweep.trials}
    found = []
    for row in sweep.reads:
        key = str(row.get("key") or row.get("trial") or "")
        trial = trials.get(key)
        final = lookup(trial.result, "checkpoint", "digest") if trial else None
        digest = str(row.get("digest") or "")
        found.append(
            SplitRead(
                sweep=sweep.label,
                time=str(row.get("time") or ""),
                trial=key,
                name=trial.name if trial else "not among the trials of this report",
                split=str(row.get("split") or ""),
                digest=digest,
                purpose=str(row.get("purpose") or ""),
                matches=bool(digest) and digest == final,
            )
        )
    times = Counter(read.trial for read in found)
    plain = {trial.key for trial in sweep.of_kind("finetune") if not trial.variant}
    often = [key for key in sorted(plain) if times[key] > 1]
    if often and sweep.record.get("protocol") == "fair":
        ledger.problem(
            "test",
            f"{sweep.label}/{READS}",
            f"{len(often)} trials read the test split more than once (e.g. {often[0]}); what was "
            "learnt from the first read may have influenced the second.",
        )
    return sorted(found, key=lambda read: (read.time, read.sweep, read.trial))
