"""The words follow from the numbers, and say no more than they do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmunet_jax.evaluation import statistics
from cmunet_jax.report import findings
from cmunet_jax.report.comparison import Comparison, Result, compare, short_names
from cmunet_jax.report.results import Curve, Evaluation, Metric, Training
from tests.report.runs import CONFIG
from tfds_angio.errors import UserError

BASE = np.linspace(0.6, 0.8, 40)


def arm(
    name: str,
    dice: np.ndarray,
    *,
    patients: int = 20,
    curve: tuple[float, ...] = (0.5, 0.7, 0.7, 0.7),
    steps: int = 100,
    summary: dict[str, Any] | None = None,
    **config: Any,
) -> Result:
    """A result with one curve and two metrics, one of which is better when lower."""
    at = np.linspace(steps / len(curve), steps, len(curve))
    record = {"config": CONFIG | config}
    training = Training(Path("runs"), record, {"val/dice": Curve(at, np.array(curve))}, {}, None)

    def metric(name: str, values: np.ndarray, higher: bool) -> Metric:
        return Metric(name, name, "", higher, float(values.mean()), 0.0, 1.0, np.nan, values)

    content = {"dataset": {"name": "angio_synthetic/tiny"}, "split": "test", "n": len(dice)}
    evaluation = Evaluation(
        Path("evaluation") / name,
        content | (summary or {}),
        {"dice": metric("dice", dice, True), "hd95": metric("hd95", 10 * (1 - dice), False)},
        [f"i{i}" for i in range(len(dice))],
        [f"p{i % patients}" if patients else "" for i in range(len(dice))],
    )
    return Result(name, name, 0, training, evaluation)


def pair(gain: float | np.ndarray, *, base: np.ndarray = BASE, **options: Any) -> Comparison:
    """CM-UNet, `gain` above scratch."""
    ours = arm("CM-UNet", np.clip(base + gain, 0, 1), **options)
    return compare(ours, arm("scratch", base, **options))


NOISE = np.random.default_rng(0).normal(0, 0.05, 40)


@pytest.mark.parametrize(
    ("gain", "kind", "sentence"),
    [
        (0.06 + NOISE, "better", "CM-UNet was better than scratch"),
        (-0.06 + NOISE, "worse", "CM-UNet was worse than scratch"),
        (NOISE - NOISE.mean(), "unclear", "CM-UNet and scratch did not differ clearly"),
        (0.0, "unclear", "CM-UNet and scratch did not differ clearly"),
        (0.005, "better", "CM-UNet was slightly better than scratch"),
    ],
)
def test_the_verdict(gain: Any, kind: str, sentence: str):
    found = findings.verdict(pair(gain))
    assert found.kind == kind
    assert f"{found.arm} {found.words} {found.reference}{found.after}" == sentence
    assert found.but == ""


def test_the_numbers_are_those_of_the_bootstrap():
    comparison = pair(0.06 + NOISE)
    ours, theirs = comparison.arm.evaluation, comparison.reference.evaluation

    def rows(e: Evaluation) -> list[dict[str, Any]]:
        columns = zip(e.ids, e.patients, e.metrics["dice"].values)
        return [{"id": i, "patient": p, "dice": v} for i, p, v in columns]

    expected = statistics.paired_difference(rows(ours), rows(theirs), "dice")
    text = findings.verdict(comparison).numbers
    assert f"a difference of +{expected.mean:.3f}, 95 % interval " in text
    assert f"interval +{expected.low:.3f} to +{expected.high:.3f}." in text
    assert f"mean Dice was {ours.metrics['dice'].mean:.3f} (CM-UNet)" in text
    wins = int((comparison.per_image > 0).sum())
    assert f"higher on {wins} and lower on {40 - wins} of the 40 images" in text
    assert "Over 40 images of 20 patients" in text


def test_pairs_are_made_by_id_not_by_order():
    straight = pair(0.06 + NOISE)
    scratch = straight.reference
    order = np.random.default_rng(1).permutation(40)
    shuffled = dataclasses.replace(
        scratch.evaluation,
        ids=[scratch.evaluation.ids[i] for i in order],
        patients=[scratch.evaluation.patients[i] for i in order],
        metrics={
            name: dataclasses.replace(metric, values=metric.values[order])
            for name, metric in scratch.evaluation.metrics.items()
        },
    )
    again = compare(straight.arm, dataclasses.replace(scratch, evaluation=shuffled))
    np.testing.assert_allclose(again.per_image, straight.per_image)
    assert again.primary == straight.primary


def test_lower_is_better_where_the_metric_says_so():
    comparison = pair(0.06 + NOISE)
    assert comparison.differences["hd95"].mean < 0
    assert comparison.verdict("hd95") == "better"


def test_three_patients_never_decide():
    comparison = pair(0.05, patients=3)
    assert comparison.primary.low > 0
    found = findings.verdict(comparison)
    assert found.kind == "unclear"
    assert "the test does not confirm it" in found.numbers
    lines = findings.caveats([comparison.arm, comparison.reference], [comparison], None, {})
    assert any("Only 3 patients" in line and "0.25" in line for line in lines)


def test_one_patient_gives_no_interval():
    found = findings.verdict(pair(0.05, patients=1))
    assert found.kind == "unclear"
    assert "without an interval" in found.numbers


def test_two_poor_networks_are_called_poor():
    found = findings.verdict(pair(0.06, base=BASE - 0.4))
    assert found.kind == "better"
    assert found.but == "Neither segments well."


def caveats(comparison: Comparison, pretrain: Training | None = None, **facts: Any) -> str:
    results = [comparison.arm, comparison.reference]
    return " ".join(findings.caveats(results, [comparison], pretrain, facts))


def test_synthetic_images_are_called_so():
    comparison = pair(0.06)
    assert "The images are synthetic" in caveats(comparison)
    assert "The images are synthetic" not in caveats(comparison, synthetic=False)
    results = [comparison.arm, comparison.reference]
    assert "real patients" in findings.not_shown(results, {})[0]
    assert "another hospital" in findings.not_shown(results, {"synthetic": False})[0]


def test_draws_and_seeds_are_counted():
    comparison = pair(0.06)
    assert "One draw of the 18 labelled images and one seed per arm" in caveats(comparison)
    assert "3 draws" not in caveats(comparison, draws=3, seeds=2)
    assert "3 draws of the 18 labelled images and one seed" in caveats(comparison, draws=3)


def test_unknown_patients_are_mentioned():
    assert "Patients are unknown" in caveats(pair(0.06, patients=0))
    assert "Patients are unknown" not in caveats(pair(0.06))


def test_scale_is_judged_by_the_config():
    assert "U-Net width 4 (paper: 64)" in caveats(pair(0.06))
    full = pair(0.06, model={"width": 64}, preprocessing={"size": 256})
    assert "Smaller than the paper" not in caveats(full)
    assert "Smaller than the paper: few steps." in caveats(full, scale="few steps")


def test_unequal_training_is_mentioned():
    ours, theirs = arm("a", BASE + 0.1, steps=200), arm("b", BASE, steps=100, draw=1)
    text = caveats(compare(ours, theirs))
    assert "not trained for the same number of steps (a: 200, b: 100)" in text
    assert "draw of labelled images (0, 1)" in text
    assert "same number of steps" not in caveats(pair(0.06))


def test_the_work_of_pretraining_is_mentioned():
    comparison = pair(0.06)
    pretrain = comparison.arm.training
    assert "pre-training took 100 optimiser steps" in caveats(comparison, pretrain)
    assert "pre-training took" not in caveats(comparison)


def test_a_curve_that_still_rises_is_mentioned():
    assert "still rising" in caveats(pair(0.06, curve=(0.2, 0.4, 0.5, 0.6)))
    assert "still rising" not in caveats(pair(0.06, curve=(0.2, 0.6, 0.6, 0.605)))


def test_selection_on_the_reported_split_is_mentioned():
    options: dict[str, Any] = {
        "summary": {"split": "val", "config": {"step": "best"}},
        "checkpoint": {"best": "val/dice"},
    }
    assert "optimistic" in caveats(pair(0.06, **options))
    assert "optimistic" not in caveats(pair(0.06))


def test_remarks_of_the_caller_are_kept():
    assert "Mind the gap." in caveats(pair(0.06), remarks=["Mind the gap."])


@pytest.mark.parametrize(
    ("key", "value"),
    [("split", "val"), ("protocol", "paper"), ("dataset", {"name": "arcade"})],
)
def test_different_evaluations_are_not_compared(key: str, value: Any):
    ours, theirs = arm("a", BASE), arm("b", BASE, summary={key: value})
    with pytest.raises(UserError, match=f"{key}.*cannot be compared"):
        compare(ours, theirs)


def test_different_images_are_not_compared():
    with pytest.raises(UserError, match="different images .*'i39'"):
        compare(arm("a", BASE), arm("b", BASE[:39]))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["CM-UNet, 18 labels", "scratch, 18 labels"], ["CM-UNet", "scratch"]),
        (
            ["CM-UNet, 18 labels", "CM-UNet, 40 labels"],
            ["CM-UNet, 18 labels", "CM-UNet, 40 labels"],
        ),
        (["a", "b"], ["a", "b"]),
        (["one, 18 labels"], ["one, 18 labels"]),
        (["x, 1", "y, 1, 1"], ["x", "y, 1"]),
    ],
)
def test_short_names(names: list[str], expected: list[str]):
    assert short_names(names) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0625, "+0.062"), (-0.01, "−0.010"), (0.0001, "0.000"), (np.nan, "–"), (-2e-5, "0.000")],
)
def test_signed(value: float, text: str):
    assert findings.signed(value) == text
