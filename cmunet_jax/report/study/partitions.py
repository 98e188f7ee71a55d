"""How the splits of a sweep were used: what chose its checkpoints, and what training had seen."""

from __future__ import annotations

from collections.abc import Iterable

from cmunet_jax.report.findings import count
from cmunet_jax.report.results import Evaluation, lookup
from cmunet_jax.report.study.model import Overlap, Sweep

# At which level the rules of `data.splits` keep the splits apart.
_LEVELS = {
    "built": "patient, or run of images where patients are unknown",
    "holdout": "patient, or run of images where patients are unknown",
    "paper": "image; views of one patient may be on both sides",
}


def selected_on(found: Iterable[Evaluation]) -> tuple[str, ...]:
    """The 'split/metric' that chose the checkpoints of evaluations, '' for none of them."""
    facts = (evaluation.fact("selected_on") for evaluation in found)
    return tuple(sorted({fact for fact in facts if isinstance(fact, str)}))


def overlap(found: Iterable[Evaluation]) -> Overlap | None:
    """The most that training had seen of the images of any evaluation; None where unrecorded."""
    facts = [evaluation.fact("splits", "seen_in_training") for evaluation in found]
    known = [(lookup(f, "images"), lookup(f, "patients"), lookup(f, "note")) for f in facts]
    whole = [
        Overlap(images, patients, str(note or ""))
        for images, patients, note in known
        if isinstance(images, int) and isinstance(patients, int)
    ]
    return max(whole, key=lambda seen: (seen.images, seen.patients), default=None)


def rule(found: Iterable[Evaluation]) -> str:
    """The rule by which the splits were made, of the first evaluation; '' where unrecorded."""
    return next((str(f) for e in found if (f := e.fact("splits", "rule"))), "")


# --------------------------------------------------------------------------------- in words


def is_selected_on_measured(sweep: Sweep) -> bool:
    """Whether checkpoints were chosen on the split that was then measured."""
    return any(name.partition("/")[0] == sweep.split for name in sweep.selected_on if name)


def selection_text(sweep: Sweep) -> str:
    """'checkpoints chosen by test/dice, the split that was then measured'."""
    chosen = [name for name in sweep.selected_on if name]
    if not chosen:
        return "no metric chose the checkpoints" if sweep.selected_on else ""
    same = ", the split that was then measured" if is_selected_on_measured(sweep) else ""
    return f"checkpoints chosen by {', '.join(chosen)}{same}"


def overlap_text(sweep: Sweep) -> str:
    """What of the measured images was in training, with the reason why that was allowed."""
    if sweep.seen is None:
        return "whether training saw any of these images or patients is not recorded"
    if not sweep.seen.images and not sweep.seen.patients:
        return "no image and no known patient of it was in training"
    note = f" ({sweep.seen.note})" if sweep.seen.note else ""
    return f"{_counts(sweep.seen)} of it also in training{note}"


def _counts(seen: Overlap) -> str:
    numbers = ((seen.images, "image"), (seen.patients, "patient"))
    return " and ".join(count(number, word) for number, word in numbers if number)


def level_text(sweep: Sweep) -> str:
    """Level at which the splits are disjoint; '' where no file says it."""
    level = _LEVELS.get(sweep.rule, f"by the rule '{sweep.rule}'" if sweep.rule else "")
    found = "" if sweep.seen is None else overlap_text(sweep)
    return "; ".join(filter(None, (level, found)))


def caveats(sweep: Sweep) -> Iterable[str]:
    """What the reader must know of the splits before believing a number."""
    if is_selected_on_measured(sweep):
        chosen = ", ".join(filter(None, sweep.selected_on))
        yield (
            f"The checkpoints were chosen by {chosen}, on the images that they were then measured "
            "on: the numbers flatter every method, and new images would give worse ones."
        )
    if sweep.seen is not None and (sweep.seen.images or sweep.seen.patients):
        note = f": {sweep.seen.note}" if sweep.seen.note else ""
        yield (
            f"Training had seen {_counts(sweep.seen)} of the split '{sweep.split}'{note}. The "
            "numbers say less about new patients than their intervals do."
        )
