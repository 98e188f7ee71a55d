"""Fast forms of the layers against the textbook operations, in float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from cmunet_jax.models import layers
from cmunet_jax.models.batch_norm import BatchNorm
from cmunet_jax.models.unet import Block, UNet
from tests.models.random_weights import random_weights


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def _value_and_gradients(function, *args):
    """The value of sum(weights * function) and its gradient in every argument."""

    def scalar(*args):
        y = function(*args)
        weights = np.random.default_rng(9).standard_normal(y.shape)
        return (jnp.sin(y) * weights).sum()

    return jax.jit(jax.value_and_grad(scalar, argnums=tuple(range(len(args)))))(*args)


def _assert_same(a, b, tolerance=1e-10):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance), a, b)


@pytest.mark.usefixtures("float64")
def test_up_convolution_is_flax_conv_transpose():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 5, 6)))
    fast, plain = (layers.UpConv(4, dtype=jnp.float64, fast=fast) for fast in (True, False))
    variables = random_weights(fast, x, dtype=np.float64)
    oracle = nn.ConvTranspose(4, (2, 2), (2, 2), "VALID", dtype=jnp.float64)
    expected = _value_and_gradients(oracle.apply, variables, x)
    _assert_same(_value_and_gradients(fast.apply, variables, x), expected)
    _assert_same(_value_and_gradients(plain.apply, variables, x), expected)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shape", [(2, 64, 48, 4), (1, 72, 16, 5), (3, 16, 16, 7), (2, 66, 6, 1)])
def test_convolution_is_flax_conv(shape, monkeypatch):
    """With and without the fast gradient; rows that eight divides, and that it does not."""
    monkeypatch.setattr(layers, "_FEW", 4)
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape))
    fast, plain = (layers.Conv(6, dtype=jnp.float64, fast=fast) for fast in (True, False))
    variables = random_weights(fast, x, dtype=np.float64)
    oracle = nn.Conv(6, (3, 3), dtype=jnp.float64)
    expected = _value_and_gradients(oracle.apply, variables, x)
    _assert_same(_value_and_gradients(fast.apply, variables, x), expected)
    _assert_same(_value_and_gradients(plain.apply, variables, x), expected)


@pytest.mark.usefixtures("float64")
def test_the_fast_kernel_gradient_is_used_on_a_cpu_alone():
    x = jnp.ones((1, 64, 64, 64))
    layer = layers.Conv(64, dtype=jnp.float64)
    step = jax.jit(jax.grad(lambda v: layer.apply(v, x).sum()))
    lowered = {
        platform: step.trace({"params": {"kernel": jnp.ones((3, 3, 64, 64)), "bias": jnp.ones(64)}})
        .lower(lowering_platforms=(platform,))
        .as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert ["while" in text for text in lowered.values()] == [True, False, False]


@pytest.mark.parametrize(
    "shape, dtype, minimal",
    [
        ((1, 4, 6, 128), jnp.float32, True),
        ((1, 3, 6, 128), jnp.float32, False),  # a row without its pair
        ((1, 4, 6, 127), jnp.float32, False),
        ((1, 4, 6, 128), jnp.bfloat16, False),  # its sums would lose the digits that are left
    ],
)
def test_wide_convolutions_are_winograd_on_a_cpu_alone(shape, dtype, minimal):
    layer = layers.Conv(128, dtype=dtype)
    weights = {"params": {"kernel": jnp.ones((3, 3, shape[-1], 128)), "bias": jnp.ones(128)}}
    step = jax.jit(jax.grad(lambda v, x: layer.apply(v, x).sum(), argnums=(0, 1)))
    traced = step.trace(weights, jnp.ones(shape))
    texts = [
        traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    ]
    assert ["convolution" in text for text in texts] == [not minimal, True, True]


@pytest.mark.usefixtures("float64")
def test_max_pool_is_flax_max_pool():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 10, 3)))
    _assert_same(
        _value_and_gradients(layers.max_pool, x),
        _value_and_gradients(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x),
    )
    _assert_same(layers.max_pool(x), layers.max_pool(x, fast=False))
    tied = jnp.round(x)
    _assert_same(
        _value_and_gradients(layers.max_pool, tied),
        _value_and_gradients(lambda x: nn.max_pool(x, (2, 2), (2, 2)), tied),
    )
    for pixel in np.ndindex(2, 2):
        pooled = layers.max_pool(x.at[1, 2 + pixel[0], 4 + pixel[1], 0].set(jnp.nan))
        assert np.argwhere(np.isnan(pooled)).tolist() == [[1, 1, 2, 0]]


def test_the_transposed_convolution_is_the_stock_one_on_a_tpu_alone():
    layer, x = layers.UpConv(4), jnp.ones((1, 2, 3, 5))
    weights = {"params": {"kernel": jnp.ones((2, 2, 5, 4)), "bias": jnp.ones(4)}}
    traced = jax.jit(jax.grad(lambda v: layer.apply(v, x).sum())).trace(weights)
    texts = [
        traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    ]
    assert ["convolution" in text for text in texts] == [False, False, True]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("shape", [(3, 4, 6, 5), (7, 5)])
def test_batch_norm_normalises_as_flax_does(shape, fast):
    x = jnp.asarray(3 + np.random.default_rng(0).standard_normal(shape))
    ours = BatchNorm(dtype=jnp.float64, fast=fast)
    oracle = nn.BatchNorm(False, epsilon=1e-5, dtype=jnp.float64, use_fast_variance=False)
    variables = random_weights(ours, x, dtype=np.float64, train=True)
    stats, params = variables["batch_stats"], variables["params"]

    def apply(module, **kwargs):
        return lambda params, x: module.apply(
            {"params": params, "batch_stats": stats}, x, mutable=["batch_stats"], **kwargs
        )[0]

    _assert_same(
        _value_and_gradients(apply(ours, train=True), params, x),
        _value_and_gradients(apply(oracle), params, x),
    )


def test_without_fast_the_gradient_of_batch_norm_is_the_one_that_jax_takes():
    x, texts = jnp.ones((2, 4, 4, 3)), {}
    for fast in (True, False):
        norm = Block(4, fast=fast)
        variables = random_weights(norm, x, train=True)
        apply = functools.partial(norm.apply, train=True, mutable=["batch_stats"])
        texts[fast] = str(jax.make_jaxpr(lambda v, apply=apply: apply(v, x))(variables))
    assert ["_normalise" in texts[fast] for fast in (True, False)] == [True, False]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_gradient_of_batch_norm_has_the_types_of_its_arguments(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (4, 6, 8, 3)), dtype)
    norm = BatchNorm(dtype=dtype)
    variables = random_weights(norm, x, train=True)
    weights = np.random.default_rng(1).standard_normal(x.shape)

    def loss(params, x):
        given = {**variables, "params": params}
        y = norm.apply(given, x, train=True, mutable=["batch_stats"])[0]
        return (jnp.sin(y.astype(jnp.float32)) * weights).sum()

    of_params, of_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables["params"], x)
    assert of_x.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(of_params)} == {jnp.dtype("float32")}
    # Nothing changes the loss that normalisation takes out again: a shift, and the scale of x.
    wide = np.asarray(of_x, np.float64)
    assert np.abs(wide.sum((0, 1, 2))).max() < 0.01 * np.abs(wide).sum((0, 1, 2)).min()
    along = (wide * np.asarray(x, np.float64)).sum((0, 1, 2))
    assert (
        np.abs(along).max() < 0.01 * np.abs(wide * np.asarray(x, np.float64)).sum((0, 1, 2)).min()
    )


def test_running_statistics_are_those_of_pytorch():
    x = np.random.default_rng(0).normal(5, 2, (2, 3, 4, 6)).astype(np.float32)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, train=True)
    assert (variables["batch_stats"]["var"] == 1).all()  # initialising records nothing
    _, updated = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    flat = x.reshape(-1, 6).astype(np.float64)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)


def test_variance_survives_a_large_mean():
    x = np.random.default_rng(0).normal(3000, 1, (4, 16, 16, 2)).astype(np.float32)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, train=True)
    y, _ = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(np.asarray(y).std((0, 1, 2)), 1, atol=1e-2)


def test_statistics_are_float32_under_bfloat16():
    x = jnp.asarray(np.random.default_rng(0).normal(0, 1, (4, 32, 32, 2)), jnp.bfloat16)
    norm = BatchNorm(dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, train=True)
    y, updated = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    stats = updated["batch_stats"]
    assert stats["mean"].dtype == stats["var"].dtype == jnp.float32
    expected = 0.1 * np.asarray(x, np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(stats["mean"], expected, atol=1e-6)


@pytest.mark.parametrize("height,width", [(1, 2), (3, 5), (4, 4)])
def test_bilinear_upsampling_keeps_the_corners(height, width):
    x = np.random.default_rng(0).standard_normal((2, height, width, 3)).astype(np.float32)
    y = np.asarray(layers.upsample_bilinear(jnp.asarray(x)))
    rows = np.linspace(0, height - 1, 2 * height)
    columns = np.linspace(0, width - 1, 2 * width)
    grid = np.meshgrid([0, 1], rows, columns, [0, 1, 2], indexing="ij")
    expected = scipy.ndimage.map_coordinates(x, grid, order=1)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.usefixtures("float64")
def test_the_whole_network_does_not_depend_on_the_switch():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 16, 1)))
    fast, plain = (UNet(2, dtype=jnp.float64, fast=fast) for fast in (True, False))
    variables = random_weights(fast, x, dtype=np.float64, train=True)
    params = variables["params"]

    def apply(module):
        def forward(params, x):
            variables_ = {"params": params, "batch_stats": variables["batch_stats"]}
            return module.apply(variables_, x, train=True, mutable=["batch_stats"])[0]

        return lambda *args: _value_and_gradients(forward, *args)

    _assert_same(apply(fast)(params, x), apply(plain)(params, x))
