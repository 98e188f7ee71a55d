"""The U-Net and the heads: shapes, sizes, options, refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmunet_jax.models.heads import Projector, adapt, init_adapter
from cmunet_jax.models.initialise import draw, shapes_of
from cmunet_jax.models.unet import Encoder, UNet
from tests.models.random_weights import random_weights
from tfds_angio.errors import UserError


def _shapes(module, x, **kwargs):
    return jax.eval_shape(lambda k: module.init(k, x, train=True, **kwargs), jax.random.key(0))


def _count(tree):
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_the_paper_size_has_31_million_parameters():
    params = _shapes(UNet(64), jnp.zeros((1, 32, 32, 1)))["params"]
    # 31,042,434 is the count of PyTorch's 64-128-256-512-1024 U-Net with biases and BatchNorm,
    # one input channel and two classes.
    assert _count(params) == 31_042_434
    assert set(params) == {"encoder", "decoder"}
    assert params["decoder"]["up4"]["conv1"]["kernel"].shape == (3, 3, 1024, 512)
    assert params["decoder"]["head"]["kernel"].shape == (1, 1, 64, 2)


@pytest.mark.parametrize("up", ["transposed", "bilinear"])
def test_logits_have_the_size_of_the_image_and_are_float32(up):
    network = UNet(2, dtype=jnp.bfloat16, up=up)
    x = jnp.ones((2, 48, 32, 1))
    variables = draw(jax.random.key(0), shapes_of(network, x))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    logits = jax.jit(lambda v: network.apply(v, x, train=False))(variables)
    assert logits.shape == (2, 48, 32, 2) and logits.dtype == jnp.float32
    assert np.isfinite(logits).all()


def test_bfloat16_is_close_to_float32():
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 1))
    variables = random_weights(UNet(4), x, train=True)
    exact, rough = (
        jax.jit(
            lambda v, network: network.apply(v, x, train=True, mutable=["batch_stats"])[0],
            static_argnums=1,
        )(variables, UNet(4, dtype=dtype))
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert 0 < np.abs(exact - rough).mean() < 0.05 * np.abs(exact).mean() + 0.05


def _stored(remat: str) -> int:
    """Bytes that the backward pass finds stored, weights left out."""
    network, x = UNet(8, remat=remat), jnp.zeros((4, 64, 64, 1))
    variables = shapes_of(network, x)

    def residuals(params, x):
        run = lambda p: network.apply(  # noqa: E731
            {"params": p, "batch_stats": variables["batch_stats"]}, x, train=True,
            mutable=["batch_stats"],
        )  # fmt: skip
        return jax.vjp(run, params)[1]

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), variables["batch_stats"])
    variables = {**variables, "batch_stats": zeros}
    kept = jax.tree.leaves(jax.eval_shape(residuals, variables["params"], x))
    weights = sum(leaf.size * 4 for leaf in jax.tree.leaves(variables["params"]))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept) - weights


def test_rematerialisation_stores_half_and_a_quarter():
    none, norms, blocks = (_stored(remat) for remat in ("none", "norms", "blocks"))
    # Of half of it a little is a second form of the transposed convolution's input, an empty one
    # that no compiled program keeps.
    assert norms < 0.55 * none
    assert blocks < 0.3 * none


@pytest.mark.parametrize("remat", ["norms", "blocks"])
def test_rematerialisation_changes_no_value_and_no_gradient(remat):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(1), (2, 32, 48, 1), jnp.float64)
        variables = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float64), random_weights(UNet(2), x, train=True)
        )

        def run(params, remat):
            logits, updated = UNet(2, dtype=jnp.float64, remat=remat).apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.square(logits - x).mean(), updated

        made = jax.jit(jax.value_and_grad(run, has_aux=True), static_argnums=1)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
            made(variables["params"], "none"),
            made(variables["params"], remat),
        )


def test_skips_come_finest_first():
    x = jnp.zeros((1, 64, 32, 1))
    bottleneck, skips = jax.eval_shape(
        lambda k: Encoder(2).init_with_output(k, x, train=True)[0], jax.random.key(0)
    )
    assert bottleneck.shape == (1, 4, 2, 32)
    assert [s.shape for s in skips] == [
        (1, 64, 32, 2),
        (1, 32, 16, 4),
        (1, 16, 8, 8),
        (1, 8, 4, 16),
    ]


@pytest.mark.parametrize("shape", [(1, 30, 32, 1), (1, 32, 8, 1)])
def test_sizes_that_16_does_not_divide_are_refused(shape):
    with pytest.raises(UserError, match="multiples of 16"):
        _shapes(UNet(2), jnp.zeros(shape))


def test_an_unknown_upsampling_is_refused():
    with pytest.raises(UserError, match="model.up"):
        _shapes(UNet(2, up="nearest"), jnp.zeros((1, 16, 16, 1)))


def test_projector_has_the_sizes_of_the_paper():
    params = _shapes(Projector(), jnp.zeros((1, 100)))["params"]
    shapes = {k: {n: v.shape for n, v in d.items()} for k, d in params.items()}
    assert shapes == {
        "fc0": {"kernel": (100, 1536), "bias": (1536,)},
        "bn0": {"scale": (1536,), "bias": (1536,)},
        "fc1": {"kernel": (1536, 256)},
    }


def test_the_spatial_adapter_writes_each_position_into_its_own_pixels():
    adapter = init_adapter(jax.random.key(0), 5)
    bottleneck = jax.random.normal(jax.random.key(1), (2, 3, 4, 5))
    jitted = jax.jit(adapt, static_argnames="spatial")
    outputs = np.asarray(bottleneck @ adapter["kernel"] + adapter["bias"])
    spatial = np.asarray(jitted(adapter, bottleneck, spatial=True)).reshape(2, 48, 64)
    np.testing.assert_allclose(spatial[1, 16:32, 48:64].ravel(), outputs[1, 1, 3], atol=1e-5)
    released = np.asarray(jitted(adapter, bottleneck, spatial=False))
    np.testing.assert_allclose(released[1].reshape(256, 3, 4)[:, 1, 3], outputs[1, 1, 3], atol=1e-5)


def test_drawn_weights_have_the_moments_of_flax_initialisation():
    module, x = UNet(8), jnp.zeros((1, 16, 16, 1))
    made = draw(jax.random.key(0), shapes_of(module, x))
    assert jax.tree.structure(made) == jax.tree.structure(_shapes(module, x))
    for path in (("encoder", "bottleneck", "conv2"), ("decoder", "upsample4"), ("decoder", "head")):
        layer = made["params"]
        for part in path:
            layer = layer[part]
        kernel = np.asarray(layer["kernel"])
        reference = nn.initializers.he_normal()(jax.random.key(1), kernel.shape)
        assert (layer["bias"] == 0).all()
        if kernel.size > 1000:
            np.testing.assert_allclose(kernel.std(), reference.std(), rtol=0.02)
            np.testing.assert_allclose(np.abs(kernel).max(), np.abs(reference).max(), rtol=0.02)
            assert abs(kernel.mean()) < 0.05 * kernel.std()
    norm = made["batch_stats"]["encoder"]["down1"]["bn1"]
    assert (norm["var"] == 1).all() and (norm["mean"] == 0).all()
    kernels = [np.asarray(k).ravel()[:8] for k in jax.tree.leaves(made["params"]) if k.ndim == 4]
    assert len(np.unique(np.concatenate(kernels))) > 7 * len(kernels)  # cut apart, not repeated


def test_a_variable_without_a_rule_is_refused():
    with pytest.raises(ValueError, match="queue"):
        draw(jax.random.key(0), {"queue": jax.ShapeDtypeStruct((2,), jnp.float32)})
