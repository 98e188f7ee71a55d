"""Reads sweep directories: which trials are there, which may be believed, which were left out.

A trial enters a study only if its files are whole, it was made on the data of its sweep, what it
starts from did too, and it was measured on the same images as the others. Everything else becomes a
`Problem`, and the rest is reported without it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmunet_jax.report.results import lookup, read_json
from cmunet_jax.report.study import measured
from cmunet_jax.report.study.ledger import Ledger
from cmunet_jax.report.study.trials import (
    AGAIN,
    PLAN,
    READS,
    RESULT,
    SWEEP,
    TRIAL,
    SweepFiles,
    Trial,
)
from tfds_angio.errors import UserError


def labels_of(directories: Sequence[Path]) -> list[str]:
    """A short unique name of each sweep directory: its own, with the one above where needed.

    Raises:
      UserError: if one is named twice.
    """
    whole = [directory.resolve() for directory in directories]
    if len(set(whole)) != len(whole):
        raise UserError("config.sweep names a folder twice: name each sweep once.")
    for depth in range(1, max((len(path.parts) for path in whole), default=1) + 1):
        names = ["-".join(path.parts[-depth:]).strip("/") for path in whole]
        if len(set(names)) == len(names):
            return names
    raise UserError("the sweep folders cannot be told apart by name: rename one.")


def read_sweep(directory: Path, label: str, ledger: Ledger) -> SweepFiles | None:
    """Reads one sweep; None where nothing of it can be used, with the reason in the ledger."""
    if not directory.is_dir():
        text = f"{directory} does not exist: name the workdir of a sweep, --config.sweep=DIR[,DIR]."
        ledger.problem("missing", label, text)
        return None
    record = _json(directory / SWEEP, label, directory, ledger, ("data", "config", "versions"))
    if record is None or not isinstance(lookup(record, "data", "fingerprint"), str):
        if record is not None:
            ledger.problem("damaged", f"{label}/{SWEEP}", f"It has no data fingerprint: {AGAIN}.")
        return None
    entries = _entries(directory, label, ledger)
    found = {entry["key"]: _trial(directory, label, entry, ledger) for entry in entries}
    _note_missing(label, entries, found, ledger)
    failed = sum(trial == "failed" for trial in found.values())
    trials = {key: trial for key, trial in found.items() if isinstance(trial, Trial)}
    trials = _of_the_same_data(label, record, trials, ledger)
    trials = _with_their_origin(label, entries, trials, ledger)
    trials = measured.with_evaluations(label, directory, record, trials, ledger)
    files = [f"{label}/{name}" for name in (SWEEP, PLAN) if f"{label}/{name}" in ledger.sources]
    return SweepFiles(
        label=label,
        directory=directory,
        record=record,
        planned=len(entries),
        failed=failed,
        trials=tuple(sorted(trials.values(), key=lambda trial: trial.order)),
        files=tuple(files),
        reads=tuple(_reads(directory, label, ledger)),
    )


def _json(
    path: Path, label: str, directory: Path, ledger: Ledger, objects: Sequence[str] = ()
) -> dict[str, Any] | None:
    """A JSON object, noted as a source; None with a problem where it is missing or damaged.

    Args:
      path: of the file.
      label: of its sweep.
      directory: of the sweep.
      ledger: of the study.
      objects: entries that are objects themselves wherever they are given.
    """
    try:
        content = read_json(path, AGAIN)
        for name in objects:
            if not isinstance(content.get(name) or {}, Mapping):
                raise UserError(f"{path} is damaged ('{name}' is no JSON object): {AGAIN}.")
        ledger.source(label, directory, path)
        return content
    except UserError as error:
        kind = "missing" if not path.exists() else "damaged"
        ledger.problem(kind, f"{label}/{path.relative_to(directory).as_posix()}", str(error))
        return None


def _entries(directory: Path, label: str, ledger: Ledger) -> list[dict[str, Any]]:
    """Entries of the plan; where it cannot be read, what the trials say of themselves."""
    plan = _json(directory / PLAN, label, directory, ledger)
    listed = plan.get("trials") if plan else None
    if plan is not None and not isinstance(listed, list):
        ledger.problem("damaged", f"{label}/{PLAN}", f"It lists no trials: {AGAIN}.")
    if not isinstance(listed, list):
        paths = sorted((directory / "trials").glob(f"*/{TRIAL}"))
        listed = [_json(path, label, directory, ledger) for path in paths]
    whole = [entry for entry in listed if _is_entry(entry)]
    if len(whole) < len(listed):
        text = f"{len(listed) - len(whole)} of its trials are not whole: {AGAIN}."
        ledger.problem("damaged", f"{label}/{PLAN}", text)
    return list({entry["key"]: entry for entry in whole}.values())


def _is_entry(entry: Any) -> bool:
    named = isinstance(entry, Mapping) and all(
        isinstance(entry.get(name), str) and entry[name] for name in ("key", "kind", "method")
    )
    numbers = ("labels", "draw", "seed", "fold")
    whole = named and all(isinstance(entry.get(name), int | None) for name in numbers)
    # A key becomes a folder name: nothing that leads out of the sweep.
    return whole and _are_words(entry.get("depends")) and entry["key"].isalnum()


def _are_words(value: Any) -> bool:
    """Whether an entry is a list of text, or absent."""
    return value is None or isinstance(value, list) and all(isinstance(v, str) for v in value)


def _trial(
    directory: Path, label: str, entry: Mapping[str, Any], ledger: Ledger
) -> Trial | str | None:
    """The finished trial; 'failed', 'damaged', or None where it has no result yet."""
    folder = directory / "trials" / entry["key"]
    path, where = folder / RESULT, f"{label}/trials/{entry['key']}/{RESULT}"
    name = str(entry.get("name") or entry["key"])
    if not path.exists():
        return None
    parts = ("data", "versions", "checkpoint", "selection")
    result = _json(path, label, directory, ledger, parts)
    if result is None:
        return "damaged"
    if result.get("status") != "done":
        reason = " ".join(str(result.get("error") or "no reason given").split())
        ledger.problem("failed", where, f"Trial '{name}' failed and is left out: {reason}")
        return "failed"
    files = [ledger.source(label, directory, path)]
    objects = ("config", "chosen", "evaluation")
    record = _json(folder / TRIAL, label, directory, ledger, objects) or {}
    if record:
        files.append(ledger.source(label, directory, folder / TRIAL))
    chosen = record.get("chosen") or {}
    searches = chosen.get("from")
    rate = chosen.get("learning_rate", entry.get("learning_rate"))
    rate = rate if rate is not None else lookup(record, "config", "optim", "learning_rate")
    return Trial(
        key=entry["key"],
        name=name,
        kind=entry["kind"],
        method=entry["method"],
        labels=int(entry.get("labels") or 0),
        draw=int(entry.get("draw") or 0),
        seed=int(entry.get("seed") or 0),
        variant=str(entry.get("variant") or ""),
        fold=-1 if entry.get("fold") is None else int(entry["fold"]),
        depends=tuple(entry.get("depends") or ()),
        folder=folder,
        config=_config(record),
        learning_rate=float(rate) if isinstance(rate, int | float) else math.nan,
        chosen_from=tuple(searches or ()) if _are_words(searches) else (),
        result=result,
        files=tuple(files),
    )


def _config(record: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the training, with that of its evaluation under 'evaluate'."""
    evaluate = record.get("evaluation")
    config = record.get("config")
    found = dict(config) if isinstance(config, Mapping) else {}
    return found | ({"evaluate": dict(evaluate)} if isinstance(evaluate, Mapping) else {})


def _note_missing(
    label: str, entries: Iterable[Mapping[str, Any]], found: Mapping[str, Any], ledger: Ledger
) -> None:
    """One line for what has not run yet, kind by kind: a study that is under way has many."""
    absent: Counter[tuple[str, ...]] = Counter()
    planned: Counter[tuple[str, ...]] = Counter()
    for entry in entries:
        labels = f" with {entry['labels']} labels" if entry.get("labels") else ""
        variant = f", variant {entry['variant']}" if entry.get("variant") else ""
        group = (entry["kind"], f"{entry['method']}{labels}{variant}")
        planned[group] += 1
        absent[group] += found[entry["key"]] is None
    for (kind, what), count in sorted(absent.items()):
        if count:
            text = f"{count} of {planned[kind, what]} {kind} trials of {what} have no result yet"
            ledger.problem("missing", f"{label}/{PLAN}", f"{text}: {AGAIN}.")


def _of_the_same_data(
    label: str, record: Mapping[str, Any], trials: Mapping[str, Trial], ledger: Ledger
) -> dict[str, Trial]:
    """Without trials of another data set or another build of it."""
    expected = record["data"]["fingerprint"]
    kept = {}
    for key, trial in trials.items():
        seen = lookup(trial.result, "data", "fingerprint")
        if seen == expected:
            kept[key] = trial
            continue
        ledger.problem(
            "data",
            trial.files[0],
            f"Trial '{trial.name}' was made on other data (fingerprint {str(seen)[:12]}, this "
            f"sweep has {expected[:12]}) and is left out: give other data a sweep of its own.",
        )
    return kept


def _with_their_origin(
    label: str,
    entries: Sequence[Mapping[str, Any]],
    trials: Mapping[str, Trial],
    ledger: Ledger,
) -> dict[str, Trial]:
    """Without trials whose pre-training is missing: where their weights come from is unknown."""
    pretraining = {entry["key"] for entry in entries if entry["kind"] == "pretrain"}
    known = {entry["key"] for entry in entries}
    kept = {}
    for key, trial in trials.items():
        if trial.kind == "pretrain" or trial.method == "scratch":
            kept[key] = trial
            continue
        starts = [other for other in trial.depends if other in pretraining or other not in known]
        if starts and all(other in trials for other in starts):
            if _began_there(label, trial, [trials[other] for other in starts], ledger):
                kept[key] = trial
            continue
        lost = next((other for other in starts if other not in trials), None)
        which = f"its pre-training trial {lost}" if lost else "any pre-training trial"
        ledger.problem(
            "dependency",
            trial.files[0],
            f"Trial '{trial.name}' is left out, because {which} is missing, failed or was left "
            f"out: {AGAIN}.",
        )
    return kept


def _began_there(label: str, trial: Trial, before: Sequence[Trial], ledger: Ledger) -> bool:
    """Whether a run began from the published weights of its pre-training, as far as it says."""
    path = trial.folder / "run" / "config.json"
    record = _json(path, label, trial.folder.parents[1], ledger) if path.exists() else None
    digest = lookup(record or {}, "init_from", "digest")
    if not digest or digest in [lookup(one.result, "checkpoint", "digest") for one in before]:
        return True
    ledger.problem(
        "dependency",
        trial.files[0],
        f"Trial '{trial.name}' is left out, because it began from other weights (digest "
        f"{str(digest)[:12]}) than those that its pre-training ended with: move its folder away "
        "and run the sweep again.",
    )
    return False


def _reads(directory: Path, label: str, ledger: Ledger) -> Iterable[Mapping[str, Any]]:
    """Lines of the log of test reads; one that is damaged is a problem, not the end."""
    path = directory / READS
    if not path.exists():
        return
    name = ledger.source(label, directory, path)
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield row
        else:
            ledger.problem(
                "damaged", name, f"Line {number} is half-written, so one read of the test split "
                "is not listed.",
            )  # fmt: skip
