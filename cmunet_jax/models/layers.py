"""The layers of the U-Net, each written the way XLA compiles well and the plain way.

`fast=True` takes a form that XLA compiles to quick code on CPU, where the stock gradient of max
pooling and the stock transposed convolution are several times slower. `fast=False` takes the
textbook operation. Both have the same parameters, values and gradients (tests: 1e-10 in float64).

Parameters are float32; `dtype` is the type of the computation. Layout is [B, H, W, C].
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Dtype = Any

_NHWC = ("NHWC", "HWIO", "NHWC")
he_normal = nn.initializers.he_normal()


class Conv(nn.Module):
    """Convolution with 'same' zero padding over the concatenation of its inputs.

    The inputs are never concatenated when `fast`: conv([a, b], w) = conv(a, w_a) + conv(b, w_b)
    saves writing and reading the widest maps of the network. The kernel is one array
    [k, k, sum of input channels, features] either way.
    """

    features: int
    kernel_size: int = 3
    dtype: Dtype = jnp.float32
    fast: bool = True

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        """Maps arrays [B, H, W, C_i] to [B, H, W, features]."""
        channels = [x.shape[-1] for x in inputs]
        shape = (self.kernel_size, self.kernel_size, sum(channels), self.features)
        kernel = self.param("kernel", he_normal, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        inputs = tuple(x.astype(self.dtype) for x in inputs)
        if self.fast:
            parts = jnp.split(kernel, np.cumsum(channels)[:-1], axis=2)
        else:
            inputs, parts = (jnp.concatenate(inputs, axis=-1),), [kernel]
        y = sum(
            lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=_NHWC)
            for x, k in zip(inputs, parts)
        )
        return y + bias.astype(self.dtype)


class UpConv(nn.Module):
    """2×2 transposed convolution of stride 2: [B, H, W, C] to [B, 2H, 2W, features].

    Windows do not overlap, so it is one matrix product per input pixel followed by depth-to-space.
    The kernel [2, 2, C, features] has the layout of `flax.linen.ConvTranspose`, which correlates
    with the flipped kernel: output (2i+a, 2j+b) takes kernel[1-a, 1-b].
    """

    features: int
    dtype: Dtype = jnp.float32
    fast: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, 2H, 2W, features]."""
        b, h, w, c = x.shape
        kernel = self.param("kernel", he_normal, (2, 2, c, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.fast:
            matrix = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(c, 4 * self.features)
            y = (x.reshape(-1, c) @ matrix).reshape(b, h, w, 2, 2, self.features)
            y = y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, self.features)
        else:
            y = lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=_NHWC)
        return y + bias.astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's running statistics.

    Differs from `flax.linen.BatchNorm` in that the running variance takes the unbiased batch
    variance, as PyTorch's does, so that imported and trained weights mean the same; the batch
    itself is normalised by the biased one in both. Statistics are float32 or wider whatever
    `dtype`. The variance is the mean of squared deviations: exact where the mean is large.

    Under jit over a sharded batch they are the statistics of the global batch.

    `fast` takes `normalise`, whose hand-written gradient reads the input in `dtype` and sums in
    stages; False leaves sums and gradient to JAX.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    dtype: Dtype = jnp.float32
    fast: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalises the last axis of [..., C]; `train` uses and records batch statistics."""
        features = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (features,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,), jnp.float32)
        x = x.astype(self.dtype)
        if not train:
            wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            gain = lax.rsqrt(running_var.value + self.epsilon) * scale
            return ((wide - running_mean.value) * gain + bias).astype(self.dtype)
        function = normalise if self.fast else _normalise_plain
        y, mean, var = function(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            n = x.size // features
            unbiased = var * (n / max(n - 1, 1))
            running_mean.value = self._blend(running_mean.value, mean)
            running_var.value = self._blend(running_var.value, unbiased)
        return y

    def _blend(self, running: Array, batch: Array) -> Array:
        return self.momentum * running + (1 - self.momentum) * lax.stop_gradient(batch)


def _normalise_plain(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, ...]:
    """Batch normalisation as the textbook has it; see `normalise`."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = wide.mean(axes)
    var = jnp.square(wide - mean).mean(axes)
    y = (wide - mean) * (lax.rsqrt(var + epsilon) * scale) + bias
    return y.astype(x.dtype), mean, var


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, ...]:
    """Normalises the last axis by the statistics of all others.

    Args:
      x: [..., C]; what is kept for the gradient, in its own type.
      scale: [C].
      bias: [C].
      epsilon: added to the variance.

    Returns:
      y like x, mean [C] and biased variance [C]; gradients flow through y only.
    """
    return _normalise_forward(x, scale, bias, epsilon)[0]


def _normalise_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Any, Any]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    n = x.size // x.shape[-1]
    mean = staged_sum(wide) / n
    var = staged_sum(jnp.square(wide - mean)) / n
    inverse = lax.rsqrt(var + epsilon)
    y = (wide - mean) * (inverse * scale) + bias
    return (y.astype(x.dtype), mean, var), (x, scale, mean, inverse)


def _normalise_backward(epsilon: float, saved: Any, cotangents: Any) -> tuple[Array, ...]:
    x, scale, mean, inverse = saved
    wide = x.astype(mean.dtype)
    dy = cotangents[0].astype(mean.dtype)
    n = x.size // x.shape[-1]
    standard = (wide - mean) * inverse
    d_bias = staged_sum(dy)
    d_scale = staged_sum(dy * standard)
    dx = (dy - d_bias / n - standard * (d_scale / n)) * (scale * inverse)
    return dx.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(scale.dtype)


normalise.defvjp(_normalise_forward, _normalise_backward)


def staged_sum(x: Array) -> Array:
    """Sums [..., C] over all axes but the last, one axis after another.

    XLA on CPU adds up a reduction in one running float32 sum, and merges consecutive reductions
    into one. Over the 10^5 to 10^6 pixels of a batch that rounding is the largest error of the
    network's gradients (5e-4 of the first layer's, measured); in stages it is 1000 times smaller.
    """
    while x.ndim > 1:
        x = lax.optimization_barrier(x.sum(-2))
    return x


def max_pool(x: Array, *, fast: bool = True) -> Array:
    """2×2 max pooling, [B, H, W, C] to [B, H/2, W/2, C]; H and W even.

    Where a window holds its maximum more than once the fast form shares the gradient and the plain
    one gives it to the first. After a ReLU such ties are zeros, whose gradient ends there.
    """
    if not fast:
        return nn.max_pool(x, (2, 2), (2, 2))
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def upsample_bilinear(x: Array) -> Array:
    """Doubles H and W of [B, H, W, C] bilinearly, corner pixels kept in place (align_corners)."""
    for axis in (1, 2):
        weights = jnp.asarray(_align_corners(x.shape[axis]), x.dtype)
        x = jnp.moveaxis(jnp.tensordot(weights, x, axes=(1, axis)), 0, axis)
    return x


def _align_corners(size: int) -> np.ndarray:
    """The interpolation matrix [2·size, size]."""
    position = np.arange(2 * size) * (size - 1) / (2 * size - 1)
    low = np.minimum(np.floor(position).astype(int), max(size - 2, 0))
    rows = np.arange(2 * size)
    matrix = np.zeros((2 * size, size))
    matrix[rows, low] = 1 - (position - low)
    if size > 1:
        matrix[rows, low + 1] = position - low
    return matrix
