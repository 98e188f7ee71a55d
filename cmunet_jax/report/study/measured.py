"""The evaluations of a sweep: of the right weights, on the same images, or left out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cmunet_jax.report.results import CASES, SUMMARY, Evaluation, lookup, read_evaluation
from cmunet_jax.report.study.ledger import Ledger
from cmunet_jax.report.study.trials import AGAIN, RESULT, Trial
from tfds_angio.errors import UserError

# What evaluations must share to be compared, in words; the images follow.
_SHARED = (
    (("split",), "split"),
    (("dataset", "name"), "data set"),
    (("dataset", "fingerprint"), "fingerprint"),
    (("protocol",), "protocol"),
    (("resolution",), "resolution"),
)
_IMAGES = (0, 1, 2, len(_SHARED))  # the part of it that says which images they are of


def with_evaluations(
    label: str,
    directory: Path,
    record: Mapping[str, Any],
    trials: Mapping[str, Trial],
    ledger: Ledger,
) -> dict[str, Trial]:
    """Fine-tuned trials with what was measured; without those measured on something else."""
    kept = {key: trial for key, trial in trials.items() if trial.kind != "finetune"}
    measured = {}
    for key, trial in trials.items():
        if trial.kind != "finetune":
            continue
        try:
            found = _evaluation(trial)
            files = [
                ledger.source(label, directory, found.directory / name) for name in (SUMMARY, CASES)
            ]
        except UserError as error:
            ledger.problem("damaged", f"{label}/trials/{trial.key}/evaluation", str(error))
            continue  # noted, and the trial is left out
        measured[key] = dataclasses.replace(trial, evaluation=found, files=(*trial.files, *files))
    signatures = {key: _signature(trial.evaluation) for key, trial in measured.items()}
    expected = record["data"]["fingerprint"]
    # A variant may change how is measured, so the methods themselves say what is usual.
    plain = [key for key, trial in measured.items() if not trial.variant] or list(measured)
    votes = Counter(signatures[key] for key in plain if signatures[key][2] == expected)
    reference = min(votes, key=lambda s: (-votes[s], str(s))) if votes else None
    for key, trial in measured.items():
        compared = _IMAGES if trial.variant else range(len(_SHARED) + 1)
        ours = signatures[key]
        if reference and all(ours[at] == reference[at] for at in compared):
            kept[key] = trial
        else:
            _note_odd(trial, ours, reference, expected, compared, ledger)
    return kept


def _evaluation(trial: Trial) -> Evaluation:
    """Reads the evaluation of a fine-tuned trial and checks that it is of its weights."""
    name = trial.result.get("evaluation")
    if not isinstance(name, str) or not name or not Path(name).name == name:
        raise UserError(f"{trial.folder / RESULT} names no evaluation: {AGAIN}.")
    found = read_evaluation(trial.folder / name)
    ours, theirs = lookup(trial.result, "checkpoint", "digest"), found.fact("checkpoint", "digest")
    if ours and theirs and ours != theirs:
        raise UserError(
            f"{found.directory / SUMMARY} is of checkpoint {str(theirs)[:12]}, but the trial ended "
            f"with {str(ours)[:12]}: evaluate it again."
        )
    return found


def _signature(found: Evaluation | None) -> tuple[Any, ...]:
    """What evaluations must share to be compared, the images last."""
    assert found is not None
    # Text, whatever a damaged file holds in its place.
    facts = [str(found.fact(*keys)) for keys, _ in _SHARED]
    return (*facts, tuple(sorted(found.ids)))


def _note_odd(
    trial: Trial,
    ours: tuple[Any, ...],
    reference: tuple[Any, ...] | None,
    expected: str,
    compared: Iterable[int],
    ledger: Ledger,
) -> None:
    if ours[2] != expected or reference is None:
        kind, what = "data", f"on other data (fingerprint {ours[2][:12]})"
    else:
        first = next(at for at in compared if ours[at] != reference[at])
        kind, what = "images", ""
        if first < len(_SHARED):
            what = f"with {_SHARED[first][1]} {ours[first]} (the others: {reference[first]})"
        else:
            odd = sorted(set(ours[-1]) ^ set(reference[-1]))
            what = f"on other images ({len(odd)} differ, e.g. '{odd[0]}')"
    ledger.problem(
        kind,
        trial.files[-2],
        f"Trial '{trial.name}' was evaluated {what} and is left out: evaluate it like the rest of "
        "its sweep.",
    )
