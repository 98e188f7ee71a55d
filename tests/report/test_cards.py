"""The model card and the checklist say what the files say, and leave the rest to people."""

from __future__ import annotations

import dataclasses
import re

import pytest

from cmunet_jax.report import cards
from cmunet_jax.report.study import read_study
from tests.report import fake_sweep


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return read_study(fake_sweep.build(tmp_path_factory.mktemp("sweeps")).all, resamples=100)


def test_the_checklist_has_44_items_and_marks_what_only_people_know(study, tmp_path):
    cards.write(study, tmp_path)
    text = (tmp_path / "claim.md").read_text()
    rows = [line for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, 45))
    assert all(len(re.split(r"(?<!\\)\|", row)) == 5 for row in rows)
    open_items = {int(row.split("|")[1]) for row in rows if "*author to complete*" in row}
    assert {3, 8, 11, 14, 16, 18, 34, 36, 44} <= open_items
    assert not {7, 10, 20, 23, 25, 26, 28, 29, 37, 39, 40} & open_items
    assert len(cards.answered(study)) == 44 - len(open_items)


def test_answers_come_from_the_files(study):
    answers = {number: answer for number, _, answer in cards.claim(study)}
    assert "ffffffffffff" in answers["7"] and "angio_synthetic/small" in answers["7"]
    assert "18 labels, 100 labels, 500 labels" in answers["10"]
    assert "Dice" in answers["28"] and "HD95" in answers["28"]
    assert "Holm" in answers["29"] and "Student" in answers["29"]
    assert "hard_dice" in answers["30"]
    assert "40 images of 12 patients" in answers["35"]
    assert study.findings[0].short in answers["37"]
    assert answers["44"] == ""


def test_selection_and_overlap_are_those_of_each_protocol(study):
    answers = {number: answer for number, _, answer in cards.claim(study)}
    same = "the split that was then measured"
    assert f"As released: checkpoints chosen by test/dice, {same}" in answers["26"]
    assert "Six methods at equal budget: no metric chose the checkpoints" in answers["26"]
    assert "As released: image; views of one patient may be on both sides" in answers["20"]
    assert "Six methods at equal budget: patient, or run" in answers["20"]
    fair, paper = answers["35"].split("; As released: ")
    assert "no image and no known patient of it was in training" in fair
    assert "5 patients of it also in training" in paper and same in paper


def test_training_is_reported_as_it_was_not_as_configured(study):
    optim = {"name": "adamw", "learning_rate": 0.0777}
    own = {"train_for": "9 epochs", "optim": optim, "views": {"rot90": 1.0}}
    config = {"finetune": own, "pretrain": {"cmunet": own, "byol": own}, "pretrain_for": ""}
    study = dataclasses.replace(
        study, sweeps=tuple(dataclasses.replace(s, config=config) for s in study.sweeps)
    )
    answer = next(text for number, _, text in cards.claim(study) if number == "25")
    before, pretraining = answer.split("pre-training of CM-UNet: ")
    assert "0.0777" not in before and "CM-UNet 0.001" in before
    assert "augmentation: rot90 1.0" in before and "train_for: 9 epochs" in before
    assert "learning_rate 0.0777" in pretraining and "byol" not in pretraining


def test_names_with_commas_are_told_apart(study):
    info = dataclasses.replace(study.metrics["dice"], heading="Sensitivity, thin")
    study = dataclasses.replace(study, metrics={"dice": info, "iou": study.metrics["iou"]})
    answers = {number: answer for number, _, answer in cards.claim(study)}
    assert answers["28"] == "Sensitivity, thin; IoU"


def test_the_card_states_use_limits_results_and_what_was_left_out(study, tmp_path):
    cards.write(study, tmp_path)
    text = (tmp_path / "model_card.md").read_text()
    assert text.startswith("# Model card: Six methods at equal budget")
    for heading, _ in cards.model_card(study):
        assert f"## {heading}\n" in text
    assert "Not a medical device" in text and "loss is not finite at step 40" in text
    number = study.cell("fair", "cmunet", 18).primary
    assert f"fair, CM-UNet, 18 labels: mean Dice {number.value:.3f}" in text
    assert all(caveat in text for caveat in study.caveats)
    assert "energy not measured" in text and "configs/report.py" in text
    assert "Source: not recorded." in text
