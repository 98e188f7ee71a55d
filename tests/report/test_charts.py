"""Drawings of a study say what the numbers say, with one look for each method."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmunet_jax.report import charts
from cmunet_jax.report.charts import Line, Look
from cmunet_jax.report.study import Number, Study

METHODS = ("scratch", "mae", "genesis", "moco", "spark", "cmunet")
gaps = st.floats(0.001, 0.3)
places = st.lists(st.floats(0, 1), min_size=1, max_size=8).map(sorted)


def line(name: str, index: int, **points: float) -> Line:
    """Points by label count ('n18'), each ± 0.02."""
    numbers = [(int(n[1:]), Number(n, v, v - 0.02, v + 0.02)) for n, v in points.items()]
    return Line(Look(name, index), sorted(numbers, key=lambda p: p[0]))


def words(drawing: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(drawing).iter("text")]


def stroke(drawing: str, index: int) -> np.ndarray:
    """Points of the line in the colour of a method: [n, 2], y downwards."""
    found = re.search(rf'd="M ([^"]*)"[^>]*stroke: var\(--series-{index}\)', drawing)
    assert found is not None
    return np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", found[1]), float)


@given(places, gaps)
def test_names_are_moved_apart_in_order(wanted: list[float], gap: float):
    found = charts.spread(wanted, gap)
    assert len(found) == len(wanted)
    assert all(b - a >= gap - 1e-9 for a, b in zip(found, found[1:]))


@given(places, gaps, st.integers(0, 7), st.floats(-0.2, 0.2))
def test_names_are_moved_as_little_as_possible(wanted, gap, which, nudge):
    found = charts.spread(wanted, gap)
    cost = sum((a - b) ** 2 for a, b in zip(found, wanted))
    other = list(found)
    other[which % len(other)] += nudge
    if all(b - a >= gap - 1e-12 for a, b in zip(other, other[1:])):
        assert cost <= sum((a - b) ** 2 for a, b in zip(other, wanted)) + 1e-9


def test_names_that_do_not_touch_stay():
    assert charts.spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])


@pytest.mark.parametrize("methods", [METHODS, ("cmunet", "scratch", "byol", "dino")])
def test_methods_differ_in_colour_and_marker(methods):
    looks = charts.looks(methods)
    assert len({look.index for look in looks.values()}) == len(methods)
    assert len({look.line["marker"] for look in looks.values()}) == len(methods)


def test_a_method_looks_the_same_whatever_else_there_is():
    assert charts.looks(["cmunet"])["cmunet"] == charts.looks(METHODS)["cmunet"]


def test_the_label_axis_is_logarithmic_and_names_the_counts():
    drawing = charts.efficiency(
        [line("A", 0, n10=0.5, n100=0.6, n1000=0.9)], key="k", title="t", ylabel="y"
    ).svg
    points = stroke(drawing, 0)
    x, y = points[:, 0], points[:, 1]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.05)
    assert (y[0] - y[1]) / (y[0] - y[2]) == pytest.approx(0.25, abs=0.01)
    assert [w for w in words(drawing) if w in ("10", "100", "1000")] == ["10", "100", "1000"]


def test_all_labels_stand_last():
    drawing = charts.efficiency(
        [line("A", 0, n0=0.9, n18=0.5, n90=0.6)], key="k", title="t", ylabel="y", small=True
    ).svg
    said = [w for w in words(drawing) if w in ("18", "90", "all")]
    assert said == ["18", "90", "all"]


@pytest.mark.parametrize(("everything", "text"), [(1800, "all (1800)"), (120, "all (120)")])
def test_all_labels_stand_at_their_true_number(everything: int, text: str):
    points = [
        (n, Number(str(n), v, v - 0.02, v + 0.02)) for n, v in ((18, 0.5), (90, 0.6), (0, 0.9))
    ]
    drawing = charts.efficiency(
        [Line(Look("A", 0), points)], key="k", title="t", ylabel="y", everything=everything
    ).svg
    x = stroke(drawing, 0)[:, 0]
    expected = math.log(everything / 18) / math.log(90 / 18)
    assert (x[2] - x[0]) / (x[1] - x[0]) == pytest.approx(expected, rel=0.01)
    assert text in words(drawing)


def test_the_band_reaches_from_end_to_end():
    drawing = charts.efficiency(
        [line("A", 0, n18=0.5, n500=0.7)], key="k", title="t", ylabel="y", limits=(0.4, 0.8)
    ).svg
    used = re.search(r'href="#([^"]*)"[^>]*fill: var\(--series-0\); fill-opacity: 0.18', drawing)
    assert used is not None
    path = re.search(rf'id="{used[1]}" d="M ([^"]*)"', drawing)
    assert path is not None
    band = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path[1]), float)
    middle = stroke(drawing, 0)
    per_unit = (middle[0, 1] - middle[1, 1]) / 0.2
    left = band[np.isclose(band[:, 0], middle[0, 0], atol=0.02), 1]
    assert left.max() - left.min() == pytest.approx(0.04 * per_unit, rel=0.02)


def test_curves_name_each_method_once_and_in_words():
    lines = [line(name, at, n18=0.5, n500=0.7) for at, name in enumerate(("A", "B", "C"))]
    drawing = charts.efficiency(lines, key="k", title="t", ylabel="y")
    said = words(drawing.svg)
    assert [said.count(name) for name in ("A", "B", "C")] == [1, 1, 1]
    label = ET.fromstring(drawing.svg).attrib["aria-label"]
    assert "B: 0.500 (0.480 to 0.520) with 18, 0.700 (0.680 to 0.720) with 500." in label


def test_what_was_not_measured_is_left_out_not_drawn_at_zero():
    missing = Line(Look("B", 1), [(18, Number("x", math.nan))])
    drawing = charts.efficiency(
        [line("A", 0, n18=0.5, n500=0.7), missing], key="k", title="t", ylabel="y"
    ).svg
    assert "--series-1" not in drawing


def test_drops_are_in_percent_with_their_names(whole: Study):
    looks = charts.looks(METHODS)
    found = [(looks[d.method], d) for d in whole.drops if d.sweep == "fair"]
    drawing = charts.drops(found, key="k", title="t").svg
    said = words(drawing)
    for look, drop in found:
        assert look.name in said and f"{100 * drop.drop.value:.1f} %" in said


def test_limits_hold_every_end():
    low, high = charts.limits([Number("a", 0.5, 0.3, 0.7), Number("b", 0.2), Number("c", math.nan)])
    assert low < 0.2 and high > 0.7 and high - low < 0.6
    assert charts.limits([])[0] < charts.limits([])[1]


def test_rings_mark_what_was_chosen(whole: Study):
    found = [s for s in whole.searches if s.sweep == "fair"]
    groups = {m: [s for s in found if s.method == m] for m in ("scratch", "cmunet")}
    drawing = charts.search(groups, key="k", title="t")
    chosen = {s.learning_rate for s in groups["cmunet"] if s.chosen}
    assert len(chosen) == 1
    label = ET.fromstring(drawing.svg).attrib["aria-label"]
    assert f"CM-UNet chose {chosen.pop():g}." in label
