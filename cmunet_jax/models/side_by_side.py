"""A convolution over several images that lie side by side in one wide map, for a CPU's cores.

XLA gives convolutions on a CPU to YNNPACK, which shares the rows of a map out over its threads
only where a row is work enough: width × channels in × channels out of about 2¹⁹ (measured; it is
documented nowhere). Narrow layers stay below and run on one core, however many images there are.
With columns of zeros between them, images side by side are one map with longer rows, and the
convolution is the same.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

_ROW = 2**19  # work in a row from which on the rows are shared out
_FEW = 16  # with so few channels coming and going XLA uses another library, which shares out


def images(shape: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """How many images of a batch [B, H, W, C] to lay side by side under a kernel [3, 3, C, F].

    1: none, since a row is long enough as it is, or cannot be made so with a part of the batch that
    divides it.
    """
    batch, width = shape[0], shape[2]
    channels, features = kernel[2:]
    if min(channels, features) < _FEW or max(channels, features) <= _FEW:
        return 1
    wanted = math.ceil(_ROW / (width * channels * features))
    return next((n for n in range(wanted, batch + 1) if batch % n == 0), 1)


def convolve(x: Array, kernel: Array, count: int) -> Array:
    """The convolution of x [B, H, W, C] with a kernel [3, 3, C, F], `count` images at a time.

    Zero outside each map; `count` divides B. Returns [B, H, W, F].
    """
    batch, height, width, channels = x.shape
    groups, wide = batch // count, width + 2
    x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    x = x.reshape(groups, count, height, wide, channels).swapaxes(1, 2)
    x = x.reshape(groups, height, count * wide, channels)
    layout = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    y = y.reshape(groups, height, count, wide, -1)[:, :, :, 1:-1].swapaxes(1, 2)
    return y.reshape(batch, height, width, -1)
