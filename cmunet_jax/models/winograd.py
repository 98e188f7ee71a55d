"""3×3 convolutions by Winograd's minimal filtering, F(2×2, 3×3): 16 products where 36 are meant.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), section 4.1. The map is
cut into tiles of 4×4 pixels that overlap by two; tile and kernel are transformed, multiplied point
by point over the channels (16 matrix products), and transformed back to 2×2 pixels. In exact
arithmetic it is the convolution. In float32 its rounding error is a few times that of the sum.

The transforms touch each map several times, so this pays where there are many channels a pixel.
Larger tiles save more products and lose digits: F(4×4, 3×3) was off by 1e-4 of the map's
deviation, F(2×2, 3×3) by 1e-5.

Layout is [B, H, W, C] with H and W even, kernels are [3, 3, C, F]; zero outside the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
_Matrix = tuple[tuple[float, ...], ...]

_TILE, _STEP = 4, 2
# Bᵀ, G and Aᵀ of the paper.
_DATA: _Matrix = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_FILTER: _Matrix = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_OUTPUT: _Matrix = ((1, 1, 1, 0), (0, 1, -1, -1))
# Turning a kernel by 180° reverses the columns of G, which is the same as this order of its rows.
_TURNED = (3, 1, 2, 0)


def convolve(x: Array, kernel: Array) -> Array:
    """The convolution of x [B, H, W, C] with kernel [3, 3, C, F]: [B, H, W, F]."""
    products = [jnp.matmul(t, k) for t, k in zip(_tiles(x), _kernels(kernel), strict=True)]
    return _untile(products, (*x.shape[:3], kernel.shape[3]))


def input_gradient(dy: Array, kernel: Array) -> Array:
    """The gradient [B, H, W, C] of its x, from dy [B, H, W, F].

    It is the convolution of dy with the kernel turned and its channels swapped, which costs no copy
    of the kernel here.
    """
    kernels = _kernels(kernel)
    turned = [kernels[_TILE * a + b] for a in _TURNED for b in _TURNED]
    across = (((1,), (1,)), ((), ()))
    products = [lax.dot_general(t, k, across) for t, k in zip(_tiles(dy), turned, strict=True)]
    return _untile(products, (*dy.shape[:3], kernel.shape[2]))


def kernel_gradient(x: Array, dy: Array) -> Array:
    """The gradient [3, 3, C, F] of its kernel, from x [B, H, W, C] and dy [B, H, W, F]."""
    b, h, w, f = dy.shape
    pixels = dy.reshape(b, h // _STEP, _STEP, w // _STEP, _STEP, f)
    rows = _transform(_columns(_OUTPUT), [pixels[:, :, i] for i in range(_STEP)])
    spread = [
        part.reshape(-1, f)
        for row in rows
        for part in _transform(_columns(_OUTPUT), [row[:, :, :, j] for j in range(_STEP)])
    ]
    over_tiles = (((0,), (0,)), ((), ()))
    products = [lax.dot_general(t, s, over_tiles) for t, s in zip(_tiles(x), spread, strict=True)]
    return _back(_columns(_FILTER), products)


def _tiles(x: Array) -> list[Array]:
    """Pixel (a, b) of all transformed tiles of x, row by row: 16 arrays [B·H/2·W/2, C]."""
    b, h, w, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = [
        lax.slice(padded, (0, i, 0, 0), (b, i + h - 1, w + 2, c), (1, _STEP, 1, 1))
        for i in range(_TILE)
    ]
    tiles = []
    for row in _transform(_DATA, rows):
        columns = [
            lax.slice(row, (0, 0, j, 0), (b, h // 2, j + w - 1, c), (1, 1, _STEP, 1))
            for j in range(_TILE)
        ]
        tiles += [part.reshape(-1, c) for part in _transform(_DATA, columns)]
    return tiles


def _kernels(kernel: Array) -> list[Array]:
    """The transformed kernel: 16 arrays [C, F]."""
    columns = [_transform(_FILTER, [kernel[i, j] for i in range(3)]) for j in range(3)]
    return [
        part
        for a in range(_TILE)
        for part in _transform(_FILTER, [columns[j][a] for j in range(3)])
    ]


def _untile(products: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """The map [B, H, W, F] of 16 products [B·H/2·W/2, F]."""
    b, h, w, f = shape
    maps = [p.reshape(b, h // _STEP, w // _STEP, f) for p in products]
    pairs = _back_parts(_OUTPUT, maps)
    # [B, H/2, 2, W/2, 2, F]
    return jnp.stack([jnp.stack(row, axis=3) for row in pairs], axis=2).reshape(shape)


def _back(matrix: _Matrix, parts: Sequence[Array]) -> Array:
    """The product matrix · parts · matrixᵀ of 4×4 parts, stacked along two new leading axes."""
    return jnp.stack([jnp.stack(row) for row in _back_parts(matrix, parts)])


def _back_parts(matrix: _Matrix, parts: Sequence[Array]) -> list[list[Array]]:
    columns = [
        _transform(matrix, [parts[_TILE * a + b] for a in range(_TILE)]) for b in range(_TILE)
    ]
    return [_transform(matrix, [column[i] for column in columns]) for i in range(len(matrix))]


def _columns(matrix: _Matrix) -> _Matrix:
    return tuple(zip(*matrix, strict=True))


def _transform(matrix: _Matrix, parts: Sequence[Array]) -> list[Array]:
    """The product matrix · parts, without the products by 0 and ±1 (XLA keeps those by 0)."""
    return [_combination(row, parts) for row in matrix]


def _combination(weights: Sequence[float], parts: Sequence[Array]) -> Array:
    total: Array | None = None
    for weight, part in zip(weights, parts, strict=True):
        if weight == 0:
            continue
        term = part if weight == 1 else -part if weight == -1 else part * weight
        total = term if total is None else total + term
    assert total is not None
    return total
