"""The contour between pixels: what a probability may move, and what it may not."""

from __future__ import annotations

import numpy as np
import pytest

from cmunet_jax import qca
from cmunet_jax.qca.contour import covered
from tests.qca import vessels

SHAPE = (60, 100)


def along_rows(width: float, middle: float) -> vessels.Tube:
    return vessels.tube(angle=0.0, length=80, diameter=width, middle=(middle, 50.0))


def diameters(mask, probability, threshold=0.5):
    """The diameters [K] of each segment, by the place of its middle."""
    found = qca.analyse(mask, spacing=None, probability=probability, threshold=threshold)
    assert found.contour == "probability"
    ordered = sorted(found.segments, key=lambda s: s.points[:, 0].mean())
    return [s.diameter_px[np.isfinite(s.diameter_px)] for s in ordered]


def test_a_probability_of_0_and_1_is_the_mask():
    mask = vessels.draw(along_rows(9.0, 30.2), shape=SHAPE)
    corners = np.zeros(SHAPE, bool)
    corners[np.ix_([26, 34], [11, 89])] = True  # of the flat ends: cut, as a line would
    share = covered(mask, mask.astype(np.float32), 0.5)
    np.testing.assert_array_equal(share[~corners], mask[~corners])
    plain = qca.analyse(mask, spacing=None)
    assert plain.contour == "mask"
    np.testing.assert_allclose(np.nanmean(plain.segments[0].diameter_px), 9.0, atol=0.01)
    np.testing.assert_allclose(diameters(mask, mask.astype(float))[0].mean(), 9.0, atol=0.01)


def test_no_probability_moves_the_contour_by_more_than_a_pixel_of_the_border():
    mask = vessels.draw(
        vessels.tube(angle=0.5, length=70, diameter=8, middle=(30, 50)), shape=SHAPE
    )
    rng = np.random.default_rng(0)
    for probability in (rng.random(SHAPE), np.full(SHAPE, 0.5), np.zeros(SHAPE), np.ones(SHAPE)):
        share = covered(mask, probability.astype(np.float32), 0.5)
        padded = np.pad(mask, 1, mode="edge")
        near = [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]
        border = np.any([n != mask for n in near], axis=0)
        np.testing.assert_array_equal(share[~border], mask[~border])
        assert (share[mask] >= 0.5).all() and (share[~mask] <= 0.5).all()


@pytest.mark.parametrize("high", [0.6, 0.9])
def test_how_sure_a_network_is_inside_does_not_narrow_a_vessel(high):
    t = along_rows(9.0, 30.2)
    probability = np.minimum(vessels.sigmoid(t, shape=SHAPE, rise=2.0), high)
    (found,) = diameters(probability > 0.5, probability)
    assert np.abs(found - 9.0).max() < 0.5


def test_a_component_that_was_taken_away_does_not_widen_its_neighbour():
    kept, gone = along_rows(7.3, 25.4), along_rows(4.0, 32.1)
    both = vessels.coverage(kept, gone, shape=SHAPE)
    mask = both > 0.5
    mask[30:] = False
    (found,) = diameters(mask, both)
    assert np.abs(found - 7.3).max() < 0.5


def test_vessels_a_pixel_apart_are_measured_apart():
    two = along_rows(7.3, 24.4), along_rows(6.6, 33.0)  # 1.65 px between them
    probability = vessels.coverage(*two, shape=SHAPE)
    upper, lower = diameters(probability > 0.5, probability)
    assert np.abs(upper - 7.3).max() < 0.5 and np.abs(lower - 6.6).max() < 0.5


def test_where_they_disagree_the_mask_counts():
    t = along_rows(8.0, 30.5)
    mask = vessels.draw(t, shape=SHAPE)
    probability = vessels.sigmoid(t, shape=SHAPE, rise=2.0)
    expected = diameters(mask, probability)[0]
    holed = probability.copy()
    holed[30, 40:60] = 0.01  # a hole that was filled
    np.testing.assert_allclose(diameters(mask, holed)[0], expected)
    drawn = np.zeros_like(probability)  # a vessel that the network did not see
    np.testing.assert_allclose(diameters(mask, drawn)[0], 8.0, atol=0.05)
