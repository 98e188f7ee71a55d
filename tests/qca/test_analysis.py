"""Diameters, lengths and stenoses of vessels whose measures are known."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmunet_jax import qca
from cmunet_jax.qca.stenosis import stenosis
from tests.qca import vessels
from tfds_angio.errors import UserError


def only(mask: np.ndarray, spacing: tuple[float, float] | None = None) -> qca.Segment:
    (segment,) = qca.analyse(mask, spacing=spacing).segments
    return segment


def errors(segment: qca.Segment, tube: vessels.Tube) -> np.ndarray:
    found = segment.diameter_px - vessels.truth(tube, segment.points)[0]
    return found[np.isfinite(found)]


def vessel(diameter=10.0, *, length=120.0, angle=0.3, curvature=0.0, side=150, off=(0.0, 0.0)):
    middle = (side / 2 + off[0], side / 2 + off[1])
    t = vessels.tube(
        angle=angle, length=length, diameter=diameter, curvature=curvature, middle=middle
    )
    return t, vessels.draw(t, shape=(side, side))


@settings(max_examples=30, deadline=None)
@given(
    width=st.floats(4, 20),
    degrees=st.floats(0, 360),
    row=st.floats(0, 1),
    column=st.floats(0, 1),
    bend=st.floats(-1, 1),
    taper=st.floats(-0.2, 0.2),
)
def test_diameters_are_right_to_half_a_pixel(width, degrees, row, column, bend, taper):
    ends = vessels.taper(max(width * (1 + taper), 4), max(width * (1 - taper), 4))
    curvature = bend / (2 * width + 12)
    t, mask = vessel(
        ends,
        length=min(130.0, 4 / max(abs(curvature), 1e-3)),
        angle=np.deg2rad(degrees),
        curvature=curvature,
        off=(row, column),
    )
    segment = only(mask)
    error = segment.diameter_px - vessels.truth(t, segment.points)[0]
    measured = np.isfinite(error)
    assert measured.mean() > 0.3
    # Along the grid and its diagonal the mask itself is up to a row too wide or too narrow.
    assert np.abs(error[measured]).max() < 1.1
    way = np.rad2deg(np.arctan2(*np.gradient(segment.points, axis=0).T)) % 45
    free = error[measured & (np.minimum(way, 45 - way) > 6)]
    if len(free) > 20:
        assert np.quantile(np.abs(free), 0.95) < 0.5 and abs(free.mean()) < 0.3


@settings(max_examples=24, deadline=None)
@given(
    width=st.floats(4, 16),
    degrees=st.one_of(st.sampled_from([0, 45, 90, 135]), st.floats(0, 180)),
    row=st.floats(0, 1),
    column=st.floats(0, 1),
    bend=st.sampled_from([0.0, 0.0, -1.0, 0.6]),
    taper=st.sampled_from([0.0, 0.0, 0.2]),
    rise=st.sampled_from([None, 1.0, 2.5, 4.0]),
    coarse=st.sampled_from([1, 1, 2]),
    threshold=st.sampled_from([0.5, 0.3, 0.8]),
)
def test_with_a_probability_diameters_are_right_to_half_a_pixel_in_every_direction(
    width, degrees, row, column, bend, taper, rise, coarse, threshold
):
    ends = vessels.taper(max(width * (1 + taper), 4), max(width * (1 - taper), 4))
    t = vessels.tube(
        angle=np.deg2rad(degrees),
        length=70,
        diameter=ends,
        curvature=bend / (2 * width + 12),
        middle=(48 + row, 48 + column),
    )
    if rise is None:
        probability, threshold = vessels.coverage(t, shape=(96, 96), coarse=coarse), 0.5
    else:
        probability = vessels.sigmoid(
            t, shape=(96, 96), rise=rise, threshold=threshold, coarse=coarse
        )
    mask = probability > threshold
    (segment,) = qca.analyse(
        mask, spacing=None, probability=probability, threshold=threshold
    ).segments
    error = errors(segment, t)
    assert len(error) > 10 and np.abs(error).max() < 0.5


@pytest.mark.parametrize("rows", [4, 5, 9, 16])
def test_along_the_grid_the_diameter_is_the_number_of_rows(rows):
    mask = np.zeros((60, 140), bool)
    mask[20 : 20 + rows, 10:130] = True
    segment = only(mask)
    diameter = segment.diameter_px[np.isfinite(segment.diameter_px)]
    np.testing.assert_allclose(diameter, rows, atol=0.02)
    np.testing.assert_allclose(segment.position_px[-1], 120, atol=0.3)
    np.testing.assert_allclose(segment.points[:, 0], 19.5 + rows / 2, atol=0.02)


def test_bifurcating_vessels_are_measured_apart_and_not_where_they_join():
    main, _ = vessel(12.0)
    side = vessels.tube(angle=1.2, length=120, diameter=7, middle=(75, 75)).half()
    analysis = qca.analyse(vessels.draw(main, side, shape=(150, 150)), spacing=None)
    assert len(analysis.segments) == 3 and len(analysis.bifurcations) == 1
    assert np.linalg.norm(analysis.bifurcations[0] - (75, 75)) < 7
    for segment in analysis.segments:
        true, away = zip(*(vessels.truth(t, segment.points) for t in (main, side)))
        which = int(np.argmin([np.median(a) for a in away]))
        known = np.isfinite(segment.diameter_px)
        assert np.abs((segment.diameter_px - true[which])[known]).max() < 0.5
        near = np.linalg.norm(segment.points - analysis.bifurcations[0], axis=1) < 8
        assert near.any() and not known[near].any()


@pytest.mark.parametrize("angle", [0.0, 0.4, 0.8, 1.2, np.pi / 2])
def test_pixels_that_are_not_square(angle):
    size = (0.5, 0.2)
    t = vessels.tube(angle=angle, length=24.0, diameter=3.0, middle=(15.1, 15.0))
    segment = only(vessels.draw(t, shape=(60, 150), size=size), spacing=size)
    known = np.isfinite(segment.diameter_mm)
    # Half a pixel is up to 0.25 mm.
    assert np.abs(segment.diameter_mm[known] - 3.0).max() < 0.3
    assert abs(segment.diameter_mm[known].mean() - 3.0) < 0.25
    np.testing.assert_allclose(segment.position_mm[-1], 24.0, atol=0.5)
    across = np.array([np.cos(angle), -np.sin(angle)])
    if angle in (0.0, np.pi / 2):
        expected = 3.0 / abs(across @ size)
        np.testing.assert_allclose(segment.diameter_px[known].mean(), expected, rtol=0.1)


def test_square_pixels_only_scale():
    _, mask = vessel(vessels.narrowing(12.0, percent=50, at=0.5, spread=0.08))
    plain, scaled = only(mask), only(mask, spacing=(0.3, 0.3))
    np.testing.assert_allclose(scaled.diameter_mm, 0.3 * plain.diameter_px)
    np.testing.assert_allclose(scaled.reference_mm, 0.3 * plain.reference_px)
    np.testing.assert_allclose(scaled.reference_px, plain.reference_px)
    np.testing.assert_allclose(scaled.position_mm, 0.3 * plain.position_px)
    assert scaled.minimal_at == plain.minimal_at
    np.testing.assert_allclose(
        scaled.percent_diameter_stenosis, plain.percent_diameter_stenosis, atol=1e-6
    )


@pytest.mark.parametrize("percent", [0, 30, 50, 70])
@pytest.mark.parametrize("curvature", [0.0, 0.008])
def test_percent_diameter_stenosis(percent, curvature):
    narrow = vessels.narrowing(vessels.taper(13, 11), percent=percent, at=0.45, spread=0.07)
    t, mask = vessel(narrow, length=170, side=190, curvature=curvature)
    segment = only(mask)
    assert segment.why_no_stenosis is None
    assert abs(segment.percent_diameter_stenosis - percent) < 6
    if percent:
        deepest = t.points[np.argmin(t.diameter)]
        assert np.linalg.norm(segment.points[segment.stenosis_at] - deepest) < 4
        reference = segment.reference_px[segment.stenosis_at]
        assert abs(reference - 12.1) < 0.5
        np.testing.assert_allclose(
            segment.percent_diameter_stenosis,
            100 * (1 - segment.diameter_px[segment.stenosis_at] / reference),
        )


def test_the_least_diameter_of_a_tapering_vessel_is_not_its_stenosis():
    narrow = vessels.narrowing(vessels.taper(16, 6), percent=35, at=0.3, spread=0.05)
    t, mask = vessel(narrow, length=200, side=220)
    segment = only(mask)
    at_stenosis, at_least = (
        vessels.truth(t, segment.points[[at]])[0][0]
        for at in (segment.stenosis_at, segment.minimal_at)
    )
    assert abs(at_stenosis - 8.45) < 0.6 and at_least < 7
    assert abs(segment.percent_diameter_stenosis - 35) < 6


@pytest.mark.parametrize(
    ("diameter", "length", "why"),
    [
        (12.0, 55.0, "shorter than 3 diameters"),
        (3.0, 120.0, "less than 4"),
        (lambda x: np.where(x < 0.35, 5.0, 12.0), 140.0, "reaches the end|healthy|line"),
    ],
)
def test_no_stenosis_is_given_where_it_means_nothing(diameter, length, why):
    _, mask = vessel(diameter, length=length)
    segment = only(mask)
    assert segment.percent_diameter_stenosis is None and segment.stenosis_at is None
    assert any(w in segment.why_no_stenosis for w in why.split("|"))
    assert np.isnan(segment.reference_px).all()


def test_nothing_is_measured_between_ends_and_a_crossing():
    two = (vessel(10.0, length=40, angle=a)[0] for a in (0.3, 1.7))
    analysis = qca.analyse(vessels.draw(*two, shape=(150, 150)), spacing=None)
    assert len(analysis.segments) == 4 and len(analysis.bifurcations) == 1
    for segment in analysis.segments:
        assert segment.minimal_at is None and "clear of ends" in segment.why_no_stenosis


def test_a_ring_has_diameters_and_no_stenosis():
    away = np.hypot(*(np.indices((120, 120)) - 60))
    segment = only((away > 30) & (away < 40))
    assert np.isfinite(segment.diameter_px).all() and "loop" in segment.why_no_stenosis
    np.testing.assert_allclose(segment.diameter_px, 10, atol=0.9)
    np.testing.assert_allclose(segment.position_px[-1], 2 * np.pi * 35, rtol=0.01)


def test_what_the_images_border_cuts_is_not_measured():
    mask = np.zeros((60, 140), bool)
    mask[:6, 10:130] = True
    segment = only(mask)
    assert segment.minimal_at is None and np.isnan(segment.diameter_px).all()
    # One that leaves the image is measured up to its end.
    mask = np.zeros((60, 140), bool)
    mask[20:28, 10:] = True
    assert np.isfinite(only(mask).diameter_px).mean() > 0.8


def test_a_neighbour_does_not_widen_a_vessel():
    mask = np.zeros((60, 140), bool)
    mask[20:28, 10:130] = mask[29:37, 10:130] = True
    for segment in qca.analyse(mask, spacing=None).segments:
        known = np.isfinite(segment.diameter_px)
        np.testing.assert_allclose(segment.diameter_px[known], 8, atol=0.6)


def test_where_the_mask_lies_and_what_it_is_made_of_does_not_matter():
    _, mask = vessel(9.0)
    plain = only(mask)
    far = np.zeros((400, 500), bool)
    far[200:350, 300:450] = mask
    np.testing.assert_allclose(only(far).points, plain.points + (200, 300), atol=1e-5)
    for other in (mask.astype(np.uint8), mask.astype(np.float32), jnp.asarray(mask)):
        np.testing.assert_array_equal(only(other).diameter_px, plain.diameter_px)
    turned = only(np.rot90(mask).copy())
    np.testing.assert_allclose(
        np.nanmean(turned.diameter_px), np.nanmean(plain.diameter_px), atol=0.05
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (16, 16)])
@pytest.mark.parametrize("value", [False, True])
def test_masks_without_a_vessel(shape, value):
    mask = np.full(shape, value)
    before = mask.copy()
    analysis = qca.analyse(mask, spacing=(0.2, 0.3))
    assert all(s.percent_diameter_stenosis is None for s in analysis.segments)
    assert all(s.minimal_at is None for s in analysis.segments)
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize(
    ("mask", "spacing", "message"),
    [
        (np.zeros((2, 3, 4), bool), None, r"\(2, 3, 4\)"),
        (np.zeros((0, 3), bool), None, r"\(0, 3\)"),
        (np.full((9, 9), np.nan), None, "threshold"),
        (np.full((9, 9), 255, np.uint8), None, "threshold"),
        (np.zeros((9, 9), complex), None, "threshold"),
        (np.zeros((9, 9), bool), (0.0, 1.0), "above 0"),
        (np.zeros((9, 9), bool), (np.nan, 1.0), "above 0"),
        (np.zeros((9, 9), bool), (0.3,), "above 0"),
    ],
)
def test_bad_input_is_named(mask, spacing, message):
    with pytest.raises(UserError, match=message):
        qca.analyse(mask, spacing=spacing)


@pytest.mark.parametrize(
    ("probability", "threshold", "message"),
    [
        (np.zeros((9, 8)), 0.5, r"\(9, 8\).*\(9, 9\)"),
        (np.full((9, 9), np.nan), 0.5, "other values than floats from 0 to 1"),
        (np.full((9, 9), 1.5), 0.5, "from 0 to 1"),
        (np.full((9, 9), -0.1), 0.5, "from 0 to 1"),
        (np.zeros((9, 9), np.uint16), 0.5, "from 0 to 1"),
        (np.zeros((9, 9)), 0.0, "threshold.*0.0.*above 0 and below 1"),
        (np.zeros((9, 9)), 1.0, "above 0 and below 1"),
        (np.zeros((9, 9)), np.nan, "above 0 and below 1"),
        (np.zeros((9, 9)), "0.5", "threshold.*'0.5'.*above 0 and below 1"),
        (np.zeros((9, 9)), None, "None.*above 0 and below 1"),
        (np.zeros((9, 9)), [0.5, 0.5], "above 0 and below 1"),
    ],
)
def test_a_bad_probability_is_named(probability, threshold, message):
    with pytest.raises(UserError, match=message) as error:
        qca.analyse(
            np.zeros((9, 9), bool), spacing=None, probability=probability, threshold=threshold
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [{"blur": 0.0}, {"mean": -1.0}, {"bandwidth": np.nan}])
def test_bad_options_are_named(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        qca.Options(**bad)


@pytest.mark.parametrize(
    "diameters", [[5.0], [np.nan, 5.0, np.nan], [5.0, 4.0], [5.0, 1.0, 0.5], [9.0, 0.1, 0.1, 0.1]]
)
def test_no_line_is_fitted_through_fewer_than_two_points(diameters):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = stenosis(np.arange(len(diameters), dtype=float), np.array(diameters))
    assert (found.percent is None) == (found.why_not is not None)
    if np.isfinite(diameters).sum() < 2:
        assert found.percent is None and "single point" in found.why_not


def test_small_specks_are_measured_without_a_warning():
    mask = np.random.default_rng(3).random((100, 100)) < 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(qca.analyse(mask, spacing=None).segments) > 100
