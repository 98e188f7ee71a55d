"""The least diameter of a mask: that of a vessel, and none that a mask does not resolve."""

from __future__ import annotations

import numpy as np
import pytest

from cmunet_jax import qca
from tests.qca import vessels

SHAPE = (60, 120)
FLOOR = 1.3  # px


def tube(width, middle, *, length=80.0, column=60.0, angle=0.1):
    return vessels.tube(angle=angle, length=length, diameter=width, middle=(middle, column))


def sharp(*tubes, threshold=0.5):
    """Arguments of an analysis with a probability as of a network."""
    probability = vessels.sigmoid(*tubes, shape=SHAPE, rise=2.0, threshold=threshold)
    return {
        "mask": probability > threshold,
        "probability": probability,
        "threshold": threshold,
        "spacing": None,
    }


def plain(*tubes):
    return {"mask": vessels.draw(*tubes, shape=SHAPE), "spacing": None}


@pytest.mark.parametrize("given", [sharp, plain], ids=["probability", "mask"])
@pytest.mark.parametrize("spacing", [None, (0.3, 0.3), (0.2, 0.4)])
def test_a_speck_has_a_least_diameter_and_the_mask_another(given, spacing):
    speck = tube(3.0, 50, length=11.0)
    analysis = qca.analyse(**(given(tube(8.0, 15), speck) | {"spacing": spacing}))
    vessel, crumb = analysis.segments
    assert crumb.minimal_at is not None and np.nanmin(crumb.diameter_px) < 4
    content = qca.to_json(analysis)
    assert analysis.minimal == content["minimal_segment"] == vessel.id
    for unit in ("px", "mm"):
        key = f"minimal_diameter_{unit}"
        assert content[key] == content["segments"][0][key]
    assert abs(content["minimal_diameter_px"] - 8) < 0.8
    # A thin vessel that is as long as one gives it.
    analysis = qca.analyse(**(given(tube(8.0, 15), tube(3.0, 50)) | {"spacing": spacing}))
    assert abs(qca.to_json(analysis)["minimal_diameter_px"] - 3) < 0.8


def test_of_specks_alone_no_least_diameter_is_given(tmp_path):
    analysis = qca.analyse(**plain(tube(3.0, 15, length=11.0), tube(3.0, 45, length=11.0)))
    assert len(analysis.segments) == 2 and analysis.minimal is None
    assert all(s.minimal_at is not None for s in analysis.segments)
    assert qca.to_json(analysis)["minimal_diameter_px"] is None
    qca.draw(np.zeros(SHAPE, np.uint8), analysis, tmp_path / "a.png")


@pytest.mark.parametrize("width", [0.8, 1.1, 1.4, 1.8])
@pytest.mark.parametrize("threshold", [0.5, 0.9])
@pytest.mark.parametrize("angle", [0.0, 0.1, 0.8])
def test_what_a_mask_does_not_resolve_is_not_measured(width, threshold, angle):
    t = tube(width, 30, angle=angle, length=60)
    for arguments in (sharp(t, threshold=threshold), plain(t)):
        for s in qca.analyse(**arguments).segments:
            known = s.diameter_px[np.isfinite(s.diameter_px)]
            assert (known >= FLOOR).all() and (s.minimal_at is None) == (not len(known))


def test_a_vessel_under_the_floor_says_why_and_a_thicker_one_is_measured():
    (thin,) = qca.analyse(**sharp(tube(1.1, 30, angle=0.0))).segments
    assert thin.minimal_at is None and "under 1.3 px" in thin.why_no_stenosis
    (wider,) = qca.analyse(**sharp(tube(2.0, 30, angle=0.0))).segments
    assert abs(np.nanmin(wider.diameter_px) - 2) < 0.2


def test_of_a_throat_under_the_floor_the_percentage_is_the_least_that_it_can_be():
    narrow = vessels.narrowing(8.0, percent=88, at=0.5, spread=0.05)
    (s,) = qca.analyse(**sharp(tube(narrow, 30, length=100.0, angle=0.0))).segments
    assert np.isnan(s.diameter_px[len(s.diameter_px) // 2])
    measured = s.diameter_px[s.stenosis_at]
    assert FLOOR <= measured and 65 < s.percent_diameter_stenosis < 88
    reference = s.reference_px[s.stenosis_at]
    np.testing.assert_allclose(s.percent_diameter_stenosis, 100 * (1 - measured / reference))
