"""Inpainting of dark corners in the `paper` chain as operations that can be exported.

Telea's method (J. Graphics Tools 9(1), 2004) as OpenCV 5 does it: a front marches into the region,
one pixel after another from a queue, and each pixel that it reaches becomes a weighted sum of the
known pixels around it. When the front comes does not depend on grey levels, so the march is done
first and leaves the order in which the pixels are filled. The order must be OpenCV's: each filled
pixel goes into those after it, and steps of one grey level along the gradient grow on the way.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cmunet_jax.interop.export_resample import Weights, indices

Array = jax.Array

RADIUS = 3  # pixels
_BORDER = RADIUS + 1  # pixels around everything, which are read but never entered
_FAR = 1e6  # the front's time where it never comes
_LATER = np.int32(2**31 - 1)  # the turn of pixels that the front has not reached
_NEIGHBOURS = ((-1, 0), (0, -1), (1, 0), (0, 1))  # in OpenCV's order
_DOWN, _RIGHT = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1].astype(np.float32)
_AWAY = _DOWN**2 + _RIGHT**2
_DISC = (_AWAY > 0) & (_AWAY <= RADIUS**2)
_CENTRE = np.pad([[True]], 2)  # of the 5 × 5 pixels that a step of the march looks at
_PLACES = tuple(np.roll(_CENTRE, step, (0, 1)) for step in _NEIGHBOURS)


class _Queue(NamedTuple):
    """The front on its way; P = N + 2 * _BORDER."""

    time: Array  # float32: when the front arrives
    turn: Array  # int32: the how-manieth; -1 where it never goes, _LATER where it was not yet
    waiting: Array  # float32: `time` of the pixels in the queue, infinite elsewhere
    first: Array  # float32 [P]: least `waiting` of each row
    first_turn: Array  # int32 [P]: the earliest turn with that
    turns: Array  # int32 scalar: how many so far


def inpaint(image: Array, region: Array, side: Array) -> Array:
    """Fills a region from its surround; not to be batched, which would copy all for each pixel.

    Args:
      image: float32 [N, N], whole numbers in 0..255.
      region: bool [N, N], the pixels to fill; all inside of the first `side` rows and columns.
      side: int32 scalar, 1..N; the image is its first `side` rows and columns.

    Returns:
      float32 [N, N], whole numbers in 0..255.
    """
    return lax.cond(region.any(), _inpaint, lambda image, *_: image, image, region, side)


def _inpaint(image: Array, region: Array, side: Array) -> Array:
    unknown, image = jnp.pad(region, _BORDER), jnp.pad(image, _BORDER)
    at = indices(unknown.shape[0]) - _BORDER
    within = (at >= 0) & (at < side)
    within = within[:, None] & within[None]
    band = _beside(unknown) & ~unknown & within
    still = jnp.where(band, jnp.float32(0), _FAR)
    outside = _march(still, band, _near(unknown) & ~unknown & ~band & within).time
    outside = jnp.where(outside < _FAR, -outside, outside)
    marched = _march(outside, band, unknown)
    places = jnp.zeros(image.size, jnp.int32)
    turns = jnp.where(unknown, marched.turn, _LATER).reshape(-1)
    places = places.at[turns].set(indices(image.size), mode="drop")
    begin = band.sum(dtype=jnp.int32)

    def fill(turn: Array, image: Array) -> Array:
        place = places[turn]
        row, column = place // len(image), place % len(image)
        value = _telea(image, marched, row, column, side + _BORDER - 1)
        return lax.dynamic_update_slice(image, value[None, None], (row, column))

    image = lax.fori_loop(begin, marched.turns, fill, image)
    return image[_BORDER:-_BORDER, _BORDER:-_BORDER]


def _beside(where: Array) -> Array:
    """Whether one of the four neighbours is True."""
    padded, (height, width) = jnp.pad(where, 1), where.shape
    moved = [padded[1 + i : 1 + i + height, 1 + j : 1 + j + width] for i, j in _NEIGHBOURS]
    return moved[0] | moved[1] | moved[2] | moved[3]


def _near(where: Array) -> Array:
    """Whether a pixel of the square around it is True, as far as the weights look."""
    for axis in (0, 1):
        window, padding = [1, 1], [(0, 0), (0, 0)]
        window[axis], padding[axis] = 2 * RADIUS + 1, (RADIUS, RADIUS)
        where = lax.reduce_window(where, np.array(False), lax.bitwise_or, window, (1, 1), padding)
    return where


def _march(time: Array, band: Array, region: Array) -> _Queue:
    """Lets the front go from the band through a region, one pixel after another.

    Args:
      time: float32 [P, P], that of the known pixels.
      band: bool [P, P], where the front starts, in the order of reading.
      region: bool [P, P], where it goes; nothing within `_BORDER` of the edge.
    """
    start = jnp.cumsum(band.reshape(-1), dtype=jnp.int32).reshape(band.shape) - 1
    turn = jnp.where(band, start, jnp.where(region, _LATER, -1))
    waiting = jnp.where(band, jnp.float32(0), jnp.inf)
    count = band.sum(dtype=jnp.int32)
    time = jnp.where(region, _FAR, time)
    queue = _Queue(time, turn, waiting, *_firsts(waiting, turn), count)
    going = lambda queue: queue.first.min() < jnp.inf  # noqa: E731
    return lax.while_loop(going, _pass_one, queue)


def _firsts(waiting: Array, turn: Array) -> tuple[Array, Array]:
    """The least time of each row, and the earliest turn that has it."""
    first = waiting.min(1)
    return first, jnp.where(waiting == first[:, None], turn, _LATER).min(1)


def _pass_one(queue: _Queue) -> _Queue:
    """Takes the first pixel from the queue; its unknown neighbours get their times and join."""
    size = len(queue.time)
    turn = jnp.where(queue.first == queue.first.min(), queue.first_turn, _LATER).min()
    row = jnp.where(queue.first_turn == turn, indices(size), size).min()
    column = jnp.where(queue.turn[row] == turn, indices(size), size).min()
    corner = row - 2, column - 2
    cut = [lax.dynamic_slice(array, corner, (5, 5)) for array in queue[:3]]
    # Behind a branch nothing is read any more, so that the arrays are changed where they lie;
    # XLA would copy them for each pixel otherwise.
    reached = jnp.stack([cut[1][2 + i, 2 + j] == _LATER for i, j in _NEIGHBOURS])
    around, count, corner = lax.cond(
        reached.any(), _reach, _leave, cut, reached, queue.turns, corner
    )
    arrays = [
        lax.dynamic_update_slice(array, new, corner)
        for array, new in zip(queue[:3], around, strict=True)
    ]
    rows = [lax.dynamic_slice(array, (corner[0] + 1, 0), (3, size)) for array in arrays[:0:-1]]
    first, first_turn = _firsts(*rows)
    time, turns, waiting = arrays
    return _Queue(
        time=time,
        turn=turns,
        waiting=waiting,
        first=lax.dynamic_update_slice(queue.first, first, (corner[0] + 1,)),
        first_turn=lax.dynamic_update_slice(queue.first_turn, first_turn, (corner[0] + 1,)),
        turns=count,
    )


_Around = tuple[list[Array], Array, tuple[Array, Array]]


def _leave(cut: list[Array], reached: Array, count: Array, corner: tuple[Array, Array]) -> _Around:
    """What changes where a pixel without unknown neighbours leaves the queue."""
    del reached
    time, turn, waiting = cut
    waiting = jnp.where(_CENTRE, jnp.inf, waiting)
    return [time, turn, waiting], count, corner


def _reach(cut: list[Array], reached: Array, count: Array, corner: tuple[Array, Array]) -> _Around:
    """What changes around a pixel that leaves the queue; its neighbours join in order."""
    time, turn, waiting = cut
    waiting = jnp.where(_CENTRE, jnp.inf, waiting)
    turns = count + jnp.cumsum(reached, dtype=jnp.int32) - reached
    new = [time, turn, waiting]
    for n, (i, j) in enumerate(_NEIGHBOURS):
        beside = [
            (time[2 + i + k, 2 + j + l], turn[2 + i + k, 2 + j + l] != _LATER)
            for k, l in _NEIGHBOURS  # noqa: E741
        ]
        with jax.enable_x64(True):
            arrival = _arrival(*beside)
        here = reached[n] & _PLACES[n]
        new = [
            jnp.where(here, x, old)
            for x, old in zip((arrival, turns[n], arrival), new, strict=True)
        ]
    return new, count + reached.sum(dtype=jnp.int32), corner


def _arrival(*beside: tuple[Array, Array]) -> Array:
    """First-order arrival time from (time, known) of the neighbours up, left, down and right."""

    def solve(a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
        (x, x_known), (y, y_known) = a, b
        x, y = x.astype(jnp.float64), y.astype(jnp.float64)
        apart = x - y
        both = (x + y + jnp.sqrt(jnp.maximum(2 - apart * apart, 0))) * 0.5
        both = jnp.where(jnp.abs(apart) >= 1, 1 + jnp.minimum(x, y), both)
        one = 1 + jnp.where(x_known, x, jnp.where(y_known, y, jnp.minimum(x, y)))
        return jnp.where(x_known & y_known, both, one).astype(jnp.float32)

    up, left, down, right = beside
    pairs = [solve(up, left), solve(down, left), solve(up, right), solve(down, right)]
    return jnp.minimum(jnp.minimum(pairs[0], pairs[1]), jnp.minimum(pairs[2], pairs[3]))


def _one_sided(before: tuple[Array, Array], after: tuple[Array, Array], here: Array) -> Array:
    """The derivative from the neighbours that are known."""
    (x, x_known), (y, y_known) = before, after
    return jnp.where(
        y_known,
        jnp.where(x_known, (y - x) * 0.5, y - here),
        jnp.where(x_known, here - x, 0.0),
    )


def _telea(image: Array, marched: _Queue, row: Array, column: Array, last: Array) -> Array:
    """Weighted mean over the disc and a step along the weighted gradient, in 0..255.

    Args:
      image: float32 [P, P], filled up to the turn before.
      marched: the march, which is over.
      row: int32 scalar, the pixel's.
      column: int32 scalar, the pixel's.
      last: int32 scalar, of rows and of columns.
    """
    reach = RADIUS + 1  # gradients look one pixel further
    values, time, turn = (
        lax.dynamic_slice(array, (row - reach, column - reach), (2 * reach + 1,) * 2)
        for array in (image, marched.time, marched.turn)
    )
    known, own = turn < turn[reach, reach], time[reach, reach]
    beside = [(time[reach + i, reach + j], known[reach + i, reach + j]) for i, j in _NEIGHBOURS]
    up, left, down, right = beside
    slope = _one_sided(up, down, own), _one_sided(left, right, own)
    at = [start + indices(2 * RADIUS + 1) - RADIUS for start in (row, column)]
    inside = [(places >= _BORDER) & (places <= last) for places in at]
    plain = lambda array, i, j: array[1 + i : i - 1 or None, 1 + j : j - 1 or None]  # noqa: E731

    def value(down: int, right: int, *, end: int = 2) -> Array:
        """Grey levels [7, 7] that lie so many pixels from those of the disc.

        OpenCV (5.0) reads one pixel further in: along the axis `end` at the last pixel, along the
        others at the first.
        """
        read = values
        for axis, step in enumerate((down, right)):
            bent, away = (at[axis] == last, -1) if axis == end else (at[axis] == _BORDER, 1)
            further, usual = (
                lax.slice_in_dim(read, 1 + by, len(values) - 1 + by, axis=axis)
                for by in (step + away, step)
            )
            read = jnp.where(jnp.expand_dims(bent, 1 - axis), further, usual)
        return read

    here = value(0, 0)
    across = _gradient(
        (value(0, -1), plain(known, 0, -1)),
        here,
        (value(0, 1, end=1), plain(known, 0, 1)),
        value(0, 0, end=1),
    )
    downwards = _gradient(
        (value(-1, 0), plain(known, -1, 0)),
        here,
        (value(1, 0, end=0), plain(known, 1, 0)),
        value(0, 0, end=0),
    )
    used = plain(known, 0, 0) & inside[0][:, None] & inside[1][None] & _DISC
    near = np.float32(1 / np.maximum(_AWAY * np.sqrt(_AWAY, dtype=np.float64), 1))
    with jax.enable_x64(True):
        level = _rounded(1 / (1 + _exact(jnp.abs(plain(time, 0, 0) - own))))
        towards = _product(-_RIGHT, slope[1]) + _product(-_DOWN, slope[0])
        towards = jnp.where(jnp.abs(towards) <= 0.01, np.float32(1e-6), towards)
        weight = jnp.where(used, jnp.abs(near * level * towards), 0)
        total = _in_turn(weight) + np.float32(1e-20)
        mean = _in_turn(_product(weight, plain(values, 0, 0))) / total
        step_x = _in_turn(_product(weight, across * _RIGHT))
        step_y = _in_turn(_product(weight, downwards * _DOWN))
        length = _rounded(jnp.sqrt(_exact(_product(step_x, step_x) + _product(step_y, step_y))))
        made = mean + (step_x + step_y) / (length + np.float32(1e-20))
    # OpenCV adds 0.5 and rounds one half to the even number.
    whole = made == jnp.floor(made)
    return jnp.clip(jnp.where(whole, 2 * jnp.floor((made + 1) / 2), jnp.ceil(made)), 0, 255)


def _gradient(
    before: tuple[Array, Array], here: Array, after: tuple[Array, Array], ahead: Array
) -> Array:
    """Differences of grey levels, from (level, known) on both sides."""
    (low, low_known), (high, high_known) = before, after
    two_sided = jnp.where(low_known, (high - low) * 2, high - here)
    return jnp.where(high_known, two_sided, jnp.where(low_known, ahead - low, 0.0))


def _exact(x: Weights) -> Array:
    return jnp.asarray(x, jnp.float64)


def _rounded(x: Array) -> Array:
    return x.astype(jnp.float32)


def _product(a: Weights, b: Array) -> Array:
    """float32 of float32, rounded before anything is added."""
    return _rounded(_exact(a) * _exact(b))


def _in_turn(terms: Array) -> Array:
    """Sum of float32 [7, 7] over the disc, one after another as OpenCV adds them."""
    first, *others = np.argwhere(_DISC)
    return functools.reduce(lambda total, at: total + terms[*at], others, terms[*first])
