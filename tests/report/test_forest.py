"""Forest plots keep to one scale and put the fewest labels first."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmunet_jax.report import charts, forest
from cmunet_jax.report.study import Study


@given(st.floats(-10, 10), st.floats(1e-4, 10))
def test_ticks_are_round_few_and_inside(low: float, width: float):
    ticks = forest.nice_ticks(low, low + width)
    assert 1 <= len(ticks) <= 5
    assert all(low - 1e-6 <= tick <= low + width + 1e-6 for tick in ticks)
    if low <= 0 <= low + width:
        assert min(map(abs, ticks)) < 1e-9
    steps = {round((b - a) / (ticks[1] - ticks[0]), 6) for a, b in zip(ticks, ticks[1:])}
    assert steps <= {1.0}


@pytest.fixture
def dice(whole: Study):
    return [d for d in whole.differences if (d.sweep, d.metric) == ("fair", "dice")]


def test_positions_follow_the_numbers(whole: Study, dice):
    found = forest.make(whole, dice, charts.looks(whole.methods))
    assert found is not None and len(found.rows) == len(dice)
    best = max(found.rows, key=lambda row: row.value.sort)
    scale = (best.dot - found.zero) / best.value.sort
    assert scale > 0
    for row in found.rows:
        number = row.test.difference
        assert row.dot == pytest.approx(found.zero + scale * number.value)
        assert row.left == pytest.approx(found.zero + scale * number.low)
        assert 100 - row.right == pytest.approx(found.zero + scale * number.high)
        assert 0 < row.left <= row.dot <= 100 - row.right < 100
    for at, text in found.ticks:
        assert at == pytest.approx(found.zero + scale * float(text.replace("−", "-")))


def test_the_fewest_labels_come_first_and_methods_keep_their_order(whole: Study, dice):
    found = forest.make(whole, dice, charts.looks(whole.methods))
    assert found is not None
    names = [charts.looks(whole.methods)[m].name for m in whole.methods if m != "scratch"]
    assert [row.labels for row in found.rows] == [18] * 5 + [500] * 5
    assert [row.look.name for row in found.rows] == names * 2


def test_without_an_interval_the_dot_stands_alone(whole: Study, dice):
    number = dataclasses.replace(dice[0].test.difference, low=math.nan, high=math.nan)
    test = dataclasses.replace(dice[0].test, difference=number)
    row = dataclasses.replace(dice[0], test=test)
    found = forest.make(whole, [row], charts.looks(whole.methods))
    assert found is not None
    assert found.rows[0].left == found.rows[0].dot == 100 - found.rows[0].right
    assert found.rows[0].value.interval == ""


def test_nothing_to_compare_gives_no_plot(whole: Study):
    assert forest.make(whole, [], charts.looks(whole.methods)) is None
