"""Sparse encoding: what masked pixels cannot do, statistics of active sites, the dense limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmunet_jax.models.batch_norm import BatchNorm
from cmunet_jax.models.initialise import draw, shapes_of
from cmunet_jax.models.layers import sites_of
from cmunet_jax.models.sparse import Densify, SparseUNet
from cmunet_jax.models.unet import LEVELS, Encoder, UNet
from tests.models.random_weights import random_weights

SHAPE = (3, 48, 32, 1)
ENCODER = Encoder(2)


def _image(seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def _active(seed=0):
    """Other numbers of active patches in each image, none in the last."""
    active = np.random.default_rng(seed).random((SHAPE[0], SHAPE[1] // 16, SHAPE[2] // 16)) < 0.5
    active[0, 0, 0], active[0, 2, 1], active[-1] = True, False, False
    return active


def _weights(seed=3):
    return random_weights(ENCODER, jnp.zeros(SHAPE), seed=seed, train=True)


@jax.jit
def _encode(variables, x, active):
    (bottleneck, skips), new = ENCODER.apply(
        variables, x, train=True, active=active, mutable=["batch_stats"]
    )
    return [*skips, bottleneck], new["batch_stats"]


def _same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("poison", [100.0, np.nan, np.inf])
def test_masked_pixels_reach_neither_features_nor_statistics(poison):
    active = _active()
    hidden = ~np.asarray(sites_of(active, SHAPE[1]))
    changed = np.where(hidden, poison * (1 + _image(1)), _image())
    variables = _weights()
    _same(_encode(variables, _image(), active), _encode(variables, changed, active))
    maps, _ = _encode(variables, np.where(hidden, _image(), _image() + 1), active)
    assert not np.array_equal(maps[-1], _encode(variables, _image(), active)[0][-1])


def test_every_map_is_zero_outside_active_patches():
    active = _active()
    maps, _ = _encode(_weights(), _image(), active)
    assert len(maps) == LEVELS + 1
    for level, features in enumerate(maps):
        sites = np.asarray(sites_of(active, SHAPE[1] >> level))[..., 0]
        assert sites.shape == features.shape[:3]
        assert (np.asarray(features)[~sites] == 0).all()
        assert np.abs(np.asarray(features)[sites]).max() > 0


@pytest.mark.parametrize("train", [True, False])
def test_all_patches_active_is_the_dense_encoder(train):
    variables, x = _weights(), _image()
    everything = np.ones_like(_active())

    with jax.enable_x64(True):
        variables, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (variables, x))
        encoder = Encoder(2, jnp.float64)

        def wide(active):
            return encoder.apply(variables, x, train=train, active=active, mutable=["batch_stats"])

        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12),
            jax.jit(wide)(everything),
            jax.jit(lambda: wide(None))(),
        )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 24), st.floats(-50, 50))
def test_statistics_are_those_of_the_active_sites(seed, count, centre):
    """Against the rows picked out by NumPy; PyTorch's running variance is the unbiased one."""
    rng = np.random.default_rng(seed)
    x = rng.normal(centre, 2, (2, 3, 4, 5)).astype(np.float32)
    sites = np.zeros(24, bool)
    sites[rng.permutation(24)[:count]] = True
    sites = sites.reshape(2, 3, 4, 1)
    variables = random_weights(BatchNorm(), x, train=True)
    y, new = _normalise(variables, x, sites)
    rows = x[sites[..., 0]].astype(np.float64)
    scale, bias = (np.asarray(variables["params"][k], np.float64) for k in ("scale", "bias"))
    expected = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) * scale + bias
    tolerance = 2e-6 * (1 + abs(centre)) / np.sqrt(rows.var(0).min() + 1e-5)
    np.testing.assert_allclose(np.asarray(y)[sites[..., 0]], expected, rtol=0, atol=tolerance)
    assert (np.asarray(y)[~sites[..., 0]] == 0).all()
    before, after = variables["batch_stats"], new["batch_stats"]
    unbiased = rows.var(0, ddof=1) if count > 1 else np.zeros(5)
    np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * rows.mean(0), atol=1e-4)
    np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * unbiased, atol=1e-3)


@jax.jit
def _normalise(variables, x, sites):
    return BatchNorm().apply(variables, x, train=True, sites=sites, mutable=["batch_stats"])


def test_a_batch_without_active_sites_is_finite():
    x = jnp.ones((1, 2, 2, 3))
    variables = random_weights(BatchNorm(), x, train=True)
    sites = jnp.zeros((1, 2, 2, 1), bool)

    def total(x):
        y, new = _normalise(variables, x, sites)
        return y.sum() + new["batch_stats"]["var"].sum()

    assert np.isfinite(jax.grad(total)(x)).all()
    assert (_normalise(variables, x, sites)[0] == 0).all()


def test_sites_repeat_their_patch():
    active = _active()
    sites = np.asarray(sites_of(active, 12))
    assert sites.shape == (3, 12, 8, 1)
    np.testing.assert_array_equal(sites[..., 0], np.kron(active, np.ones((4, 4))) > 0)


def test_densifying_puts_tokens_where_nothing_is():
    active = _active()
    maps, _ = _encode(_weights(), _image(), active)
    module = Densify()
    variables = random_weights(module, maps[-1], skips=maps[:-1], active=active, train=True)
    run = jax.jit(lambda *x: module.apply(*x, train=True, mutable=["batch_stats"])[0])
    bottleneck, skips = run(variables, maps[-1], maps[:-1], active)
    for i, (before, after) in enumerate(zip(maps, [*skips, bottleneck]), start=1):
        sites = np.asarray(sites_of(active, before.shape[1]))[..., 0]
        level = jax.tree.map(np.asarray, variables["params"][f"level{i}"])
        after = np.asarray(after)
        assert (after[~sites] == level["token"]).all()
        rows = np.asarray(before, np.float64)[sites]
        expected = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
        expected = expected * level["norm"]["scale"] + level["norm"]["bias"]
        np.testing.assert_allclose(after[sites], expected, atol=1e-3)


def test_the_parameters_are_those_of_the_segmentation_network():
    x, active = jnp.zeros(SHAPE), jnp.zeros((3, 3, 2), bool)
    sparse, dense = shapes_of(SparseUNet(2), x, active), shapes_of(UNet(2, out_channels=1), x)
    for collection in ("params", "batch_stats"):
        levels = sparse[collection].pop("densify")
        assert sorted(levels) == [f"level{i}" for i in range(1, 6)]
        assert sparse[collection] == dense[collection]
    assert levels["level5"]["norm"]["mean"].shape == (32,)


def test_tokens_start_small_and_different():
    shapes = shapes_of(SparseUNet(16), jnp.zeros(SHAPE), jnp.zeros((3, 3, 2), bool))
    densify = draw(jax.random.key(0), {"densify": shapes["params"]["densify"]})["densify"]
    tokens = np.concatenate([densify[f"level{i}"]["token"] for i in range(1, 6)])
    assert len(np.unique(tokens)) == tokens.size == 31 * 16
    # A normal distribution cut off at one deviation has 0.54 of it.
    assert np.abs(tokens).max() <= 0.02 and abs(tokens.std() / 0.02 - 0.54) < 0.05
