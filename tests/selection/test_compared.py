"""What the table of docs/select.md is made with."""

import csv

import numpy as np
import pytest

from tests.selection import compared


def evaluations(folder, name, runs, shift, ids="abcdefghij"):
    rng = np.random.default_rng(3)
    images = rng.random(len(ids))  # the same of every choice
    for run in range(runs):
        to = folder / f"{name}{run}"
        to.mkdir(parents=True)
        with (to / "cases.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "patient", "centre", "empty", "dice"])
            dice = images + shift + 0.01 * (run - (runs - 1) / 2)
            writer.writerows([i, "", "", "", value] for i, value in zip(ids, dice))


def test_choices_are_compared_over_images_and_runs(tmp_path, capsys):
    evaluations(tmp_path, "random", 5, 0.0)
    evaluations(tmp_path, "good", 3, 0.05)
    groups = [f"{name}={tmp_path}/{name}*" for name in ("random", "good")]
    assert compared.main(groups) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("random: 5 runs, Dice 0.") and "over" not in first
    # All images gain the same, so that only runs make the difference uncertain: 0.01 and 0.0158
    # are the deviations of the runs, 4.30 and 2.78 the ends of t.
    assert "+0.050 (+0.050 to +0.050) over images alone" in second
    low, high = (float(part) for part in second.split("(")[2].split(")")[0].split(" to "))
    assert (low + high) / 2 == pytest.approx(0.05, abs=0.002)
    assert 4.30 * 0.01 / 3**0.5 < (high - low) / 2 < 1.3 * 4.30 * 0.01 / 3**0.5


def test_what_cannot_be_compared_is_said(tmp_path):
    evaluations(tmp_path, "random", 2, 0.0)
    evaluations(tmp_path, "other", 2, 0.0, ids="klmnopqrst")
    evaluations(tmp_path, "one", 1, 0.0)
    for name, words in (("other", "other images"), ("one", "one run"), ("none", "no folder")):
        with pytest.raises(SystemExit, match=words):
            compared.main([f"random={tmp_path}/random*", f"{name}={tmp_path}/{name}*"])
