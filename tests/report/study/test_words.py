"""The answers follow from the numbers, and say no more than these."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from cmunet_jax.report.study import read_study, wording
from cmunet_jax.report.study.model import Overlap
from tests.report import fake_sweep


def answer(study, words):
    return next(f for f in study.findings if words in f.question)


def test_the_answers_name_who_helped_and_who_did_not(study):
    found = answer(study, "equal fine-tuning budget")
    assert found.certainty == "clear"
    assert "MAE, MoCo v2 and CM-UNet clearly did, SparK was clearly worse" in found.short
    assert "not clearly different, which is no evidence of equality: Model Genesis" in found.answer
    assert "7,500 optimiser steps" in found.answer
    key = ("fair", "cmunet", 18, "dice")
    rows = study.differences
    test = next(d.test for d in rows if (d.sweep, d.method, d.labels, d.metric) == key)
    assert f"CM-UNet +{test.difference.value:.3f} (+{test.difference.low:.3f} to" in found.answer


def test_the_collapse_is_put_down_to_the_protocol_where_it_vanishes(study):
    found = answer(study, "made by the protocol")
    assert "do not overlap" in found.answer and "46.9 %" in found.answer
    # One run of the paper's protocol: a wide gap between two networks is not one of protocols.
    assert found.certainty == "unclear" and "With one run" in found.answer
    assert "test images differ" not in found.answer


def test_a_gap_is_clear_with_several_runs_on_the_same_images_only(study):
    """The rule itself, on drops that differ by far."""
    sweeps = [s for s in study.sweeps if s.label in ("fair", "paper")]
    drops = [dataclasses.replace(d, n_runs=3) for d in study.drops if d.sweep in ("fair", "paper")]

    def found(cells):
        (answer,) = wording._is_it_the_protocol(sweeps, cells, drops)
        return answer

    assert found(study.cells).certainty == "clear"
    moved = [
        dataclasses.replace(c, per_image=dataclasses.replace(c.per_image, ids=("a", "b")))
        if c.sweep == "paper"
        else c
        for c in study.cells
    ]
    assert found(moved).certainty == "unclear"
    assert "The test images differ (2 and 40, 0 in both)" in found(moved).answer


def test_a_loss_of_single_runs_is_not_clear(study):
    loss = {f.question: f for f in study.findings if "is lost" in f.question}
    assert [f.certainty for q, f in loss.items() if "As released" in q] == ["unclear"]
    assert [f.certainty for q, f in loss.items() if "Six methods" in q] == ["clear"]
    assert {d.n_runs for d in study.drops if d.sweep == "paper"} == {1}
    spark = next(d for d in study.drops if (d.sweep, d.method) == ("fair", "spark"))
    assert spark.n_runs == 3


def test_selection_on_the_test_split_and_patients_in_training_are_named(study):
    caveats = [c for c in study.caveats if "(As released)" in c]
    assert any("chosen by test/dice, on the images that they were then" in c for c in caveats)
    assert any("had seen 5 patients of the split 'test': splits 'paper'" in c for c in caveats)
    assert study.caveats[1] == caveats[0]  # what is missing, then this: the gravest first
    (fair,) = [s for s in study.sweeps if s.label == "fair"]
    assert fair.selected_on == ("",) and fair.seen == Overlap(0, 0, "")


def test_sweeps_of_one_title_are_told_apart_by_their_folders(study):
    fair, paper = (s for s in study.sweeps if s.label in ("fair", "paper"))
    assert wording.named(fair, [fair, paper]) == fair.title
    twin = dataclasses.replace(paper, title=fair.title)
    assert [wording.named(s, [fair, twin]) for s in (fair, twin)] == ["fair", "paper"]


def test_without_scratch_nothing_is_said_about_pretraining(tmp_path):
    sweep = fake_sweep.build_fair(
        tmp_path, methods=("cmunet",), labels=(18, 500), draws=(0, 1), search=False, failed=""
    )
    study = read_study([sweep], resamples=50)
    assert any("Training from scratch has no result, so" in c for c in study.caveats)
    assert study.findings[0].short.startswith("CM-UNet: ")


def test_the_defect_that_mattered_most_is_the_largest_clear_change(study):
    found = answer(study, "mattered most")
    assert (
        found.short == "Scratch: 'epochs' (\u22120.150 Dice); CM-UNet: 'epochs' (\u22120.150 Dice)."
    )
    assert "'hard_dice'" in found.answer and "row_target" not in found.answer


def test_a_sweep_of_variants_does_not_answer_what_another_does(study):
    assert len([f for f in study.findings if "equal fine-tuning budget" in f.question]) == 1


def test_nothing_clear_is_said_to_be_unclear(tmp_path, monkeypatch):
    monkeypatch.setattr(fake_sweep, "GAIN", {m: (0.0, 0.0) for m in fake_sweep.METHODS})
    sweep = fake_sweep.build_fair(
        tmp_path, methods=("scratch", "cmunet"), labels=(18,), draws=(0,), search=False, failed=""
    )
    study = read_study([sweep], resamples=200)
    (found,) = study.findings
    assert found.certainty == "unclear" and found.short.endswith("in the one run made.")
    assert "One run each" in found.answer
    assert any("unknown, and no part of the intervals" in c for c in study.caveats)
    assert not study.drops and not study.variants


def test_unknown_patients_make_the_test_one_over_images(tmp_path, monkeypatch):
    plain = fake_sweep.fake_evaluation.evaluation

    def without_patients(dice, **options):
        found = plain(dice, **options)
        for row in found.rows:
            row["patient"] = ""
        return found

    monkeypatch.setattr(fake_sweep.fake_evaluation, "evaluation", without_patients)
    sweep = fake_sweep.build_fair(
        tmp_path, methods=("scratch", "cmunet"), labels=(18,), draws=(0, 1), search=False, failed=""
    )
    study = read_study([sweep], resamples=200)
    (found,) = [d.test for d in study.differences if d.metric == "dice"]
    assert found.n_patients == 0 and np.isnan(found.p_patients_holm)
    assert found.verdict == "better"
    assert "over 40 images" in study.findings[0].answer
    assert any("Patients are unknown" in caveat for caveat in study.caveats)


def test_what_a_sweep_lacks_of_its_protocol_is_a_caveat(tmp_path):
    sweep = fake_sweep.build_fair(
        tmp_path, methods=("scratch",), labels=(18,), draws=(0,), search=False, failed=""
    )
    path = sweep / "sweep.json"
    line = "Draws of the labelled images: 1 instead of at least 3."
    path.write_text(json.dumps(json.loads(path.read_text()) | {"deviations": [line]}))
    study = read_study([sweep], resamples=20)
    assert f"Less than protocol 'fair' asks for: {line}" in study.caveats


def test_the_caveats_name_scale_draws_and_shared_pretraining(study):
    text = " ".join(study.caveats)
    for words in (
        "synthetic",
        "invented numbers",
        "only roughly known",
        "start from one",
        "Only 12",
    ):
        assert words in text
    assert "called clear" not in text  # 12 patients are enough for 15 comparisons


def test_too_few_patients_to_find_anything_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(fake_sweep, "PATIENTS", 4)
    sweep = fake_sweep.build_fair(
        tmp_path, methods=("scratch", "cmunet"), labels=(18,), draws=(0, 1), search=False, failed=""
    )
    study = read_study([sweep], resamples=200)
    assert study.findings[0].certainty == "unclear"
    assert any("nothing can be called clear" in caveat for caveat in study.caveats)
