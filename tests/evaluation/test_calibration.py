"""Reliability, ECE and Brier score against scikit-learn, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from cmunet_jax.evaluation.calibration import BINS, pooled, reliability


def invented(seed: int, *, shape=(40, 50), sharp=3.0) -> tuple[np.ndarray, np.ndarray]:
    """(truth bool, margin float32) of a network that is wrong about how sure it may be."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(-1, sharp, shape).astype(np.float32)
    return rng.random(shape) < 1 / (1 + np.exp(-0.5 * margin - 0.3)), margin


def probability(margin: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-margin.astype(np.float64)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), sharp=st.floats(0.1, 8))
def test_bins_and_scores_are_those_of_scikit_learn(seed, sharp):
    truth, margin = invented(seed, sharp=sharp)
    p = probability(margin).ravel()
    measured = reliability(truth, margin)
    fraction, mean = calibration_curve(truth.ravel(), p, n_bins=BINS)
    bins = [b for b in measured.to_dict()["bins"] if b["count"]]
    np.testing.assert_allclose([b["fraction_positive"] for b in bins], fraction)
    np.testing.assert_allclose([b["mean_probability"] for b in bins], mean)
    assert all(b["low"] <= b["mean_probability"] <= b["high"] for b in bins)
    assert measured.brier == pytest.approx(brier_score_loss(truth.ravel(), p))
    weights = np.array([b["count"] for b in bins]) / truth.size
    assert measured.ece == pytest.approx(np.sum(weights * np.abs(fraction - mean)))


def test_by_hand():
    """Four pixels: probabilities ½, ½, ¾, ¾; truth 0, 1, 1, 1."""
    measured = reliability([[0, 1, 1, 1]], np.log([[1.0, 1.0, 3.0, 3.0]]))
    assert measured.count.nonzero()[0].tolist() == [7, 11]
    assert measured.ece == pytest.approx((2 * 0.0 + 2 * 0.25) / 4)
    assert measured.brier == pytest.approx((0.25 + 0.25 + 1 / 16 + 1 / 16) / 4)


def test_a_calibrated_network_has_no_error_and_an_overconfident_one_does():
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, (600, 600))
    truth = rng.random(margin.shape) < probability(margin)
    assert reliability(truth, margin).ece == pytest.approx(0, abs=0.005)
    assert (reliability(truth, 4 * margin).ece or 0) > 0.1


def test_pixels_that_were_not_seen_do_not_count():
    truth, margin = invented(3)
    hidden = margin.copy()
    hidden[:, :10] = np.nan
    whole, part = reliability(truth[:, 10:], margin[:, 10:]), reliability(truth, hidden)
    assert (part.ece, part.brier, part.pixels) == (whole.ece, whole.brier, 40 * 40)
    nothing = reliability(truth, np.full(truth.shape, np.nan))
    assert (nothing.ece, nothing.brier) == (None, None)
    assert nothing.to_dict()["bins"][0]["mean_probability"] is None


def test_pooling_is_measuring_all_pixels_at_once():
    images = [invented(seed, shape=(20 + seed, 30)) for seed in range(4)]
    together = pooled(reliability(*image) for image in images)
    truth, margin = (np.concatenate([np.ravel(part) for part in parts]) for parts in zip(*images))
    once = reliability(truth[None], margin[None])
    np.testing.assert_array_equal(together.count, once.count)
    assert together.ece == pytest.approx(once.ece) and together.brier == pytest.approx(once.brier)


@pytest.mark.parametrize(("margin", "brier"), [(1e4, 0.0), (800.0, 0.0), (0.0, 0.25), (-1e4, 1.0)])
def test_no_logit_overflows(margin, brier):
    with np.errstate(all="raise", under="ignore"):
        measured = reliability(np.ones((2, 2)), np.full((2, 2), margin))
    assert measured.pixels == 4 and measured.brier == pytest.approx(brier)
