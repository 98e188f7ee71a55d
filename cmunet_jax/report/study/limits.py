"""What limits a study, one sentence each; and what it takes to repeat it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cmunet_jax import config as config_lib
from cmunet_jax.report.comparison import ALPHA
from cmunet_jax.report.findings import FEW_CLUSTERS, POOR, count, plain
from cmunet_jax.report.results import lookup
from cmunet_jax.report.study import partitions
from cmunet_jax.report.study.measures import REFERENCE, Cell, fewest_first, method_name
from cmunet_jax.report.study.model import Cost, Problem, Reproduction, Sweep
from cmunet_jax.report.study.panels import Images
from cmunet_jax.report.study.trials import SWEEP, SweepFiles, Trial
from cmunet_jax.report.study.wording import labels_text, named

_FEW_RUNS = 5  # fewer draws or seeds than this say little about how much they vary
_HARDWARE = ("devices", "platform", "cpus")


def caveats(
    sweeps: Sequence[Sweep],
    cells: Sequence[Cell],
    images: Mapping[str, Images],
    problems: Sequence[Problem],
    costs: Sequence[Cost],
) -> list[str]:
    """What the reader must know before believing a number; the gravest first."""
    lines: list[str] = []
    if problems:
        kinds = ", ".join(f"{sum(p.kind == k for p in problems)} {k}" for k in _kinds(problems))
        lines.append(f"Something is missing or was left out: {kinds}. See the list of problems.")
    said: dict[str, list[str]] = {}
    for sweep in sweeps:
        for line in partitions.caveats(sweep):
            said.setdefault(line, []).append(named(sweep, sweeps))
    for sweep in sweeps:
        own = [cell for cell in cells if cell.sweep == sweep.label]
        for line in _of_sweep(sweep, own, images.get(sweep.label)):
            said.setdefault(line, []).append(named(sweep, sweeps))
    for line, titles in said.items():
        everywhere = len(titles) == len(sweeps)
        lines.append(line if everywhere else f"{line.rstrip('.')} ({'; '.join(titles)}).")
    if len({sweep.data["fingerprint"] for sweep in sweeps}) > 1:
        lines.append("The sweeps were made on different data: compare within a sweep only.")
    before = [c for c in costs if c.kind == "pretrain" and c.steps and not c.variant]
    steps = {c.method: c.steps // c.trials for c in before}
    if len(set(steps.values())) > 1:
        each = ", ".join(f"{method_name(m)} {n:,}" for m, n in steps.items())
        text = f"Pre-training took different numbers of steps ({each})"
        lines.append(f"{text}; the configs say how many images make a step.")
    return lines


def _kinds(problems: Sequence[Problem]) -> list[str]:
    return sorted({problem.kind for problem in problems})


def _of_sweep(sweep: Sweep, cells: Sequence[Cell], images: Images | None) -> Iterator[str]:
    if sweep.scale:
        yield f"Scale: {sweep.scale.rstrip('.')}."
    if str(sweep.data.get("name", "")).startswith("angio_synthetic"):
        yield "The images are synthetic; nothing is said about angiograms of patients."
    if sweep.split and sweep.split != "test":
        yield f"Measured on the split '{sweep.split}', not on a test split."
    for line in sweep.deviations:
        yield f"Less than protocol '{sweep.protocol}' asks for: {line}"
    if not cells:
        return
    yield from _without_reference(cells)
    runs = sorted({len(cell.runs) for cell in cells})
    if runs[0] < _FEW_RUNS:
        text = count(runs[0], "run") if len(runs) == 1 else f"{runs[0]} to {runs[-1]} runs"
        known = "only roughly known" if runs[-1] > 1 else "unknown, and no part of the intervals"
        yield (
            f"{text[0].upper()}{text[1:]} of each method at each label count: how much the choice "
            f"of labelled images and the seed matter is {known}."
        )
    shared = [c for c in cells if c.method != REFERENCE and len(c.runs) > 1 and c.pretrained == 1]
    if shared:
        yield (
            "All runs of a pre-trained method start from one pre-training, so its own luck is not "
            "part of the intervals."
        )
    if images is not None and not images.n_patients:
        yield images.clusters.note
    elif images is not None and images.clusters.count < FEW_CLUSTERS:
        yield (
            f"Only {count(images.clusters.count, 'patient')} were measured; bootstrap intervals "
            "over so few are too narrow."
        )
    compared = sum(cell.method != REFERENCE for cell in cells)
    if images is not None and compared and images.n_patients:
        # The smallest p of a signed-rank test of n differences is 2 of 2^n patterns of signs.
        if compared * 2.0 ** (1 - images.n_patients) >= ALPHA:
            yield (
                "With so few patients no corrected Wilcoxon test over them can fall below "
                f"{ALPHA}, so nothing can be called clear."
            )
    poor = [f"{method_name(c.method)}, {c.labels}" for c in cells if c.primary.value < POOR]
    if poor:
        yield (
            f"Mean Dice below {plain(POOR, 1)} ({'; '.join(poor)} labels): differences between "
            "poor results need not hold between good ones."
        )


def _without_reference(cells: Sequence[Cell]) -> Iterator[str]:
    """Where there is nothing to say whether pre-training helps."""
    counts = {cell.labels for cell in cells if cell.method != REFERENCE}
    lacking = counts - {cell.labels for cell in cells if cell.method == REFERENCE}
    if lacking:
        named = " and ".join(map(labels_text, sorted(lacking, key=fewest_first)))
        where = "" if lacking == counts else f" with {named}"
        yield (
            f"Training from scratch has no result{where}, so nothing is said about whether "
            f"pre-training helps{' there' if where else ''}."
        )


# --------------------------------------------------------------------------------- repeating


def reproduction(files: Sequence[SweepFiles], sweeps: Sequence[Sweep]) -> Reproduction:
    """Commands, configs, digests, versions, hardware, time and energy."""
    trials = [trial for sweep in files for trial in sweep.trials]
    return Reproduction(
        commands=tuple(_commands(files)),
        configs={
            f"{sweep.label}.json": json.dumps(sweep.config, indent=1, sort_keys=True, default=str)
            for sweep in sweeps
        },
        digests=tuple(_digests(files)),
        versions=_versions(files, trials),
        hardware=tuple(_machines(trials)),
        seconds=float(sum(sweep.seconds for sweep in sweeps)),
        energy_joules=float(np.sum([sweep.energy_joules for sweep in sweeps]))
        if sweeps
        else math.nan,
    )


def _machines(trials: Sequence[Trial]) -> list[str]:
    """Devices, CPU cores and operating system that trials ran on, each combination once."""
    found = set()
    for trial in trials:
        facts = lookup(trial.result, "versions") or {}
        cores = f"{facts['cpus']} CPU cores" if facts.get("cpus") else ""
        parts = (facts.get("devices"), cores, facts.get("platform"))
        found.add(", ".join(str(part) for part in parts if part))
    return sorted(found - {""})


def _commands(files: Sequence[SweepFiles]) -> Iterator[str]:
    for name in dict.fromkeys(str(sweep.record["data"].get("name") or "") for sweep in files):
        if name:
            yield f"python -m tfds_angio.build {name}"
    folders = []
    for sweep in files:
        folder, written = str(sweep.directory), sweep.record.get("command")
        if written and isinstance(written, str):
            yield written
            made = _workdir(written)
            if "://" in made:
                yield f"# copy {made} to {shlex.quote(folder)}"
            else:
                folder = made
        else:
            yield (
                f"# {sweep.label}: no command was recorded; run a sweep with the settings under "
                f"'config' in {shlex.quote(str(sweep.directory / SWEEP))} and --workdir "
                f"{shlex.quote(folder)}"
            )
        folders.append(folder)
    joined = shlex.quote(",".join(dict.fromkeys(folders)))
    yield f"python -m cmunet_jax.main --config configs/report.py --config.sweep={joined}"


def _workdir(command: str) -> str:
    """Where a recorded command of the sweep stage writes to."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quotation that is never closed
        words = command.split()
    found = "runs/sweep"  # the default of the stage
    for word, following in zip(words, [*words[1:], ""]):
        name, _, value = word.partition("=")
        if name in ("--workdir", "-workdir"):
            found = value or following
    return found


def _digests(files: Sequence[SweepFiles]) -> Iterator[tuple[str, str]]:
    seen = set()
    for sweep in files:
        data = sweep.record["data"]
        entry = (f"data set {data.get('name')}", str(data["fingerprint"]))
        if entry not in seen:
            yield entry
        seen.add(entry)
    for sweep in files:
        yield f"config of {sweep.label}", config_lib.digest(sweep.record.get("config") or {})
    for sweep in files:
        for trial in sweep.trials:
            digest = lookup(trial.result, "checkpoint", "digest")
            if digest and trial.kind != "search":
                yield f"{sweep.label}: checkpoint of {trial.name}", str(digest)


def _versions(files: Sequence[SweepFiles], trials: Sequence[Trial]) -> dict[str, str]:
    """Package -> version; several versions of one package are all named."""
    found: dict[str, set[str]] = {}
    records = [sweep.record for sweep in files] + [trial.result for trial in trials]
    for record in records:
        for name, version in (lookup(record, "versions") or {}).items():
            if name not in _HARDWARE:
                found.setdefault(name, set()).add(str(version))
    return {name: "; ".join(sorted(values)) for name, values in sorted(found.items())}
