"""Resampling as matrices whose sizes may be unknown until the exported program runs.

Each function gives the weights [outputs, inputs] of one axis; an image is resampled by one product
an axis. Weights come from whole-number arithmetic on the two lengths, so they are those of OpenCV
and Pillow up to one rounding, whatever the size.
"""

from __future__ import annotations

import cv2
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Weights = jax.Array | np.ndarray
PRECISE = jax.lax.Precision.HIGHEST  # bfloat16 products would show as noise in the image


def along_axes(rows: Weights, image: Array, columns: Weights) -> Array:
    """`rows` [A, H] @ image [H, W] @ `columns` [B, W] transposed -> [A, B]."""
    left = jnp.matmul(rows, image, precision=PRECISE)
    return jnp.matmul(left, columns.T, precision=PRECISE)


def indices(length: int) -> Array:
    """0, 1, ... as int32 [length]; the length may be symbolic."""
    return jax.lax.iota(jnp.int32, length)


def fixed_matrix(inputs: int, outputs: int, interpolation: int) -> np.ndarray:
    """What `cv2.resize` does along one axis whose lengths are known, float32 [outputs, inputs]."""
    if inputs == outputs:
        return np.eye(inputs, dtype=np.float32)
    return cv2.resize(
        np.eye(inputs, dtype=np.float32), (inputs, outputs), None, 0, 0, interpolation
    )


def area(
    places: Array, samples: Array, *, inputs: Array, outputs: Array, repeat_ends: bool = False
) -> Array:
    """Share of each output pixel that each input pixel covers: `cv2.INTER_AREA` when shrinking.

    Args:
      places: int32 [A], the output pixels.
      samples: int32 [B], the input pixels.
      inputs: length of the whole input in pixels.
      outputs: length of the whole output in pixels.
      repeat_ends: the first and the last of `samples` stand for all before and after them.

    Returns:
      float32 [A, B], in 0..1.
    """
    low, high = samples * outputs, (samples + 1) * outputs
    if repeat_ends:
        low = jnp.where(samples == samples[0], 0, low)
        high = jnp.where(samples == samples[-1], inputs * outputs, high)
    start, stop = places * inputs, (places + 1) * inputs
    shared = jnp.minimum(stop[:, None], high[None]) - jnp.maximum(start[:, None], low[None])
    return jnp.maximum(shared, 0).astype(jnp.float32) / inputs


def _position(places: Array, inputs: Array, outputs: Array) -> tuple[Array, Array]:
    """The input pixel left of each output pixel's centre, and how far beyond it, in 0..1."""
    doubled = (2 * places + 1) * inputs - outputs
    left = jnp.floor_divide(doubled, 2 * outputs)
    return left, (doubled - left * 2 * outputs).astype(jnp.float32) / (2 * outputs)


def linear(places: Array, samples: Array, *, inputs: Array, outputs: Array) -> Array:
    """`cv2.INTER_LINEAR`, float32 [A, B]; arguments as of `area`, edges repeated."""
    left, beyond = _position(places, inputs, outputs)
    weights = jnp.zeros((places.shape[0], samples.shape[0]), jnp.float32)
    for step, weight in ((0, 1 - beyond), (1, beyond)):
        tap = jnp.clip(left + step, 0, inputs - 1)
        weights += jnp.where(tap[:, None] == samples[None], weight[:, None], 0)
    return weights


def cubic(places: Array, samples: Array, *, inputs: Array, outputs: Array) -> Array:
    """`cv2.INTER_CUBIC` (Keys, a = -0.75), float32 [A, B]; what lies beyond `samples` repeats them.

    Arguments as of `area`.
    """
    left, x = _position(places, inputs, outputs)
    a = -0.75
    near = lambda d: ((a + 2) * d - (a + 3)) * d * d + 1  # noqa: E731
    far = lambda d: ((a * d - 5 * a) * d + 8 * a) * d - 4 * a  # noqa: E731
    taps = [far(x + 1), near(x), near(1 - x)]
    taps.append(1 - sum(taps))
    weights = jnp.zeros((places.shape[0], samples.shape[0]), jnp.float32)
    for step, weight in enumerate(taps, start=-1):
        tap = jnp.clip(left + step, samples[0], samples[-1])
        weights += jnp.where(tap[:, None] == samples[None], weight[:, None], 0)
    return weights


def pillow_bicubic(places: Array, samples: Array, *, inputs: Array, outputs: int) -> Array:
    """Pillow's `BICUBIC` (Keys, a = -0.5, widened when shrinking), float32 [A, B].

    Arguments as of `area`; samples from `inputs` on have no weight.
    """
    doubled = (2 * samples[None] + 1) * outputs - (2 * places[:, None] + 1) * inputs
    x = jnp.abs(doubled.astype(jnp.float32)) / (2 * jnp.maximum(inputs, outputs))
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = jnp.where(x < 1, near, jnp.where(x < 2, far, 0)) * (samples < inputs)
    return weights / weights.sum(1, keepdims=True)


def reflected_gaussian(length: int, count: Array, *, sigma: float, truncate: float) -> Array:
    """Blurs the first `count` of `length` samples; beyond its ends the row is mirrored.

    `scipy.ndimage.gaussian_filter1d(mode='reflect')`: the last sample is repeated once.

    Args:
      length: of the matrix.
      count: samples that exist, 1..length.
      sigma: standard deviation in samples.
      truncate: the kernel ends at this many standard deviations.

    Returns:
      float32 [length, length]; rows and columns from `count` on are not meaningful and zero.
    """
    radius = int(truncate * sigma + 0.5)
    steps = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (steps / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    places = indices(length)[:, None]
    folded = jnp.mod(places + steps[None].astype(np.int32), 2 * count)
    source = jnp.minimum(folded, 2 * count - 1 - folded)
    weights = jnp.zeros((length, length), jnp.float32)
    return weights.at[places, source].add(jnp.broadcast_to(kernel, source.shape)) * (
        (places < count) & (indices(length)[None] < count)
    )
