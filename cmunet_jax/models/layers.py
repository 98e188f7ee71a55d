"""The layers of the U-Net that Flax does not have in the form needed here.

`fast=True` takes a form that XLA compiles to quick code on CPU, where the stock gradients of max
pooling and of a convolution's kernel and the stock transposed convolution are several times slower.
Wide convolutions are Winograd's (`models.winograd`); narrow ones take images of the batch side by
side (`models.side_by_side`), else they would run on one core.
`fast=False` takes the textbook operation. Both have the same parameters, values and gradients
(tests: 1e-10 in float64). Convolving the halves of a concatenation apart was measured too: no
faster, so it is not here.

Parameters are float32; `dtype` is the type of the computation. Layout is [B, H, W, C].
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cmunet_jax.models import side_by_side, winograd

Array = jax.Array
Dtype = Any

_NHWC = ("NHWC", "HWIO", "NHWC")
he_normal = nn.initializers.he_normal()


class Conv(nn.Module):
    """Convolution of stride 1 that keeps the size: [B, H, W, C] to [B, H, W, features].

    Parameters are those of `flax.linen.Conv`: kernel [size, size, C, features] and bias.
    """

    features: int
    size: int = 3
    dtype: Dtype = jnp.float32
    fast: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, H, W, features]; zero outside the map."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", he_normal, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        convolve = _convolve_fast if self.fast and self.size == 3 else _convolve
        return convolve(x.astype(self.dtype), kernel) + bias.astype(self.dtype)


def _convolve(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_NHWC)


@jax.custom_vjp
def _convolve_fast(x: Array, kernel: Array) -> Array:
    if _minimal(x.shape, kernel):
        return lax.platform_dependent(x, kernel, cpu=winograd.convolve, default=_convolve)
    return _shared_out(x, kernel)


def _shared_out(x: Array, kernel: Array) -> Array:
    """The convolution, with images side by side where it would run on one core of a CPU."""
    count = side_by_side.images(x.shape, kernel.shape) if _own_form(x.shape, kernel) else 1
    if count == 1:
        return _convolve(x, kernel)
    wide = functools.partial(side_by_side.convolve, count=count)
    return lax.platform_dependent(x, kernel, cpu=wide, default=_convolve)


def _convolve_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve_fast(x, kernel), (x, kernel)


def _minimal(shape: tuple[int, ...], kernel: Array) -> bool:
    """Whether Winograd's products are worth their transforms: even sides and many channels."""
    even = shape[1] % 2 == 0 and shape[2] % 2 == 0
    return even and min(kernel.shape[2:]) >= _MANY and _own_form(shape, kernel)


def _own_form(shape: tuple[int, ...], kernel: Array) -> bool:
    """Whether a convolution may take a form of ours: one device, full precision, a known batch.

    Over several devices Winograd's would have to sum 16 parts of a kernel's gradient in place of 9,
    and images that lie side by side may be on different ones. A batch without a size is that of an
    exported program, whose kernels are constants: XLA would transform them while it compiles, which
    takes it a minute.
    """
    return isinstance(shape[0], int) and kernel.dtype.itemsize >= 4 and jax.device_count() == 1


def _turned(kernel: Array) -> Array:
    """The kernel under which dy is convolved to the gradient of x."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _convolve_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def turn(dy: Array, kernel: Array) -> Array:
        return _convolve(dy, _turned(kernel))

    def stock(x: Array, dy: Array) -> Array:
        return jax.vjp(lambda k: _convolve(x, k), kernel)[1](dy)[0]

    if _minimal(x.shape, kernel):
        return (
            lax.platform_dependent(dy, kernel, cpu=winograd.input_gradient, default=turn),
            lax.platform_dependent(x, dy, cpu=winograd.kernel_gradient, default=stock),
        )

    # Cutting a batch that is spread over devices would bring all of it to each of them.
    small = x.shape[1] < _LARGE or min(x.shape[-1], dy.shape[-1]) < _FEW
    if small or jax.device_count() > 1:
        dkernel = stock(x, dy)
    else:
        dkernel = lax.platform_dependent(x, dy, cpu=_kernel_gradient, default=stock)
    return _shared_out(dy, _turned(kernel)), dkernel


_convolve_fast.defvjp(_convolve_forward, _convolve_backward)

# Below these numbers of rows and channels the stock gradient is as quick, or quicker.
_LARGE, _FEW = 64, 64
_ROWS = 8
# From this number of channels on, coming and going, Winograd's algorithm is quicker.
_MANY = 128


def _kernel_gradient(x: Array, dy: Array) -> Array:
    """The gradient [3, 3, C, F] of a 3×3 kernel as matrix products over blocks of rows.

    The nine shifted copies of a block of x [B, H, W, C] lie side by side in the cache and are
    multiplied by the same block of dy [B, H, W, F] at once. Copies of the whole map, or the stock
    convolution with dy as its kernel, wait for memory.
    """
    b, h, w, c = x.shape
    rows = math.gcd(h, _ROWS)
    blocks = h // rows
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def add(total: Array, index: Array) -> tuple[Array, None]:
        image, top = index // blocks, index % blocks * rows
        block = lax.dynamic_slice(padded, (image, top, 0, 0), (1, rows + 2, w + 2, c))[0]
        out = lax.dynamic_slice(dy, (image, top, 0, 0), (1, rows, w, dy.shape[-1]))[0]
        shifted = [block[i : i + rows, j : j + w] for i in range(3) for j in range(3)]
        matrix = jnp.concatenate(shifted, axis=-1).reshape(rows * w, 9 * c)
        product = jnp.matmul(matrix.T, out.reshape(rows * w, -1), preferred_element_type=wide)
        return total + product, None

    wide = jnp.promote_types(x.dtype, jnp.float32)
    zero = jnp.zeros((9 * c, dy.shape[-1]), wide)
    total, _ = lax.scan(add, zero, jnp.arange(b * blocks))
    return total.reshape(3, 3, c, -1).astype(x.dtype)


class UpConv(nn.Module):
    """2×2 transposed convolution of stride 2: [B, H, W, C] to [B, 2H, 2W, features].

    The kernel [2, 2, C, features] has the layout of `flax.linen.ConvTranspose`, which correlates
    with the flipped kernel: output (2i+a, 2j+b) takes kernel[1-a, 1-b].
    """

    features: int
    dtype: Dtype = jnp.float32
    fast: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, 2H, 2W, features]."""
        kernel = self.param("kernel", he_normal, (2, 2, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.fast:
            y = lax.platform_dependent(x, kernel, tpu=_upconvolve, default=_upconvolve_product)
        else:
            y = _upconvolve(x, kernel)
        return y + bias.astype(self.dtype)


def _upconvolve(x: Array, kernel: Array) -> Array:
    return lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=_NHWC)


def _upconvolve_product(x: Array, kernel: Array) -> Array:
    """The same: windows do not overlap, so it is a matrix product a pixel, then depth-to-space.

    A TPU would copy the map for each of these transpositions, and has the stock form in one
    operation; its compiler counts 6 % fewer cycles for a whole step with that.
    """
    b, h, w, c = x.shape
    features = kernel.shape[-1]
    matrix = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(c, 4 * features)
    y = (x.reshape(-1, c) @ matrix).reshape(b, h, w, 2, 2, features)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, features)


def sites_of(active: Array, height: int) -> Array:
    """The sites of a map of `height` rows that lie in active patches.

    Args:
      active: bool [B, h, w], True where a patch is visible; h divides `height`.
      height: H of the map; its width is W = w · H / h.

    Returns:
      bool [B, H, W, 1].
    """
    times = height // active.shape[1]
    return jnp.repeat(jnp.repeat(active, times, axis=1), times, axis=2)[..., None]


def max_pool(x: Array, *, fast: bool = True) -> Array:
    """2×2 max pooling, [B, H, W, C] to [B, H/2, W/2, C]; H and W even.

    Where a window holds its maximum more than once, its first pixel gets the gradient (as in
    PyTorch), and a NaN is a maximum.
    """
    return _pool(x) if fast else nn.max_pool(x, (2, 2), (2, 2))


@jax.custom_vjp
def _pool(x: Array) -> Array:
    return _pool_forward(x)[0]


def _pool_forward(x: Array) -> tuple[Array, tuple[Array]]:
    """The maxima, and which pixel of each window won, 0 to 3 in reading order.

    JAX's own gradient of `max` looks for the pixels that equal the maximum. XLA may compute x a
    second time for that, in another fusion with other rounding, and then finds none: gradients of
    the encoder were off by a quarter for one size in float64 on CPU.
    """
    b, h, w, c = x.shape
    windows = x.reshape(b, h // 2, 2, w // 2, 2, c)
    best = windows[:, :, 0, :, 0]
    winner = jnp.zeros(best.shape, jnp.uint8)
    for pixel in (1, 2, 3):
        other = windows[:, :, pixel // 2, :, pixel % 2]
        better = (other > best) | jnp.isnan(other)
        best, winner = jnp.where(better, other, best), jnp.where(better, pixel, winner)
    return best, (winner,)


def _pool_backward(saved: tuple[Array], dy: Array) -> tuple[Array]:
    """Each pixel's share lies between zeros: pads fuse with what reads them on every device."""
    (winner,), zero = saved, jnp.zeros((), dy.dtype)
    dx = jnp.zeros((), dy.dtype)
    for pixel in range(4):
        row, column = pixel // 2, pixel % 2
        between = ((0, 0, 0), (row, 1 - row, 1), (column, 1 - column, 1), (0, 0, 0))
        dx = dx + lax.pad(jnp.where(winner == pixel, dy, 0), zero, between)
    return (dx,)


_pool.defvjp(_pool_forward, _pool_backward)


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
