"""Inpainting of dark corners in the `paper` chain as operations that can be exported.

Telea's method (J. Graphics Tools 9(1), 2004): a front marches into the region, and each pixel that
it reaches becomes a weighted sum of the known pixels around it. OpenCV takes the front's pixels
one at a time from a queue. Here all pixels within `STEP` of the first are taken at once, which is
group marching (Kim, SIAM J. Sci. Comput. 23(1), 2001): the same formula, and OpenCV's conduct at
the borders, but pixels of one group do not see each other. What that changes is measured in
docs/export.md.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cmunet_jax.interop.export_resample import indices

Array = jax.Array

RADIUS = 3  # pixels
STEP = 0.5  # pixels of the front's way that are taken at once
_AT_ONCE = 256  # pixels computed together
_FAR = 1e6  # the front's time where it never comes
_DISC = tuple(
    (i, j)
    for i in range(-RADIUS, RADIUS + 1)
    for j in range(-RADIUS, RADIUS + 1)
    if 0 < i * i + j * j <= RADIUS * RADIUS
)
_NEIGHBOURS = ((-1, 0), (0, -1), (1, 0), (0, 1))


class _Front(NamedTuple):
    """Everything has a border of one pixel, as in OpenCV: [N + 2, N + 2]."""

    image: Array  # float32, whole numbers
    unknown: Array  # bool
    band: Array  # bool: where the front is
    passed: Array  # bool: the front was there
    time: Array  # float32: when the front arrives; negative outside of the region


def inpaint(image: Array, region: Array, side: Array) -> Array:
    """Fills a region from its surround.

    Args:
      image: float32 [N, N], whole numbers in 0..255.
      region: bool [N, N], the pixels to fill; all inside of the first `side` rows and columns.
      side: int32 scalar, 1..N; the image is its first `side` rows and columns.

    Returns:
      float32 [N, N], whole numbers in 0..255.
    """
    unknown, image = jnp.pad(region, 1), jnp.pad(image, 1)
    at = indices(unknown.shape[0])
    within = (at >= 1) & (at <= side)
    within = within[:, None] & within[None]
    band = _beside(unknown) & ~unknown & within
    nowhere, time = jnp.zeros_like(unknown), _times_outside(unknown, band, within)
    front = _Front(image, unknown, band, nowhere, time)

    def march(front: _Front) -> _Front:
        candidates = _reached(front)
        return lax.cond(candidates.any(), _fill, _advance, front, candidates, side)

    def going(front: _Front) -> Array:
        return (front.band.any() | _reached(front).any()) & region.any()

    return lax.while_loop(going, march, front).image[1:-1, 1:-1]


def _beside(where: Array) -> Array:
    """Whether one of the four neighbours is True."""
    padded, (height, width) = jnp.pad(where, 1), where.shape
    moved = [padded[1 + i : 1 + i + height, 1 + j : 1 + j + width] for i, j in _NEIGHBOURS]
    return moved[0] | moved[1] | moved[2] | moved[3]


def _reached(front: _Front) -> Array:
    """Unknown pixels that the front has come to."""
    return _beside(front.passed) & front.unknown


def _advance(front: _Front, candidates: Array, side: Array) -> _Front:
    """Passes the pixels of the band at which the front arrives next."""
    del candidates, side
    first = jnp.where(front.band, front.time, _FAR).min()
    group = front.band & (front.time <= first + STEP)
    return front._replace(band=front.band & ~group, passed=front.passed | group)


def _times_outside(unknown: Array, band: Array, within: Array) -> Array:
    """Negative distances from the region as far as the weights look."""
    near = unknown
    for axis in (0, 1):
        window, padding = [1, 1], [(0, 0), (0, 0)]
        window[axis], padding[axis] = 2 * RADIUS + 1, (RADIUS, RADIUS)
        near = lax.reduce_window(near, np.array(False), lax.bitwise_or, window, (1, 1), padding)
    near &= ~unknown & within
    time = jnp.where(band, 0.0, _FAR)
    for _ in range(2 * RADIUS + 1):
        padded, size = jnp.pad(time, 1, constant_values=_FAR), time.shape[0]
        beside = [padded[1 + i : 1 + i + size, 1 + j : 1 + j + size] for i, j in _NEIGHBOURS]
        up, left, down, right = ((x, x < _FAR) for x in beside)
        time = jnp.where(near & ~band, jnp.minimum(time, _arrival(up, left, down, right)), time)
    return jnp.where(band, 0.0, jnp.where(near & (time < _FAR), -time, _FAR))


def _arrival(*beside: tuple[Array, Array]) -> Array:
    """First-order arrival time from (time, known) of the neighbours up, left, down and right."""

    def solve(a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
        (x, x_known), (y, y_known) = a, b
        apart = x - y
        both = (x + y + jnp.sqrt(jnp.maximum(2 - apart * apart, 0))) * 0.5
        both = jnp.where(jnp.abs(apart) >= 1, 1 + jnp.minimum(x, y), both)
        one = 1 + jnp.where(x_known, x, jnp.where(y_known, y, jnp.minimum(x, y)))
        return jnp.where(x_known & y_known, both, one)

    up, left, down, right = beside
    pairs = [solve(up, left), solve(down, left), solve(up, right), solve(down, right)]
    return jnp.minimum(jnp.minimum(pairs[0], pairs[1]), jnp.minimum(pairs[2], pairs[3]))


def _fill(front: _Front, candidates: Array, side: Array) -> _Front:
    """Computes up to `_AT_ONCE` of the candidates, which join the band."""
    size = front.image.shape[0]
    (flat,) = jnp.nonzero(candidates.reshape(-1), size=_AT_ONCE, fill_value=size * size)
    row, column = flat // size, flat % size

    def read(array: Array, i: int, j: int) -> Array:
        return array.at[row + i, column + j].get(mode="clip")

    beside = [(read(front.time, i, j), ~read(front.unknown, i, j)) for i, j in _NEIGHBOURS]
    time = _arrival(*beside)
    up, left, down, right = beside
    slope = _one_sided(up, down, time), _one_sided(left, right, time)
    value = _telea(front, row, column, time, slope, side)
    put = lambda array, what: array.at[row, column].set(what, mode="drop")  # noqa: E731
    return front._replace(
        image=put(front.image, value),
        unknown=put(front.unknown, False),
        band=put(front.band, True),
        time=put(front.time, time),
    )


def _one_sided(before: tuple[Array, Array], after: tuple[Array, Array], here: Array) -> Array:
    """The derivative from the neighbours that are known."""
    (x, x_known), (y, y_known) = before, after
    return jnp.where(
        y_known,
        jnp.where(x_known, (y - x) * 0.5, y - here),
        jnp.where(x_known, here - x, 0.0),
    )


def _telea(front: _Front, row: Array, column: Array, time: Array, slope, side: Array) -> Array:
    """Weighted means over the disc and steps along the weighted gradient, in 0..255."""
    i, j = (np.array(axis, np.int32)[:, None] for axis in zip(*_DISC, strict=True))
    k, l = row[None] + i, column[None] + j  # noqa: E741 (OpenCV's names of a neighbour)
    read = lambda array, a, b: array.at[a, b].get(mode="clip")  # noqa: E731
    known = lambda a, b: ~read(front.unknown, a, b)  # noqa: E731
    inside = (k >= 1) & (l >= 1) & (k <= side) & (l <= side) & known(k, l)
    # OpenCV (5.0) reads one pixel further in at the first column and at the last row and column.
    km, lm = k, l + (l == 1)
    kp, lp = k - (k == side), l - (l == side)

    def gradient(before, here, after, ahead, is_before, is_after):
        two_sided = jnp.where(is_before, (after - before) * 2, after - here)
        return jnp.where(is_after, two_sided, jnp.where(is_before, ahead - before, 0.0))

    value = lambda a, b: read(front.image, a, b)  # noqa: E731
    here = value(km, lm)
    across = gradient(
        value(km, lm - 1), here, value(km, lp + 1), value(km, lp), known(k, l - 1), known(k, l + 1)
    )
    down = gradient(
        value(km - 1, lm), here, value(kp + 1, lm), value(kp, lm), known(k - 1, l), known(k + 1, l)
    )
    away = (i * i + j * j).astype(np.float32)
    near = np.float32(1) / (away * np.sqrt(away))
    level = 1 / (1 + jnp.abs(read(front.time, k, l) - time[None]))
    towards = -i * slope[0][None] - j * slope[1][None]
    weight = jnp.abs(near * level * jnp.where(jnp.abs(towards) <= 0.01, 1e-6, towards))
    weight = jnp.where(inside, weight, 0)
    total = weight.sum(0) + 1e-20
    mean = (weight * here).sum(0) / total
    step_x, step_y = (weight * across * j).sum(0), (weight * down * i).sum(0)
    step = (step_x + step_y) / (jnp.sqrt(step_x * step_x + step_y * step_y) + 1e-20)
    return jnp.clip(jnp.rint(mean + step + 0.5), 0, 255)
