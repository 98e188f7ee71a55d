"""True pixels go to the calibre of their vessel; what is found of each is counted apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from skimage.measure import find_contours
from skimage.morphology import skeletonize

from cmunet_jax.evaluation import calibre
from cmunet_jax.evaluation.metrics import Pair
from cmunet_jax.evaluation.shapes import Shape
from tests.evaluation.masks import vessel

SIDE = 512
CORNERS = 120  # pixels


def bars(*widths: int, side: int = SIDE) -> np.ndarray:
    """Bool [side, side]: horizontal vessels of given widths (px), far from each other."""
    mask = np.zeros((side, side), bool)
    for number, width in enumerate(widths):
        top = (number + 1) * side // (len(widths) + 1) - width // 2
        mask[top : top + width, side // 10 : -side // 10] = True
    return mask


@pytest.mark.parametrize("width", [1, 3, 5, 7, 9, 13, 21])
def test_a_bar_of_odd_width_has_that_diameter_everywhere_but_at_its_ends(width):
    mask = bars(width)
    diameters = np.zeros(mask.shape)
    diameters[mask] = calibre.pixel_diameters(Shape(mask))
    middle = diameters[:, SIDE // 4 : -SIDE // 4]
    assert set(middle[middle > 0]) == {float(width)}


@pytest.mark.parametrize("width", [2, 4, 8, 12])
def test_an_even_width_lacks_a_pixel(width):
    """The skeleton of an even width runs beside its middle."""
    mask = bars(width)
    middle = Shape(mask[:, SIDE // 4 : -SIDE // 4])
    assert np.median(calibre.pixel_diameters(middle)) == width - 1


@pytest.mark.parametrize("angle", [0, 17, 30, 45, 80])
@pytest.mark.parametrize("width", [5, 9, 15])
def test_a_slanted_vessel_of_known_width(angle, width):
    """Drawn by its geometry, not by a drawing library: within a pixel of the true width."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    a = np.deg2rad(angle)
    across, along = y * np.cos(a) - x * np.sin(a), y * np.sin(a) + x * np.cos(a)
    mask = (np.abs(across) <= width / 2) & (np.abs(along) < 150)
    diameters = np.zeros(mask.shape)
    diameters[mask] = calibre.pixel_diameters(Shape(mask))
    assert np.median(diameters[mask & (np.abs(along) < 100)]) == pytest.approx(width, abs=1.5)


def test_each_pixel_takes_the_diameter_of_its_nearest_skeleton_point():
    """Second implementation, by brute force on scikit-image's contour and skeleton."""
    mask = vessel(3, shape=(80, 90), width=7) | vessel(8, shape=(80, 90), width=3)
    contour = np.concatenate(find_contours(np.pad(mask, 1).astype(float), 0.5)) - 1
    centreline = np.argwhere(skeletonize(mask))
    diameter = 2 * cdist(centreline, contour).min(axis=1)
    distance = cdist(np.argwhere(mask), centreline)
    ours = calibre.pixel_diameters(Shape(mask))
    for row, found in zip(distance, ours, strict=True):
        nearest = diameter[row <= row.min() + 1e-9]  # any of those equally near
        assert np.isclose(nearest, found).any()


def test_strata_by_hand():
    truth = bars(3, 9, 21)
    prediction = truth.copy()
    rows = np.flatnonzero(truth.any(axis=1))
    thin, mid, thick = rows[:3], rows[3:12], rows[12:]
    assert (len(mid), len(thick)) == (9, 21)
    prediction[thin] = False  # nothing found of the thin one,
    left = truth[mid].argmax(axis=1)[0]
    prediction[mid[:, None], left : left + 100] = False  # all but 100 columns of the middle one
    prediction[:20] = True  # false positives belong to no calibre
    columns = calibre.columns(Pair(truth, prediction))
    length = int(truth[mid[0]].sum())
    assert columns["truth_thin"] + columns["truth_mid"] + columns["truth_thick"] == truth.sum()
    # At the ends of a bar the skeleton forks towards the corners, which are thin.
    assert columns["truth_thin"] == pytest.approx(3 * length, abs=CORNERS)
    assert columns["truth_mid"] == pytest.approx(9 * length, abs=CORNERS)
    assert columns["sensitivity_thick"] == pytest.approx(1.0, abs=0.01)
    assert columns["sensitivity_mid"] == pytest.approx(1 - 100 / length, abs=0.02)
    assert columns["sensitivity_thin"] == pytest.approx(0, abs=CORNERS / (3 * length))


def test_a_calibre_that_an_image_does_not_have_is_left_empty():
    columns = calibre.columns(Pair(bars(3), bars(3)))
    assert columns["sensitivity_thin"] == 1.0
    assert columns["sensitivity_thick"] is None and columns["truth_thick"] == 0
    nothing = calibre.columns(Pair(np.zeros((9, 9)), np.ones((9, 9))))
    assert set(nothing.values()) == {None, 0}
    assert calibre.columns(Pair(bars(3), np.zeros((SIDE, SIDE))))["sensitivity_thin"] == 0.0


@pytest.mark.parametrize("factor", [2, 3])
def test_thresholds_follow_the_size_of_the_image(factor):
    """An image enlarged with its vessels has the same strata."""
    small = bars(3, 9, 21)
    large = np.kron(small, np.ones((factor, factor), bool))
    a, b = (calibre.columns(Pair(mask, mask)) for mask in (small, large))
    for name in calibre.CALIBRES:
        assert b[f"truth_{name}"] / factor**2 == pytest.approx(a[f"truth_{name}"], abs=CORNERS)
    assert calibre.thresholds((300, 512)) == calibre.thresholds((512, 300)) == (8.0, 13.0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), flip=st.booleans(), share=st.floats(0, 1))
def test_strata_add_up_to_the_recall(seed, flip, share):
    truth = vessel(seed, shape=(96, 96), width=5)
    found = truth & (np.random.default_rng(seed).random(truth.shape) < share)
    if flip:
        truth, found = truth[::-1], found[::-1]
    columns = calibre.columns(Pair(truth, found))
    hits = sum((columns[f"sensitivity_{c}"] or 0) * columns[f"truth_{c}"] for c in calibre.CALIBRES)
    assert hits == pytest.approx(found.sum())
    assert sum(columns[f"truth_{c}"] for c in calibre.CALIBRES) == truth.sum()


def test_the_summary_leaves_out_images_without_the_calibre():
    rows = [calibre.columns(Pair(bars(3), bars(3))), calibre.columns(Pair(bars(21), bars(3)))]
    found = calibre.summary(rows)
    assert (found["thin"], found["thick"]) == ("< 8 px", "≥ 13 px") and "13 px" in found["rule"]
    thin, thick = found["sensitivity"]["thin"], found["sensitivity"]["thick"]
    # Even a wide bar has thin corners, where its skeleton forks: they weigh in the pooled value.
    assert thin["images"] in (1, 2) and thick["images"] == 1
    assert thick["mean"] == pytest.approx(rows[1]["sensitivity_thick"])
    assert thick["pooled"] == pytest.approx(rows[1]["sensitivity_thick"])
    assert found["sensitivity"]["mid"]["pooled"] is None or rows[1]["truth_mid"]
