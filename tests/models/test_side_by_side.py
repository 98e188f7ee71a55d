"""Images side by side under one convolution: values, gradients, and when it is done."""

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmunet_jax.models import layers, side_by_side

SIZES = st.integers(1, 5)


@hypothesis.given(st.integers(1, 2), st.integers(1, 4), SIZES, SIZES, SIZES, SIZES)
@hypothesis.settings(deadline=None, max_examples=5)
def test_it_is_the_convolution(groups, count, height, width, channels, features):
    rng = np.random.default_rng(0)
    layout = ("NHWC", "HWIO", "NHWC")
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((groups * count, height, width, channels)))
        kernel = jnp.asarray(rng.standard_normal((3, 3, channels, features)))
        expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
        found = side_by_side.convolve(x, kernel, count)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("batch", "width", "channels", "features", "count"),
    [
        (8, 64, 32, 32, 8),
        (8, 64, 64, 32, 4),
        (8, 32, 64, 64, 4),
        (12, 32, 64, 64, 4),
        (6, 32, 64, 64, 6),  # a divisor of the batch
        (7, 64, 64, 64, 7),
        (1, 64, 64, 64, 1),  # nothing to lie beside
        (4, 64, 32, 32, 1),  # would not be enough
        (8, 256, 64, 64, 1),  # is enough alone
        (16, 128, 16, 16, 1),  # another library's
        (16, 512, 1, 64, 1),
    ],
)
def test_as_few_images_as_make_a_long_row(batch, width, channels, features, count):
    shape = (batch, 5, width, channels)
    assert side_by_side.images(shape, (3, 3, channels, features)) == count


@pytest.mark.parametrize("batch", [8, 7])
def test_a_narrow_layer_is_that_of_flax(batch):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((batch, 3, 64, 32)))
        ours = layers.Conv(32, dtype=jnp.float64)
        variables = {
            "params": {
                "kernel": jnp.asarray(rng.standard_normal((3, 3, 32, 32))),
                "bias": jnp.zeros(32),
            }
        }

        def run(layer):
            scalar = lambda v, x: (layer.apply(v, x) ** 2).mean()  # noqa: E731
            return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1)))(variables, x)

        found = run(ours)
        expected = run(nn.Conv(32, (3, 3), dtype=jnp.float64))
        lowered = jax.jit(ours.apply).trace(variables, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    wide = f"tensor<1x3x{8 * 66}x32x"
    texts = [lowered.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda")]
    assert [wide in text for text in texts] == [batch == 8, False]
