"""Masks from probabilities, and the best-filled frame of a run: hand-worked cases."""

import math

import numpy as np
import pytest

from cmunet_jax.evaluation.overlays import ADDED
from cmunet_jax.imaging.case import Spacing
from cmunet_jax.predict import best, masks, pictures
from cmunet_jax.predict.masks import Rules
from tfds_angio.errors import UserError


def lengths(drawing, pixel=(1.0, 1.0)):
    mask = np.array([[c == "#" for c in row] for row in drawing])
    return masks.centreline_lengths(mask, masks._label(mask), pixel)


@pytest.mark.parametrize(
    ("drawing", "pixel", "expected"),
    [
        (["....", ".##.", "...."], (1, 1), 1),
        (["#####"], (1, 1), 4),
        (["#..", ".#.", "..#"], (1, 1), 2 * math.sqrt(2)),
        (["#..", ".#.", "..#"], (3, 4), 10),
        (["#", "#", "#"], (0.5, 9), 1),
    ],
)
def test_lengths_of_centrelines(drawing, pixel, expected):
    assert lengths(drawing, pixel)[1] == pytest.approx(expected)


def test_each_component_has_its_own_length():
    assert lengths(["###..", ".....", "#####"])[1:] == pytest.approx([2, 4])


def test_the_threshold_is_not_artery_itself():
    made = masks.make(np.array([[0.5, 0.6, 0.4]], np.float32), Rules(0.5), None)
    np.testing.assert_array_equal(made, [[False, True, False]])


def bars(*widths):
    """Horizontal bars of these lengths, three pixels high, as probabilities."""
    values = np.zeros((6 * len(widths), 40), np.float32)
    for number, width in enumerate(widths):
        values[6 * number + 1 : 6 * number + 4, 2 : 2 + width] = 0.9
    return values


def kept(values, rules, spacing=None):
    mask = masks.make(values, rules, spacing)
    return [bool(mask[6 * n : 6 * n + 6].any()) for n in range(len(values) // 6)]


def test_the_largest_components_stay():
    assert kept(bars(10, 30, 20), Rules(keep_components=2)) == [False, True, True]
    assert kept(bars(10, 10, 10), Rules(keep_components=1)) == [True, False, False]
    assert kept(bars(10, 30), Rules(keep_components=9)) == [True, True]
    assert not masks.make(np.zeros((5, 5), np.float32), Rules(keep_components=1), None).any()


def test_short_components_go_by_pixels_or_millimetres():
    values, spacing = bars(10, 30), Spacing(0.2, 0.2, "pixel spacing")
    assert kept(values, Rules(min_length=15)) == [False, True]
    assert kept(values, Rules(min_length=3, unit="mm"), spacing) == [False, True]
    assert kept(values, Rules(min_length=3, unit="mm")) == [True, True], "unknown: nothing goes"
    assert kept(values, Rules(min_length=99)) == [False, False]


def test_lengths_are_written_with_a_unit():
    assert masks.parse_length("20 px") == (20, "px") and masks.parse_length("2.5mm") == (2.5, "mm")
    for text in ("20", "-3 px", "5 cm", ""):
        with pytest.raises(UserError, match="min_length"):
            masks.parse_length(text)


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ([5], 0),
        ([1, 2], 1),
        ([2, 1], 0),
        ([0, 1, 2, 3, 2, 1], 3),
        ([0, 9, 0, 5, 6, 5, 0], 4),  # smoothed 4.5 and 5.5: a single spike does not win
        ([0, 0, 0, 7], 3),
        ([3, 3, 3], 0),
        ([0, 0], 0),
    ],
)
def test_the_best_filled_frame_after_smoothing(evidence, expected):
    assert best.best_filled(enumerate(evidence), lambda item: item[1])[0] == expected


def test_choosing_the_best_frame_streams():
    alive = []

    def items():
        for number in range(100):
            alive.append(number)
            yield number

    measured = []
    best.best_filled(items(), lambda n: measured.append(n) or n)
    assert measured == alive, "each frame is measured when it comes"
    with pytest.raises(ValueError, match="without frames"):
        best.best_filled([], float)


def test_evidence_is_probability_inside_the_mask():
    probability = np.array([[0.9, 0.6, 0.4]], np.float32)
    assert best.evidence(probability, probability > 0.5) == pytest.approx(1.5)


def test_the_overlay_draws_around_the_mask_and_leaves_the_rest():
    frame = np.full((30, 30), 100, np.uint8)
    mask = np.zeros((30, 30), bool)
    mask[10:20, 0:20] = True
    rgb = pictures.overlay(frame, mask)
    assert (rgb[mask] == 100).all() and (rgb[0] == 100).all()
    assert tuple(rgb[9, 10]) == tuple(np.rint(255 * np.array(ADDED)).astype(int))
    assert (rgb[15, 0] == 100).all(), "no line where the vessel leaves the frame"


def test_frames_of_more_than_8_bits_are_stretched():
    ramp = np.arange(60_000, dtype=np.uint16).reshape(200, 300)
    made = pictures.to_8_bit(ramp)
    assert made.dtype == np.uint8 and made.min() == 0 and made.max() == 255
    assert (np.diff(made.ravel().astype(int)) >= 0).all()
    assert (pictures.to_8_bit(np.full((4, 4), 7, np.float32)) == 0).all()
    eight = np.full((4, 4), 7, np.uint8)
    np.testing.assert_array_equal(pictures.to_8_bit(eight), eight)
