"""What the numbers of a study say, in careful words; each sentence follows by a rule given here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from cmunet_jax.report.findings import plain, signed
from cmunet_jax.report.results import PRIMARY
from cmunet_jax.report.study.measures import (
    REFERENCE,
    Cell,
    Difference,
    Drop,
    Number,
    PairedTest,
    Variant,
    fewest_first,
    method_name,
)
from cmunet_jax.report.study.model import Cost, Finding, Sweep

FAIR = "fair"
_ONE_RUN = " With one run the luck of draw and seed is not part of these intervals."


def findings(
    sweeps: Sequence[Sweep],
    cells: Sequence[Cell],
    differences: Sequence[Difference],
    drops: Sequence[Drop],
    variants: Sequence[Variant],
    costs: Sequence[Cost],
) -> list[Finding]:
    """Answers to the questions of the study, as far as there are numbers for them."""
    found: list[Finding] = []
    varied = {variant.sweep for variant in variants}
    told = {sweep.protocol for sweep in sweeps if sweep.label not in varied}
    for sweep in sweeps:
        if sweep.label in varied and sweep.protocol in told:
            continue  # its unchanged methods only serve to compare variants with
        primary = [d for d in differences if d.sweep == sweep.label and d.metric == PRIMARY]
        own_cells = [cell for cell in cells if cell.sweep == sweep.label]
        if primary:
            found.append(_does_it_help(sweep, sweeps, own_cells, primary, costs))
        own = [drop for drop in drops if drop.sweep == sweep.label]
        if own:
            found.append(_how_much_is_lost(sweep, sweeps, own))
    found += _is_it_the_protocol(sweeps, cells, drops)
    if variants:
        found.append(_which_mattered(variants))
    return found


def interval(number: Number, digits: int = 3) -> str:
    """'+0.010 to +0.030', or that there is none."""
    if not number.has_interval:
        return "no interval"
    return f"{signed(number.low, digits)} to {signed(number.high, digits)}"


def p_text(value: float) -> str:
    """'p < 0.001' or 'p = 0.03'."""
    if not math.isfinite(value):
        return "p unknown"
    return "p < 0.001" if value < 0.001 else f"p = {value:.{3 if value < 0.1 else 2}f}"


def labels_text(labels: int) -> str:
    """'18 labels', 'all labels'."""
    return f"{labels} labels" if labels else "all labels"


def p_of(test: PairedTest) -> float:
    """The corrected p that the verdict used."""
    return test.p_patients_holm if test.n_patients else test.p_images_holm


def _tested(test: PairedTest) -> str:
    """How the numbers that follow are to be read."""
    unit = f"{test.n_patients} patients" if test.n_patients else f"{test.n_images} images"
    return f"difference in mean Dice, 95 % interval, Holm-corrected Wilcoxon p over {unit}"


def _joined(names: Sequence[str]) -> str:
    """'A', 'A and B', 'A, B and C'."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def named(sweep: Sweep, sweeps: Sequence[Sweep]) -> str:
    """The title of a sweep, or where another has the same the name of its folder."""
    titles = [other.title for other in sweeps]
    return sweep.title if titles.count(sweep.title) == 1 else sweep.label


def _under(sweep: Sweep, sweeps: Sequence[Sweep]) -> str:
    """Which sweep a sentence is about, where there are several."""
    return f" ({named(sweep, sweeps)})" if len(sweeps) > 1 else ""


# --------------------------------------------------------------------------- does it help?


def _does_it_help(
    sweep: Sweep,
    sweeps: Sequence[Sweep],
    cells: Sequence[Cell],
    differences: Sequence[Difference],
    costs: Sequence[Cost],
) -> Finding:
    equal = sweep.protocol == FAIR
    what = "at equal fine-tuning budget" if equal else f"under the protocol '{sweep.protocol}'"
    counts = sorted({d.labels for d in differences}, key=fewest_first)
    ends = list(dict.fromkeys([counts[0], counts[-1]]))
    rows = {n: [d for d in differences if d.labels == n] for n in ends}
    sentences = [text for n in ends for text in _one_row(n, rows[n], cells)]
    if all(d.test.n_runs == 1 for row in rows.values() for d in row):
        sentences.append(
            "One run each: the luck of draw and seed is not part of these intervals, so they are "
            "about these networks, not about the methods."
        )
    before = [c for c in costs if (c.sweep, c.kind) == (sweep.label, "pretrain")]
    steps = sum(c.steps for c in before if not c.variant)
    if steps:
        sentences.append(
            f"Pre-training itself took {steps:,} optimiser steps in all that training from "
            "scratch was not given."
        )
    return Finding(
        question=f"Does pre-training help {what}?{_under(sweep, sweeps)}",
        short=f"W{'; '.join(_in_short(n, rows[n]) for n in ends)[1:]}.",
        answer=" ".join(sentences),
        certainty=_certainty(d.test for row in rows.values() for d in row),
        numbers=tuple(d.test.difference.key for d in differences),
    )


def _certainty(tests: Iterable[PairedTest]) -> str:
    """'clear' where a verdict is; one run says nothing about a method, whatever its images say."""
    clear = any(test.verdict != "unclear" and test.n_runs > 1 for test in tests)
    return "clear" if clear else "unclear"


def _in_short(labels: int, row: Sequence[Difference]) -> str:
    """'with 18 labels MAE and CM-UNet clearly did, SparK was clearly worse'."""
    named = {
        verdict: _joined([method_name(d.method) for d in row if d.test.verdict == verdict])
        for verdict in ("better", "worse")
    }
    words = [f"{named['better']} clearly did" if named["better"] else "no method clearly did"]
    if named["worse"]:
        plural = sum(d.test.verdict == "worse" for d in row) > 1
        words.append(f"{named['worse']} {'were' if plural else 'was'} clearly worse")
    alone = " in the one run made" if all(d.test.n_runs == 1 for d in row) else ""
    return f"with {labels_text(labels)} {', '.join(words)}{alone}"


def _one_row(labels: int, row: Sequence[Difference], cells: Sequence[Cell]) -> Iterator[str]:
    """Sentences about one label count: who was better, by how much, with what certainty."""
    ordered = sorted(row, key=lambda d: -d.test.difference.value)
    scratch = next((c for c in cells if c.method == REFERENCE and c.labels == labels), None)
    base = f", where scratch reached mean Dice {plain(scratch.primary.value)}" if scratch else ""
    texts = {
        "better": "clearly better than scratch",
        "worse": "clearly worse than scratch",
        "unclear": "not clearly different, which is no evidence of equality",
    }
    parts = []
    for verdict, text in texts.items():
        named = [_with_numbers(d) for d in ordered if d.test.verdict == verdict]
        if named:
            parts.append(f"{text}: {', '.join(named)}")
    yield f"With {labels_text(labels)}{base} ({_tested(row[0].test)}): {'; '.join(parts)}."


def _with_numbers(difference: Difference) -> str:
    """'CM-UNet +0.080 (+0.060 to +0.100, p = 0.007)'."""
    return f"{method_name(difference.method)} {_numbers(difference.test)}"


def _numbers(test: PairedTest) -> str:
    return f"{signed(test.difference.value)} ({interval(test.difference)}, {p_text(p_of(test))})"


# ----------------------------------------------------------------------------- relative drop


def _percent(number: Number) -> str:
    text = f"{plain(100 * number.value, 1)} %"
    if number.has_interval:
        text += f" ({plain(100 * number.low, 1)} to {plain(100 * number.high, 1)})"
    return text


def _how_much_is_lost(sweep: Sweep, sweeps: Sequence[Sweep], drops: Sequence[Drop]) -> Finding:
    most, least = labels_text(drops[0].most), labels_text(drops[0].least)
    each = "; ".join(f"{method_name(d.method)} {_percent(d.drop)}" for d in drops)
    answer = f"Share of its Dice that each method lost, with 95 % interval: {each}."
    saved = [d for d in drops if math.isfinite(d.saved.value) and d.saved.has_interval]
    clear = [d for d in saved if d.saved.low > 0 or d.saved.high < 0]
    for drop in clear:
        less = "less" if drop.saved.value > 0 else "more"
        ends = sorted((abs(drop.saved.low), abs(drop.saved.high)))
        answer += (
            f" {method_name(drop.method)} lost {plain(100 * abs(drop.saved.value), 1)} percentage "
            f"points {less} than scratch ({plain(100 * ends[0], 1)} to {plain(100 * ends[1], 1)}, "
            "not corrected for several methods)."
        )
    unclear = [method_name(d.method) for d in saved if d not in clear]
    if unclear:
        answer += f" No clear difference to the loss of scratch: {_joined(unclear)}."
    if all(d.n_runs == 1 for d in drops):
        answer += _ONE_RUN
    ranked = sorted(drops, key=lambda d: d.drop.value)
    short = f"Between {_percent(ranked[0].drop)}, {method_name(ranked[0].method)}, and "
    short += f"{_percent(ranked[-1].drop)}, {method_name(ranked[-1].method)}."
    if len(drops) == 1:
        short = f"{method_name(drops[0].method)}: {_percent(drops[0].drop)}."
    return Finding(
        question=f"How much Dice is lost from {most} to {least}?{_under(sweep, sweeps)}",
        short=short,
        answer=answer,
        certainty="clear" if any(d.n_runs > 1 for d in clear) else "unclear",
        numbers=tuple(d.drop.key for d in drops) + tuple(d.saved.key for d in saved),
    )


def _is_it_the_protocol(
    sweeps: Sequence[Sweep], cells: Sequence[Cell], drops: Sequence[Drop]
) -> Iterator[Finding]:
    """The drop of scratch under `paper` beside that under `fair`, at the same label counts."""
    by_protocol = {sweep.protocol: sweep.label for sweep in reversed(sweeps)}
    own = [
        next((d for d in drops if (d.sweep, d.method) == (by_protocol.get(p), REFERENCE)), None)
        for p in ("paper", FAIR)
    ]
    paper, fair = own
    if paper is None or fair is None or (paper.most, paper.least) != (fair.most, fair.least):
        return
    apart = paper.drop.low > fair.drop.high or paper.drop.high < fair.drop.low
    words = "These intervals do not overlap" if apart else "These intervals overlap"
    apples = _other_images(cells, paper.sweep, fair.sweep)
    if min(paper.n_runs, fair.n_runs) == 1:
        apples += _ONE_RUN
    yield Finding(
        question="How much of the loss of training from scratch is made by the protocol?",
        short=f"{_percent(paper.drop)} under the paper's, {_percent(fair.drop)} under the fair.",
        answer=(
            f"From {labels_text(paper.most)} to {labels_text(paper.least)} scratch lost "
            f"{_percent(paper.drop)} under the protocol of the paper and {_percent(fair.drop)} "
            f"under the fair one. {words}.{apples} The authors' own logs give 46.9 %, on other "
            "images."
        ),
        certainty="clear" if apart and not apples else "unclear",
        numbers=(paper.drop.key, fair.drop.key),
    )


def _other_images(cells: Sequence[Cell], ours: str, theirs: str) -> str:
    """A sentence where two sweeps were not measured on the same images; else ''."""
    ids = [
        {name for c in cells if c.sweep == sweep for name in c.per_image.ids}
        for sweep in (ours, theirs)
    ]
    if ids[0] == ids[1]:
        return ""
    return (
        f" The test images differ ({len(ids[0])} and {len(ids[1])}, {len(ids[0] & ids[1])} in "
        "both), so what is laid to the protocol may be due to them."
    )


# --------------------------------------------------------------------------- which mattered?


def _which_mattered(variants: Sequence[Variant]) -> Finding:
    """The change with the largest clear difference of each method, and what was not clear."""
    sentences, short = [], []
    for method in dict.fromkeys(v.method for v in variants):
        own = [v for v in variants if v.method == method]
        clear = [v for v in own if v.test.verdict != "unclear"]
        clear.sort(key=lambda v: -abs(v.test.difference.value))
        name = method_name(method)
        if clear:
            first = clear[0]
            difference = signed(first.test.difference.value)
            short.append(f"{name}: '{first.name}' ({difference} Dice)")
            sentences.append(
                f"{name}: of {len(own)} changes '{first.name}' changed mean Dice the most with "
                f"{labels_text(first.labels)}, from {plain(first.base.value)} to "
                f"{plain(first.varied.value)}, {_numbers(first.test)}."
            )
            others = ", ".join(_variant(v) for v in clear[1:])
            sentences += [f"Also clear: {others}."] if others else []
        else:
            short.append(f"{name}: none clearly")
            names = ", ".join(_variant(v) for v in own)
            sentences.append(f"{name}: none of the changes made a clear difference: {names}.")
    if any(v.test.n_runs == 1 for v in variants):
        sentences.append("Where there was one run, the luck of draw and seed is not covered.")
    sentences.append("Each change was made alone; how they act together was not measured.")
    return Finding(
        question="Which of the paper's defects mattered most?",
        short="; ".join(short) + ".",
        answer=" ".join(sentences),
        certainty=_certainty(v.test for v in variants),
        numbers=tuple(v.test.difference.key for v in variants),
    )


def _variant(variant: Variant) -> str:
    return f"'{variant.name}' with {labels_text(variant.labels)} {_numbers(variant.test)}"
