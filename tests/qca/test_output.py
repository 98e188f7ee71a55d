"""What an analysis becomes in files: JSON, CSV and the picture."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from cmunet_jax import qca
from tests.qca import vessels
from tfds_angio.errors import UserError

SHAPE = (120, 150)


@pytest.fixture(scope="module")
def mask():
    narrow = vessels.narrowing(12.0, percent=55, at=0.7, spread=0.05)
    main = vessels.tube(angle=0.2, length=140, diameter=narrow, middle=(60, 70))
    side = vessels.tube(angle=1.2, length=90, diameter=6, middle=(56, 50)).half()
    return vessels.draw(main, side, shape=SHAPE)


@pytest.fixture(scope="module", params=[None, (0.3, 0.3), (0.4, 0.3)], ids=["px", "mm", "oblong"])
def analysis(request, mask):
    return qca.analyse(mask, spacing=request.param)


def test_json_is_plain_and_consistent(analysis):
    found = json.loads(json.dumps(qca.to_json(analysis), allow_nan=False))
    spaced = analysis.spacing_mm is not None
    assert found["format"] == 1 and len(found["segments"]) == 3 == len(analysis.segments)
    assert found["spacing_mm"] == (list(analysis.spacing_mm) if spaced else None)
    assert len(found["bifurcations"]) == 1 and found["ignored_components"] == 0
    for name in ("length_px", "length_mm"):
        parts = [s[name] for s in found["segments"]]
        if name.endswith("px") or spaced:
            np.testing.assert_allclose(found[name], sum(parts), atol=1e-3)
        else:
            assert found[name] is None and parts == [None] * 3
    for number, s in enumerate(found["segments"], 1):
        assert s["id"] == number
        for name in ("position_px", "diameter_px", "reference_px"):
            assert len(s[name]) == len(s["points"])
        assert s["length_px"] == s["position_px"][-1]
        at, unit = s["minimal_at"], "mm" if spaced else "px"
        known = [d for d in s[f"diameter_{unit}"] if d is not None]
        assert s[f"minimal_diameter_{unit}"] == min(known) == s[f"diameter_{unit}"][at]
        assert (s["minimal_diameter_mm"] is None) != spaced
        assert s["reference_at_minimum_px"] == s["reference_px"][at]
        assert (s["percent_diameter_stenosis"] is None) == (s["why_no_stenosis"] is not None)
        if s["stenosis_at"] is not None:
            d, r = (s[f"{name}_{unit}"][s["stenosis_at"]] for name in ("diameter", "reference"))
            np.testing.assert_allclose(s["percent_diameter_stenosis"], 100 * (1 - d / r), atol=0.05)
    least = [s["minimal_diameter_px"] for s in found["segments"]]
    assert found["minimal_diameter_px"] in least
    stenoses = [s["percent_diameter_stenosis"] or 0 for s in found["segments"]]
    assert abs(max(stenoses) - 55) < 6


def test_csv_has_a_row_a_point_and_a_row_a_segment(analysis, tmp_path):
    qca.write_csv(analysis, tmp_path / "case_0003.csv")
    with (tmp_path / "case_0003.csv").open() as file:
        points = list(csv.DictReader(file))
    assert len(points) == sum(len(s.points) for s in analysis.segments)
    second = [p for p in points if p["segment"] == "2"]
    expected = qca.to_json(analysis)["segments"][1]
    for name in ("position_px", "diameter_px", "reference_px", "diameter_mm", "reference_mm"):
        values = expected[name] or [None] * len(second)
        assert [p[name] for p in second] == ["" if v is None else str(v) for v in values]
    assert [[float(p["row"]), float(p["column"])] for p in second] == expected["points"]
    with (tmp_path / "case_0003_segments.csv").open() as file:
        segments = list(csv.DictReader(file))
    assert [s["id"] for s in segments] == ["1", "2", "3"]
    assert segments[1]["length_px"] == str(expected["length_px"])
    place = expected["points"][expected["minimal_at"]]
    assert [float(segments[1][f"minimal_{axis}"]) for axis in ("row", "column")] == place


def test_the_picture_shows_colours_on_the_frame_and_names_nobody(analysis, tmp_path):
    frame = np.full(SHAPE, 90, np.uint8)
    qca.draw(frame, analysis, tmp_path / "case.png")
    with Image.open(tmp_path / "case.png") as image:
        assert not set(image.info) - {"dpi"}
        pixels = np.asarray(image.convert("RGB")).astype(int)
    inner = pixels[60:-60, 30:780]
    coloured = np.abs(inner - inner.mean(axis=-1, keepdims=True)).max(axis=-1) > 40
    assert 0.002 < coloured.mean() < 0.2
    assert (np.abs(inner - 90).max(axis=-1) <= 1).mean() > 0.7


def test_nothing_to_show_is_shown(tmp_path):
    analysis = qca.analyse(np.zeros(SHAPE, bool), spacing=(0.3, 0.3))
    found = qca.to_json(analysis)
    assert found["segments"] == found["bifurcations"] == [] and found["length_mm"] == 0
    assert found["minimal_diameter_px"] is None and found["minimal_diameter_mm"] is None
    qca.write_csv(analysis, tmp_path / "a.csv")
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 1
    qca.draw(np.zeros(SHAPE, np.uint8), analysis, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_frame_of_another_size_is_refused(tmp_path, analysis):
    with pytest.raises(UserError, match=r"\(9, 9\)"):
        qca.draw(np.zeros((9, 9), np.uint8), analysis, tmp_path / "a.png")


@pytest.mark.parametrize("seed", range(40))
def test_no_mask_breaks_it(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(tuple(rng.integers(1, 45, 2))) < rng.random()
    spacing = None if seed % 2 else tuple(rng.uniform(0.05, 1, 2))
    analysis = qca.analyse(mask, spacing=spacing)
    json.dumps(qca.to_json(analysis), allow_nan=False)
    for s in analysis.segments:
        assert (np.diff(s.position_px) > 0).all() and np.isfinite(s.points).all()
        known = np.isfinite(s.diameter_px)
        assert (s.diameter_px[known] > 0).all() and (s.minimal_at is None) == (not known.any())
