"""What the numbers say, in words; every sentence follows from a number by a rule written here.

Plain text throughout: the page escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmunet_jax.report.comparison import ALPHA, Comparison, Result
from cmunet_jax.report.results import PRIMARY, Training, lookup

# The paper's scale (method.md §1–2), below which a result is called small.
PAPER_WIDTH, PAPER_SIZE = 64, 256
# A bootstrap over fewer clusters than this is known to give intervals that are too narrow.
FEW_CLUSTERS = 20
# Below this mean Dice a mask misses or invents most of the arteries.
POOR = 0.5
# A clear difference below this is called slight.
SLIGHT = 0.01
# A validation curve that gained this much Dice in its last quarter had not levelled off.
STILL_RISING = 0.01

# The words between the names of arm and reference, and after them.
_WORDS = {
    "better": ("was better than", ""),
    "worse": ("was worse than", ""),
    "unclear": ("and", " did not differ clearly"),
}


@dataclass(frozen=True)
class Verdict:
    """The answer to one comparison.

    Attributes:
      kind: 'better', 'worse' or 'unclear'.
      arm: short name of what is judged.
      words: what stands between the two names.
      reference: short name of what it is judged against.
      after: what stands after it, or ''.
      but: what must be said in the same breath, or ''.
      numbers: the sentences with the numbers.
    """

    kind: str
    arm: str
    words: str
    reference: str
    after: str
    but: str
    numbers: str


def signed(value: float, digits: int = 3) -> str:
    """'+0.062', '−0.010'; '–' where there is no number."""
    if not math.isfinite(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "\u2212") + text


def plain(value: float, digits: int = 3) -> str:
    """'0.712'; '–' where there is no number."""
    return f"{value:.{digits}f}".replace("-", "\u2212") if math.isfinite(value) else "–"


def count(number: int, word: str) -> str:
    """'one image', '2 images'."""
    return f"one {word}" if number == 1 else f"{number} {word}s"


def verdict(comparison: Comparison) -> Verdict:
    """States the primary comparison: who was better, by how much, how surely."""
    arm, reference = comparison.arm, comparison.reference
    difference = comparison.primary
    ours = arm.evaluation.metrics[PRIMARY].mean
    theirs = reference.evaluation.metrics[PRIMARY].mean
    wins = int((comparison.per_image > 0).sum())
    losses = int((comparison.per_image < 0).sum())
    where = count(difference.n, "image")
    if difference.unit == "patient":
        where += f" of {count(comparison.clusters, 'patient')}"
    numbers = (
        f"Over {where}, mean Dice was {plain(ours)} ({arm.short}) against {plain(theirs)} "
        f"({reference.short}): a difference of {signed(difference.mean)}, "
    )
    if math.isfinite(difference.low):
        numbers += f"95 % interval {signed(difference.low)} to {signed(difference.high)}. "
    else:
        numbers += "without an interval, because one patient says nothing about others. "
    numbers += (
        f"It was higher on {wins} and lower on {losses} of the {difference.n} images (sign-flip "
        f"permutation test, p = {p_value(difference.p_value)})."
    )
    kind = comparison.verdict()
    if kind == "unclear" and (difference.low > 0 or difference.high < 0):
        numbers += " The interval leaves zero out, but the test does not confirm it."
    words, after = _WORDS[kind]
    if abs(difference.mean) < SLIGHT:
        words = words.replace("was ", "was slightly ")
    but = "Neither segments well." if max(ours, theirs) < POOR else ""
    return Verdict(kind, arm.short, words, reference.short, after, but, numbers)


def p_value(p: float) -> str:
    """'0.034', '2.1e-05'; '–' where there is none."""
    if not math.isfinite(p):
        return "–"
    return f"{p:.2g}" if p >= 0.001 else f"{p:.1e}"


# ------------------------------------------------------------------------------- the caveats


def is_synthetic(results: Sequence[Result], facts: Mapping[str, Any]) -> bool:
    """Whether the images were made by a program; `facts['synthetic']` overrules the names."""
    if "synthetic" in facts:
        return bool(facts["synthetic"])
    names = [data_name(r.training) for r in results]
    names += [str(r.evaluation.fact("dataset", "name")) for r in results]
    return any("synthetic" in name for name in names)


def data_name(training: Training) -> str:
    """Name of the data set of a training run."""
    name = lookup(training.record, "data", "name") or lookup(training.config, "data", "name")
    return str(name or "")


def caveats(
    results: Sequence[Result],
    comparisons: Sequence[Comparison],
    pretrain: Training | None,
    facts: Mapping[str, Any],
) -> list[str]:
    """What limits the conclusions, the gravest first."""
    lines = [
        *_data_caveats(results, facts),
        *_replication_caveats(results, facts),
        *_sample_caveats(comparisons),
        *_fairness_caveats(results, pretrain),
        *_convergence_caveats(results),
        *_scale_caveats(results, facts),
        *(str(remark) for remark in facts.get("remarks", ())),
    ]
    return list(dict.fromkeys(lines))


def _data_caveats(results: Sequence[Result], facts: Mapping[str, Any]) -> Iterator[str]:
    if is_synthetic(results, facts):
        yield (
            "The images are synthetic, drawn by a program. The result shows that the method runs "
            "and how it behaves on such drawings; it says nothing about accuracy in patients."
        )
    for result in results:
        best = lookup(result.training.config, "checkpoint", "best")
        evaluated = result.evaluation.fact("split")
        step = result.evaluation.fact("config", "step")
        if evaluated and step == "best" and str(best).startswith(f"{evaluated}/"):
            yield (
                f"The weights of {result.short} were selected on the same split ({evaluated}) that "
                "is reported here, so its numbers are optimistic."
            )


def _replication_caveats(results: Sequence[Result], facts: Mapping[str, Any]) -> Iterator[str]:
    draws, seeds = int(facts.get("draws", 1)), int(facts.get("seeds", 1))
    if draws == 1 or seeds == 1:
        labels = {result.training.config.get("labels") for result in results}
        number = f"{labels.pop()} " if len(labels) == 1 and all(labels) else ""
        yield (
            f"{count(draws, 'draw').capitalize()} of the {number}labelled images and "
            f"{count(seeds, 'seed')} per arm: the intervals cover the choice of test images, not "
            "the choice of labelled images or of initial weights. Repeating the training could "
            "change the size of a difference and even its sign."
        )


def _sample_caveats(comparisons: Sequence[Comparison]) -> Iterator[str]:
    for comparison in comparisons[:1]:
        unit, clusters = comparison.primary.unit, comparison.clusters
        if unit == "image":
            yield comparison.primary.note
        smallest = 2.0 ** (1 - clusters)  # all signs equal, one of 2^clusters patterns each way
        if smallest >= ALPHA:
            yield (
                f"Only {count(clusters, unit)} in the test, too few to tell any difference from "
                f"chance: the permutation test cannot give a p below {smallest:.2g}."
            )
        elif clusters < FEW_CLUSTERS:
            yield (
                f"Only {count(clusters, unit)} in the test: bootstrap intervals from so few tend "
                "to be too narrow."
            )


def _fairness_caveats(results: Sequence[Result], pretrain: Training | None) -> Iterator[str]:
    steps = {result.training.steps for result in results}
    if len(steps) > 1:
        each = ", ".join(f"{r.short}: {r.training.steps:,}" for r in results)
        yield f"The arms were not trained for the same number of steps ({each})."
    for key, what in (("labels", "number of labelled images"), ("draw", "draw of labelled images")):
        values = {str(result.training.config.get(key)) for result in results}
        if len(values) > 1:
            yield f"The arms differ in the {what} ({', '.join(sorted(values))})."
    if pretrain is not None and len(results) > 1:
        yield (
            f"Equal labels is not equal work: pre-training took {pretrain.steps:,} optimiser steps "
            "that an arm from scratch was not given."
        )


def _convergence_caveats(results: Sequence[Result]) -> Iterator[str]:
    rising = [result.short for result in results if _still_rising(result.training)]
    if rising:
        yield (
            f"Validation Dice was still rising at the last step ({', '.join(rising)}); longer "
            "training would change the numbers."
        )
    poor = [r.short for r in results if r.evaluation.metrics[PRIMARY].mean < POOR]
    if poor:
        yield (
            f"Mean Dice below {POOR} ({', '.join(poor)}): such masks miss or invent a large part "
            "of the arteries. A difference between poor results need not hold between good ones."
        )


def _still_rising(training: Training) -> bool:
    for name, curve in training.curves.items():
        if name.endswith(f"/{PRIMARY}") and not name.startswith("train/") and len(curve.steps) > 2:
            before = curve.values[curve.steps <= 0.75 * curve.steps[-1]]
            return bool(len(before) and curve.values[-1] > before.max() + STILL_RISING)
    return False


def _scale_caveats(results: Sequence[Result], facts: Mapping[str, Any]) -> Iterator[str]:
    config = results[0].training.config
    width, size = lookup(config, "model", "width"), lookup(config, "preprocessing", "size")
    small = [
        f"{name} {ours} (paper: {paper})"
        for name, ours, paper in (
            ("U-Net width", width, PAPER_WIDTH),
            ("image side in pixels", size, PAPER_SIZE),
        )
        if isinstance(ours, int) and ours < paper
    ]
    scale = str(facts.get("scale", "")).strip()
    if facts.get("small_scale", bool(small or scale)):
        details = "; ".join(filter(None, [scale, *small])) or "see what was run"
        yield f"Smaller than the paper: {details}. Effects may differ at full scale."


def not_shown(results: Sequence[Result], facts: Mapping[str, Any]) -> list[str]:
    """Questions that these results leave open, whatever their numbers are."""
    lines = ["Whether the same holds with more or fewer labelled images, longer training or larger "
             "networks."]  # fmt: skip
    if len(results) > 1:
        lines.append("Which part of pre-training made any difference that is seen.")
    if is_synthetic(results, facts):
        lines.insert(0, "How well either network segments angiograms of real patients.")
    else:
        lines.insert(0, "How well either network does in another hospital or on other scanners.")
    lines.append("Whether the masks are good enough for any clinical use: nobody tested that.")
    return lines
