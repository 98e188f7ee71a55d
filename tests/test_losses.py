"""Losses against hand-worked values and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cmunet_jax import losses

RNG = np.random.default_rng(0)


def test_cross_entropy_against_scipy():
    logits, labels = RNG.standard_normal((2, 3, 4, 2)), RNG.integers(0, 2, (2, 3, 4))
    p = scipy.special.softmax(logits, -1)
    expected = -np.log(np.where(labels == 1, p[..., 1], p[..., 0])).mean()
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), expected, rtol=1e-5)


def _certain(mask):
    """Logits that predict `mask` with certainty."""
    return jnp.stack([-50.0 * (2.0 * mask - 1), 50.0 * (2.0 * mask - 1)], -1)


def test_soft_dice_is_an_average_over_images():
    truth = np.zeros((2, 4, 4), int)
    truth[:, :2] = 1
    prediction = truth.copy()
    prediction[1] = 1 - truth[1]
    # First image: perfect, 1 - 17/17. Second: disjoint, 1 - 1/17.
    loss = losses.soft_dice(_certain(prediction), jnp.asarray(truth))
    np.testing.assert_allclose(loss, (0 + 16 / 17) / 2, atol=1e-6)


def test_soft_dice_of_an_empty_image_is_finite_and_has_a_gradient():
    truth, logits = jnp.zeros((1, 8, 8), int), jnp.zeros((1, 8, 8, 2))
    value, gradient = jax.value_and_grad(losses.soft_dice)(logits, truth)
    np.testing.assert_allclose(value, 1 - 1 / 33, rtol=1e-5)
    assert (gradient[..., 1] > 0).all()


def test_thresholded_dice_is_pooled_and_has_no_gradient():
    truth = np.zeros((2, 4, 4), int)
    truth[0, :2] = 1
    prediction = np.zeros_like(truth)
    prediction[0, :1] = prediction[1, :1] = 1
    logits = _certain(prediction)
    value, gradient = jax.value_and_grad(losses.thresholded_dice)(logits, jnp.asarray(truth))
    np.testing.assert_allclose(value, 1 - 2 * 4 / (8 + 8), rtol=1e-5)
    assert (gradient == 0).all()


def test_standardise_over_patches_and_rows():
    image = RNG.normal(100, 20, (2, 32, 48)).astype(np.float32)
    by_patch, mean, scale = losses.standardise(jnp.asarray(image), over="patch")
    patch = image[1, 16:, 32:].astype(np.float64)
    expected = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
    np.testing.assert_allclose(by_patch[1, 16:, 32:], expected, atol=1e-4)
    np.testing.assert_allclose(by_patch * scale + mean, image, rtol=1e-5)
    by_row, _, _ = losses.standardise(jnp.asarray(image), over="row")
    row = image[1, 7].astype(np.float64)
    expected = (row - row.mean()) / np.sqrt(row.var(ddof=1) + 1e-6)
    np.testing.assert_allclose(by_row[1, 7], expected, atol=1e-4)
    with pytest.raises(ValueError, match="over"):
        losses.standardise(jnp.asarray(image), over="column")


def test_a_constant_patch_has_target_zero():
    made, _, _ = losses.standardise(jnp.full((1, 16, 16), 7.0), over="patch")
    assert (made == 0).all()


def test_masked_mse_counts_masked_pixels_only():
    target, prediction = jnp.zeros((1, 32, 32)), jnp.ones((1, 32, 32)).at[:, :16].set(3)
    patches = jnp.asarray([[[True, False], [True, False]]])
    assert losses.masked_mse(prediction, target, patches) == (9 + 1) / 2
    assert losses.masked_mse(prediction, target, jnp.zeros((1, 2, 2), bool)) == 0


def test_l2_normalise_survives_zero():
    value, gradient = jax.value_and_grad(lambda x: losses.l2_normalise(x).sum())(jnp.zeros((2, 3)))
    assert value == 0 and np.isfinite(gradient).all()


def test_info_nce_against_numpy():
    queries = RNG.standard_normal((3, 5)).astype(np.float32)
    keys = RNG.standard_normal((6, 5)).astype(np.float32)
    positives = np.array([4, 0, 2])
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    logits = unit(queries) @ unit(keys).T / 0.1
    log_p = scipy.special.log_softmax(logits, 1)
    loss, accuracy = losses.info_nce(queries, keys, jnp.asarray(positives), temperature=0.1)
    np.testing.assert_allclose(loss, -log_p[np.arange(3), positives].mean(), rtol=1e-5)
    np.testing.assert_allclose(accuracy, (logits.argmax(1) == positives).mean())


def test_info_nce_of_bfloat16_inputs_is_float32():
    q = jnp.ones((2, 3), jnp.bfloat16)
    loss, _ = losses.info_nce(q, q, jnp.arange(2), temperature=0.07)
    assert loss.dtype == jnp.float32


def test_queue_nce_against_numpy():
    queries, keys = RNG.standard_normal((2, 3, 5)).astype(np.float32)
    queue = RNG.standard_normal((7, 5)).astype(np.float32)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    own = (unit(queries) * unit(keys)).sum(1, keepdims=True)
    logits = np.concatenate([own, unit(queries) @ unit(queue).T], 1) / 0.1
    loss, accuracy = losses.queue_nce(*map(jnp.asarray, (queries, keys, queue)), temperature=0.1)
    np.testing.assert_allclose(loss, -scipy.special.log_softmax(logits, 1)[:, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(accuracy, (logits.argmax(1) == 0).mean())


def test_queue_nce_of_what_cannot_be_told_apart_is_log_of_all_keys():
    same = jnp.ones((4, 3))
    loss, _ = losses.queue_nce(same, same, jnp.ones((15, 3)), temperature=0.07)
    np.testing.assert_allclose(loss, np.log(16), rtol=1e-6)


def test_spread_is_one_for_random_and_zero_for_collapsed_keys():
    random = jnp.asarray(RNG.standard_normal((500, 40)), jnp.float32)
    np.testing.assert_allclose(losses.spread(random), 1, atol=0.02)
    np.testing.assert_allclose(losses.spread(jnp.ones((500, 40))), 0, atol=1e-6)
