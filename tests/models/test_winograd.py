"""Winograd's convolution against XLA's: values and both gradients, in float64 and in float32."""

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from cmunet_jax.models import layers, winograd

SIDES = st.integers(1, 5).map(lambda half: 2 * half)
CHANNELS = st.integers(1, 6)


def _convolve(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


@hypothesis.given(st.integers(1, 3), SIDES, SIDES, CHANNELS, CHANNELS, st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=4)
def test_it_is_the_convolution(batch, height, width, channels, features, seed):
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((batch, height, width, channels)))
        kernel = jnp.asarray(rng.standard_normal((3, 3, channels, features)))
        dy = jnp.asarray(rng.standard_normal((batch, height, width, features)))
        y, gradients = jax.vjp(_convolve, x, kernel)
        dx, dkernel = gradients(dy)
        np.testing.assert_allclose(winograd.convolve(x, kernel), y, rtol=0, atol=1e-10)
        np.testing.assert_allclose(winograd.input_gradient(dy, kernel), dx, rtol=0, atol=1e-10)
        np.testing.assert_allclose(winograd.kernel_gradient(x, dy), dkernel, rtol=0, atol=1e-10)


def test_the_layer_that_uses_it_has_the_gradients_of_flax():
    """At the width from which it is used, where the sums are long: within float32's rounding."""
    width = layers._MANY
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 4, width)).astype(np.float32)
    kernel = (rng.standard_normal((3, 3, width, width)) / (3 * width**0.5)).astype(np.float32)
    weights = rng.standard_normal((2, 6, 4, width)).astype(np.float32)
    variables = {"params": {"kernel": kernel, "bias": np.zeros(width, np.float32)}}

    def gradients(layer):
        def scalar(variables, x):
            return (layer.apply(variables, x) * weights).sum()

        return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1)))(variables, x)

    found = gradients(layers.Conv(width))
    expected = gradients(nn.Conv(width, (3, 3)))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())
