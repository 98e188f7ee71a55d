"""The small networks of CM-UNet's contrastive branch (arXiv 2507.17779, section II-B)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cmunet_jax.models.batch_norm import BatchNorm

Array = jax.Array
Dtype = Any

ADAPTER_FEATURES = 256
"""16 × 16: one output for every pixel below a bottleneck position."""


class Projector(nn.Module):
    """Dense, BatchNorm (eps 1e-6), ReLU, Dense without bias; also the predictor's shape.

    The paper's sizes are hidden 1536 and out 256 at U-Net width 64, that is 24·width and 4·width.
    """

    hidden: int = 1536
    out: int = 256
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, N] to [B, out], float32."""
        kernel_init = nn.initializers.he_normal()
        x = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=kernel_init, name="fc0")(x)
        x = BatchNorm(1e-6, dtype=self.dtype, name="bn0")(x, train=train)
        x = nn.Dense(
            self.out, use_bias=False, dtype=self.dtype, kernel_init=kernel_init, name="fc1"
        )(nn.relu(x))
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))


def init_adapter(key: Array, in_features: int) -> dict[str, Array]:
    """Draws a 1×1 convolution to 256 channels: {'kernel': [C, 256], 'bias': [256]}, float32.

    Uniform in ±1/sqrt(C), PyTorch's default: what the released code draws afresh at every step.
    """
    kernel_key, bias_key = jax.random.split(key)
    bound = in_features**-0.5
    shape = (in_features, ADAPTER_FEATURES)
    return {
        "kernel": jax.random.uniform(kernel_key, shape, minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias_key, shape[1:], minval=-bound, maxval=bound),
    }


def adapt(adapter: dict[str, Array], bottleneck: Array, *, spatial: bool) -> Array:
    """Turns a bottleneck [B, h, w, C] into one flat map [B, 256·h·w] for the projector.

    Args:
      adapter: as `init_adapter` returns it.
      bottleneck: [B, h, w, C].
      spatial: True lays each position's 256 outputs out as its 16×16 pixels of a row-major map
        [16h, 16w], where a map can be learned; False flattens channel-first, as released, which
        scatters them (of no consequence for random weights).
    """
    b, h, w, _ = bottleneck.shape
    x = bottleneck @ adapter["kernel"].astype(bottleneck.dtype)
    x = x + adapter["bias"].astype(bottleneck.dtype)
    if spatial:
        return x.reshape(b, h, w, 16, 16).transpose(0, 1, 3, 2, 4).reshape(b, -1)
    return x.transpose(0, 3, 1, 2).reshape(b, -1)
