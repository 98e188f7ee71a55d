"""Protocol `paper`: the released numbers, and a slow second implementation of their definitions."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import distance
from skimage.measure import find_contours
from skimage.morphology import skeletonize

from cmunet_jax.evaluation.metrics import TABLE, Pair
from cmunet_jax.evaluation.paper import PAPER_TABLE, paper_metrics
from tests.evaluation.masks import vessel
from tests.golden import metrics as golden

FIXTURES = pathlib.Path(__file__).parents[1] / "golden" / "fixtures"
CASES = ("vessel", "empty_pred", "perfect")


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"public_metrics_{name}.npz") as archive:
        return dict(archive)


@pytest.mark.parametrize("name", CASES)
def test_the_released_numbers(name):
    checks = golden.check(load(name), f"public_metrics_{name}")
    assert len(checks) == 12
    assert [check for check in checks if not check.passed] == []


def test_the_golden_check_sees_a_wrong_value():
    case = load("vessel")
    case["per_image/hausdorff_modified"] = case["per_image/hausdorff_modified"] + 3e-6
    case["batch_pooled/dice"] = np.array(np.inf)
    failed = [check.name for check in golden.check(case, "x") if not check.passed]
    assert sorted(failed) == ["batch_pooled/dice", "per_image/hausdorff_modified"]


def brute_hausdorff(a: np.ndarray, b: np.ndarray) -> float:
    if not a.any() or not b.any():
        return 0.0 if a.any() == b.any() else np.inf
    table = distance.cdist(*(np.concatenate(find_contours(m.astype(float), 0.5)) for m in (a, b)))
    return max(table.min(0).mean(), table.min(1).mean())


def brute_diameter(mask: np.ndarray) -> float:
    inner = mask.copy()
    inner[[0, -1]] = inner[:, [0, -1]] = False
    if not inner.any():
        return 0.0
    walls = np.concatenate(find_contours(inner.astype(float), 0.5))
    return 2 * distance.cdist(np.argwhere(skeletonize(inner)), walls).min(1).mean()


@pytest.mark.parametrize("seed", range(8))
def test_distances_agree_with_brute_force_where_vessels_leave_the_image(seed):
    truth, prediction = vessel(seed, shape=(50, 41)), vessel(seed + 100, shape=(50, 41))
    truth[:, 0] |= seed % 2 == 0
    prediction[-1] |= seed % 3 == 0
    logits = np.stack([-prediction.astype(float), prediction.astype(float)], -1)
    ours = paper_metrics(logits[None], truth[None])["per_image"]
    assert ours["hausdorff_modified"][0] == pytest.approx(brute_hausdorff(truth, prediction))
    expected = abs(brute_diameter(truth) - brute_diameter(prediction))
    assert ours["diameter_error_px"][0] == pytest.approx(expected)


def test_empty_masks_as_released():
    empty, some = np.zeros((20, 30), bool), vessel(3, shape=(20, 30))
    logits = np.stack([np.zeros((2, 20, 30)), np.stack([empty, some]) - 0.5], -1)
    ours = paper_metrics(logits, np.stack([empty, empty]))["per_image"]
    for name in ("dice", "iou", "cldice"):
        assert ours[name][0] == 1.0
        assert 0 < ours[name][1] < 0.1
    assert list(ours["hausdorff_modified"]) == [0.0, np.inf]


def test_the_pooled_dice_is_not_the_mean_of_the_images():
    truth = np.stack([vessel(1), vessel(2) & vessel(1)])
    prediction = np.stack([vessel(1), vessel(2)])
    logits = np.stack([~prediction, prediction], -1).astype(float)
    ours = paper_metrics(logits, truth)
    pooled = 2 * (truth & prediction).sum() / (truth.sum() + prediction.sum())
    assert ours["batch_pooled"]["dice"] == pytest.approx(pooled)
    assert ours["per_image"]["dice"].mean() != pytest.approx(pooled, abs=1e-3)
    for name in ("hausdorff_modified", "diameter_error_px"):
        assert ours["batch_pooled"][name] == pytest.approx(ours["per_image"][name].mean())


def test_both_protocols_agree_away_from_the_edges():
    truth = np.pad(vessel(5), 4)
    prediction = ndimage.binary_dilation(truth)
    pair = Pair(truth, prediction)
    for name in ("dice", "iou", "diameter_error_px"):
        assert PAPER_TABLE[name].value(pair) == pytest.approx(TABLE[name].value(pair), abs=1e-6)
    # The release counts the first vertex of each closed contour twice.
    assert PAPER_TABLE["hausdorff_modified"].value(pair) == pytest.approx(
        TABLE["hausdorff_modified"].value(pair), rel=0.02
    )
