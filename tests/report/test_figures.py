"""Drawings keep their numbers and their names, and do not disturb the page around them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np

from cmunet_jax.report import figures, svg
from cmunet_jax.report.results import Curve


def curve(*values: float) -> Curve:
    return Curve(np.arange(1.0, len(values) + 1), np.array(values))


def draw(key: str = "k", **series: Curve) -> str:
    numbered = dict(enumerate(series.values()))
    drawing = figures.curves(
        numbered, key=key, title="t", ylabel="$x_1$ <b> 0.123456", description='a "b" <c>'
    )
    return drawing.svg


def texts(drawing: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(drawing).iter("text")]


def test_tick_labels_are_not_shortened():
    found = texts(draw(a=curve(0.08012, 0.08044, 0.08061)))
    assert "$x_1$ <b> 0.123456" in found
    ticks = [text for text in found if text.startswith("0.080")]
    assert len(ticks) > 3 and len(set(ticks)) == len(ticks)


def test_lines_go_through_their_points():
    drawing = draw(a=curve(1.0, 3.0, 2.0))
    line = re.search(r'd="M ([^"]*)"[^>]*stroke: var\(--series-0\)', drawing)
    assert line is not None
    points = np.array(re.findall(r"([\d.]+) ([\d.]+)", line[1]), float)
    x, y = points.T
    assert len(points) == 3
    np.testing.assert_allclose((y[0] - y[2]) / (y[0] - y[1]), 0.5, atol=1e-3)
    np.testing.assert_allclose(x[1] - x[0], x[2] - x[1], atol=0.02)


def test_each_series_differs_in_more_than_colour():
    drawing = draw(**{name: curve(1.0, 2.0 + at) for at, name in enumerate("abcdef")})
    styles = re.findall(r'style="([^"]*stroke: var\(--series-\d\)[^"]*)"', drawing)
    lines = {s for s in styles if "fill: none" in s}
    assert {f"--series-{i}" for i in range(6)} == set(re.findall(r"--series-\d", drawing))
    dashes = [re.sub(r"stroke: var\([^)]*\);?", "", s) for s in lines]
    assert len(set(dashes)) >= 5


def test_two_drawings_do_not_share_ids_and_bring_no_style():
    first, second = draw("one", a=curve(1, 2)), draw("two", a=curve(1, 2))
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    for text, known in zip((first, second), ids):
        assert set(re.findall(r"url\(#([^)]+)\)", text)) <= known
        assert set(re.findall(r'href="#([^"]+)"', text)) <= known
        assert "<style" not in text and "http" not in text and "DejaVu" not in text


def test_only_colours_of_the_page_are_used():
    drawing = draw(a=curve(1, 2))
    assert re.findall(r"#[0-9a-f]{6}", drawing) == []


def test_the_description_is_escaped():
    root = ET.fromstring(draw(a=curve(1, 2)))
    assert root.attrib["aria-label"] == 'a "b" <c>'


def test_drawing_leaves_the_settings_of_matplotlib_alone():
    before = dict(mpl.rcParams)
    with svg.style():
        assert mpl.rcParams["svg.fonttype"] == "none"
    assert dict(mpl.rcParams) == before
