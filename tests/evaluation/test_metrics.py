"""Every metric against a hand-worked table, a second implementation and its own laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import surface_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import distance
from skimage import metrics as skimage_metrics
from skimage.measure import find_contours
from skimage.morphology import skeletonize

from cmunet_jax.evaluation.metrics import NSD_TOLERANCE, TABLE, Pair
from cmunet_jax.evaluation.shapes import Shape, bounding_crop, soft_skeleton
from tests.evaluation.masks import measure, pairs, shifted, vessel

MASK_METRICS = [name for name in TABLE if name != "ce"]
OVERLAPS = [name for name in MASK_METRICS if TABLE[name].kind == "overlap"]
DISTANCES = [name for name in MASK_METRICS if TABLE[name].unit == "px"]
SYMMETRIC = [name for name in MASK_METRICS if name not in ("precision", "recall")]
VESSELS = [(vessel(seed), shifted(vessel(seed) | vessel(seed + 50), 1, -2)) for seed in range(6)]


def grid(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


# ------------------------------------------------------------------------------- hand-worked

BAR = grid(
    "..........",
    "..######..",
    "..######..",
    "..######..",
    "..........",
)
SHORT = grid(
    "..........",
    "..........",
    "..####....",
    "..........",
    "..........",
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dice", 8 / 22),
        ("iou", 4 / 18),
        ("precision", 1.0),
        ("recall", 4 / 18),
        # The skeleton of the bar is (2, 2..5) and (1, 6): 1 end pixel and the corner pixel are
        # half a pixel from a wall, the other three 1.5. The line is half a pixel from its walls.
        ("diameter_error_px", 2 * (0.5 + 3 * 1.5 + 0.5) / 5 - 1),
        # Four of the bar's five skeleton pixels are on the line, all of the line's in the bar.
        ("cldice", 2 * 0.8 * 1 / (0.8 + 1)),
    ],
)
def test_hand_worked_values_of_a_bar_and_a_line(name, expected):
    assert TABLE[name](BAR, SHORT) == pytest.approx(expected)


def test_hand_worked_distances_of_two_single_pixels():
    truth, prediction = np.zeros((9, 12), bool), np.zeros((9, 12), bool)
    truth[4, 2] = prediction[4, 8] = True
    # Four edge midpoints each. From the left pixel's right edge (column 2.5) the nearest of the
    # other is its left edge (7.5): 5. From top and bottom (column 2, row ±½): √(5.5² + ½²).
    # From its left edge (1.5): 6.
    mean = (5 + 2 * math.hypot(5.5, 0.5) + 6) / 4
    assert TABLE["hausdorff_modified"](truth, prediction) == pytest.approx(mean)
    # Four corners each, all √½ long: two at distance 5, two at 6.
    assert TABLE["assd"](truth, prediction) == pytest.approx(5.5)
    assert TABLE["hd95"](truth, prediction) == pytest.approx(6.0)
    assert TABLE["nsd_2px"](truth, prediction) == 0.0


def test_a_shift_by_two_pixels_is_within_the_tolerance_and_by_three_is_not():
    wall = np.zeros((40, 40), bool)
    wall[10:30, 10:30] = True
    assert TABLE["nsd_2px"](wall, shifted(wall, 0, 2)) == 1.0
    assert TABLE["nsd_2px"](wall, shifted(wall, 0, 3)) < 1.0


def test_cross_entropy_is_that_of_the_softmax():
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(0, 3, (7, 5, 2)), rng.random((7, 5)) > 0.5
    exponentials = np.exp(logits)
    probability = exponentials[..., 1] / exponentials.sum(-1)
    expected = -np.log(np.where(truth, probability, 1 - probability)).mean()
    margin = logits[..., 1] - logits[..., 0]
    assert TABLE["ce"](truth, margin > 0, margin=margin) == pytest.approx(expected)
    assert TABLE["ce"](truth, truth, margin=np.where(truth, 1e4, -1e4)) == 0.0
    assert TABLE["ce"](truth, ~truth, margin=np.where(truth, -1e4, 1e4)) == pytest.approx(1e4)


def test_cross_entropy_counts_only_what_the_network_saw():
    truth, margin = np.array([[True, False]]), np.array([[0.0, np.nan]])
    pair = Pair(truth, margin > 0, margin=margin, covered=[[True, False]])
    assert TABLE["ce"].value(pair) == pytest.approx(math.log(2))


def test_cross_entropy_without_logits_is_refused():
    with pytest.raises(ValueError, match="margin"):
        measure([[1]], [[1]], ["ce"])


# ------------------------------------------------------------------------ empty masks, bad input


@pytest.mark.parametrize("name", MASK_METRICS)
def test_the_rule_for_empty_masks(name):
    empty, line = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    line[15, 5:35] = True
    both, without_truth, without_prediction = (
        TABLE[name](*masks) for masks in ((empty, empty), (empty, line), (line, empty))
    )
    worst = {"overlap": 0.0, "distance": 50.0, "free": 1.0}[TABLE[name].kind]  # a line is 1 px wide
    assert both == (1.0 if TABLE[name].higher_is_better else 0.0)
    assert without_truth == without_prediction == pytest.approx(worst)


@pytest.mark.parametrize("name", MASK_METRICS)
def test_an_empty_prediction_is_never_better_than_a_bad_one(name):
    truth, far = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    truth[5, 5:20], far[55, 40:55] = True, True
    sign = 1 if TABLE[name].higher_is_better else -1
    assert sign * TABLE[name](truth, 0 * far) <= sign * TABLE[name](truth, far)


def test_pair_names_which_mask_is_empty():
    none, some = np.zeros((3, 3)), np.ones((3, 3))
    assert [Pair(*m).empty for m in ((none, none), (none, some), (some, none), (some, some))] == [
        "both",
        "truth",
        "prediction",
        "",
    ]


def test_pooled_terms_of_an_empty_image_still_count_its_false_positives():
    line, empty = vessel(0), np.zeros((72, 96), bool)
    for name in OVERLAPS:
        metric = TABLE[name]
        if not name.endswith("recall"):
            terms = [metric.terms(Pair(line, line)), metric.terms(Pair(empty, line))]
            assert metric.pooled([sum(t) for t in zip(*terms)], "") < 1, name


@pytest.mark.parametrize("shapes", [((3, 3), (3, 4)), ((2, 3, 3), (2, 3, 3)), ((9,), (9,))])
def test_masks_that_do_not_match_are_refused(shapes):
    with pytest.raises(ValueError, match=r"\(|H, W"):
        Pair(*(np.ones(shape) for shape in shapes))


def test_read_only_masks_are_accepted():
    mask = np.array(vessel(1))
    mask.flags.writeable = False
    assert measure(mask, mask, ["cldice"]) == {"cldice": 1.0}


# ------------------------------------------------------------------------------------ oracles


@pytest.mark.parametrize(("truth", "prediction"), VESSELS)
def test_surface_metrics_agree_with_surface_distance(truth, prediction):
    reference = surface_distance.compute_surface_distances(truth, prediction, (1.0, 1.0))
    ours = measure(truth, prediction, ["hd95", "assd", "nsd_2px"])
    assert ours["hd95"] == pytest.approx(
        surface_distance.compute_robust_hausdorff(reference, 95), abs=1e-9
    )
    assert ours["nsd_2px"] == pytest.approx(
        surface_distance.compute_surface_dice_at_tolerance(reference, NSD_TOLERANCE), abs=1e-9
    )
    to_prediction, to_truth = surface_distance.compute_average_surface_distance(reference)
    lengths = [reference[f"surfel_areas_{side}"].sum() for side in ("gt", "pred")]
    assert ours["assd"] == pytest.approx(np.average([to_prediction, to_truth], weights=lengths))


@settings(max_examples=60, deadline=None)
@given(pairs(filled=True))
def test_surface_metrics_agree_with_surface_distance_on_any_mask(masks):
    reference = surface_distance.compute_surface_distances(*masks, (1.0, 1.0))
    ours = measure(*masks, ["hd95", "nsd_2px"])
    assert ours["nsd_2px"] == pytest.approx(
        surface_distance.compute_surface_dice_at_tolerance(reference, NSD_TOLERANCE), abs=1e-9
    )
    assert ours["hd95"] == pytest.approx(
        surface_distance.compute_robust_hausdorff(reference, 95), abs=1e-9
    )


@settings(max_examples=60, deadline=None)
@given(pairs(filled=True))
def test_modified_hausdorff_agrees_with_scikit_image_and_brute_force(masks):
    points = [np.unique(np.concatenate(find_contours(np.pad(m, 1), 0.5)), axis=0) for m in masks]
    table = distance.cdist(*points)
    expected = max(table.min(1).mean(), table.min(0).mean())
    assert TABLE["hausdorff_modified"](*masks) == pytest.approx(expected)


@pytest.mark.parametrize(("truth", "prediction"), VESSELS)
def test_modified_hausdorff_agrees_with_scikit_image(truth, prediction):
    images = []
    for mask in (truth, prediction):  # contour vertices lie on the pixels of a grid twice as fine
        image = np.zeros((2 * mask.shape[0] + 3, 2 * mask.shape[1] + 3), bool)
        image[tuple((2 * (Shape(mask).vertices + 1)).astype(int).T)] = True
        images.append(image)
    expected = skimage_metrics.hausdorff_distance(images[0], images[1], method="modified") / 2
    assert TABLE["hausdorff_modified"](truth, prediction) == pytest.approx(expected)


@pytest.mark.parametrize(("truth", "prediction"), VESSELS)
def test_centreline_and_diameter_agree_with_scikit_image_and_an_exact_distance_transform(
    truth, prediction
):
    skeletons = [skeletonize(mask) for mask in (truth, prediction)]
    precision = (skeletons[1] & truth).sum() / skeletons[1].sum()
    recall = (skeletons[0] & prediction).sum() / skeletons[0].sum()
    expected = 2 * precision * recall / (precision + recall)
    assert TABLE["cldice"](truth, prediction) == pytest.approx(expected)
    diameters = []
    for mask, skeleton in zip((truth, prediction), skeletons):
        fine = np.ones((2 * mask.shape[0] + 3, 2 * mask.shape[1] + 3), bool)
        fine[tuple((2 * (Shape(mask).vertices + 1)).astype(int).T)] = False
        to_wall = ndimage.distance_transform_edt(fine)[2:-1:2, 2:-1:2] / 2
        diameters.append(2 * to_wall[skeleton].mean())
    assert TABLE["diameter_error_px"](truth, prediction) == pytest.approx(
        abs(diameters[0] - diameters[1])
    )


def grey_erosion(image: np.ndarray) -> np.ndarray:
    sides = [
        ndimage.minimum_filter(image, size, mode="constant", cval=np.inf)
        for size in ((3, 1), (1, 3))
    ]
    return np.minimum(*sides)


def grey_residue(image: np.ndarray) -> np.ndarray:
    opened = ndimage.maximum_filter(grey_erosion(image), 3, mode="constant", cval=-np.inf)
    return np.maximum(image - opened, 0)


@settings(max_examples=80, deadline=None)
@given(pairs())
def test_soft_skeleton_agrees_with_grey_morphology(masks):
    for mask in masks:
        image = mask.astype(float)
        skeleton = grey_residue(image)
        for _ in range(10):
            image = grey_erosion(image)
            delta = grey_residue(image)
            skeleton = skeleton + np.maximum(delta - skeleton * delta, 0)
        np.testing.assert_array_equal(soft_skeleton(mask), skeleton)


# --------------------------------------------------------------------------------------- laws


@settings(max_examples=150, deadline=None)
@given(pairs())
def test_every_value_is_finite_and_in_range(masks):
    values = measure(*masks, MASK_METRICS)
    assert all(0 <= values[name] <= 1 for name in OVERLAPS), values
    assert all(0 <= values[name] <= Pair(*masks).diagonal for name in DISTANCES), values


@settings(max_examples=100, deadline=None)
@given(pairs())
def test_swapping_the_masks_swaps_precision_and_recall_and_nothing_else(masks):
    forth, back = (measure(*order, MASK_METRICS) for order in (masks, masks[::-1]))
    assert {name: forth[name] for name in SYMMETRIC} == pytest.approx(
        {name: back[name] for name in SYMMETRIC}
    )
    assert (forth["precision"], forth["recall"]) == (back["recall"], back["precision"])


@settings(max_examples=100, deadline=None)
@given(pairs())
def test_a_perfect_prediction_is_perfect(masks):
    values = measure(masks[0], masks[0], MASK_METRICS)
    assert values == {name: float(TABLE[name].higher_is_better) for name in MASK_METRICS}


@settings(max_examples=80, deadline=None)
@given(pairs(), st.integers(0, 9), st.integers(0, 9))
def test_moving_both_masks_changes_nothing(masks, rows, columns):
    canvas = [np.pad(mask, 12) for mask in masks]
    moved = [shifted(mask, rows, columns) for mask in canvas]
    assert measure(*moved, MASK_METRICS) == pytest.approx(measure(*canvas, MASK_METRICS))


@settings(max_examples=80, deadline=None)
@given(pairs())
def test_dice_and_iou_are_one_statement(masks):
    values = measure(*masks, ["dice", "iou"])
    assert values["dice"] == pytest.approx(2 * values["iou"] / (1 + values["iou"]))


@pytest.mark.parametrize("seed", range(4))
def test_eroding_the_prediction_lowers_recall_and_never_precision(seed):
    truth = vessel(seed, width=9)
    prediction, recalls = truth, []
    while prediction.any():
        values = measure(truth, prediction, ["precision", "recall", "dice"])
        assert values["precision"] == 1.0
        recalls.append((values["recall"], values["dice"]))
        prediction = ndimage.binary_erosion(prediction)
    assert len(recalls) > 2
    assert recalls == sorted(recalls, reverse=True)
    assert len(set(recalls)) == len(recalls)


@pytest.mark.parametrize("name", ["hausdorff_modified", "hd95", "assd"])
def test_distances_grow_with_the_shift(name):
    wall = np.zeros((60, 90), bool)
    wall[20:40, 10:30] = True
    values = [TABLE[name](wall, shifted(wall, 0, by)) for by in range(0, 40, 4)]
    assert values == sorted(values)
    assert values[0] == 0 < values[1]


@settings(max_examples=100, deadline=None)
@given(pairs(filled=True))
def test_cropping_to_the_content_changes_no_geometry(masks):
    whole = [np.pad(mask, ((4, 0), (0, 5))) for mask in masks]  # content touches two borders
    rows, columns = bounding_crop(whole)
    for mask in whole:
        full, part = Shape(mask), Shape(mask[rows, columns])
        origin = np.array([rows.start, columns.start])
        for name in ("skeleton", "soft_skeleton"):
            expected = getattr(full, name)
            np.testing.assert_array_equal(expected[rows, columns], getattr(part, name))
            assert expected.sum() == getattr(part, name).sum()
        np.testing.assert_array_equal(full.vertices, part.vertices + origin)
        np.testing.assert_array_equal(full.surface[0], part.surface[0] + origin)


@settings(max_examples=200, deadline=None)
@given(pairs(filled=True))
def test_the_skeleton_of_something_is_not_nothing(masks):
    # The centreline Dice divides by its size.
    assert all(Shape(mask).skeleton.any() for mask in masks)
