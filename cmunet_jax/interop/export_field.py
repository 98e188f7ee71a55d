"""The field of view and the background of the `fixed` chain as operations that can be exported.

The counterpart of `cmunet_jax.data.field_of_view`, which uses OpenCV on the host and explains each
step; a test compares the two on real and on random images. Where OpenCV walks over pixels in
order, the same result is reached here by operations on the whole image.
"""

from __future__ import annotations

import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cmunet_jax.interop.export_resample import along_axes, fixed_matrix, indices

Array = jax.Array

WORKING_SIZE = 256  # pixels
_BLACK = 0.4
_NONE = (1 << 16) - 1  # above every label of WORKING_SIZE² pixels but the last
# OpenCV's 5×5 chamfer distance: steps in rows and columns, and their lengths in 1/65,536 pixel.
_CHAMFER = (((0, 1), 1.0), ((1, 1), 1.4), ((1, 2), 2.1969))
_ONE = 1 << 16


def detect(image: Array, *, darkness: float, min_area: float) -> Array:
    """The field of view of float32 [S, S] as bool [S, S]; see `data.field_of_view.detect`."""
    size = image.shape[0]
    shrink = fixed_matrix(size, WORKING_SIZE, cv2.INTER_AREA)
    small = median_5x5(along_axes(shrink, image, shrink))
    reach, quarter = WORKING_SIZE // 8, WORKING_SIZE // 4
    height = small - small.min()
    nearby = _windows(_windows(height, lax.max, -jnp.inf, reach, 0), lax.max, -jnp.inf, reach, 1)
    overall = jnp.median(height[quarter:-quarter, quarter:-quarter])
    black = _connected_to_edge(height < _BLACK * darkness * overall)
    surround = black | _strips(height < darkness * nearby, WORKING_SIZE // 10)
    field = convex_hull(largest_component(_open(~surround)))
    found = surround.any() & (field.mean() >= min_area)
    enlarge = fixed_matrix(WORKING_SIZE, size, cv2.INTER_LINEAR)
    full = along_axes(enlarge, field.astype(jnp.float32), enlarge) >= 0.5
    return jnp.where(found, full, True)


def median_5x5(image: Array) -> Array:
    """Median of float32 [H, W] over 5×5 pixels, edges repeated: `cv2.medianBlur`.

    By forgetting: of 14 values neither the smallest nor the largest can be the median of 25, so
    they are dropped and a new one is taken in, until one is left. Minima and maxima of whole
    images are quick everywhere; a sort of 25 values a pixel is not.
    """
    padded = jnp.pad(image, 2, mode="edge")
    height, width = image.shape
    shifts = [padded[i : i + height, j : j + width] for i in range(5) for j in range(5)]
    kept, waiting = shifts[:14], shifts[14:]
    while len(kept) > 1:
        for at in range(len(kept) - 1):  # the largest moves to the end, the smallest to the front
            low, high = jnp.minimum(kept[at], kept[at + 1]), jnp.maximum(kept[at], kept[at + 1])
            kept[at], kept[at + 1] = low, high
        for at in range(len(kept) - 2, 0, -1):
            low, high = jnp.minimum(kept[at - 1], kept[at]), jnp.maximum(kept[at - 1], kept[at])
            kept[at - 1], kept[at] = low, high
        kept = kept[1:-1] + waiting[:1]
        waiting = waiting[1:]
    return kept[0]


def _windows(image: Array, reduce, empty: float, reach: int, axis: int) -> Array:
    """`reduce` over 2·reach + 1 pixels along one axis; nothing lies outside of the image."""
    window, padding = [1, 1], [(0, 0), (0, 0)]
    window[axis], padding[axis] = 2 * reach + 1, (reach, reach)
    return lax.reduce_window(image, np.array(empty, image.dtype), reduce, window, (1, 1), padding)


def _open(region: Array) -> Array:
    pixels = region.astype(jnp.int32)
    for reduce, empty in ((lax.min, 1), (lax.max, 0)):
        for axis in (0, 1):
            pixels = _windows(pixels, reduce, empty, 1, axis)
    return pixels > 0


def _strips(dark: Array, widest: int) -> Array:
    strips = jnp.zeros_like(dark)
    for turns in range(4):
        turned = jnp.rot90(dark, turns)
        runs = lax.cummin(turned[: widest + 1].astype(jnp.int32), axis=0) > 0
        runs &= ~runs[-1]
        strips |= jnp.rot90(jnp.pad(runs, ((0, len(dark) - len(runs)), (0, 0))), -turns)
    return strips


def _least_of_runs(labels: Array, region: Array, axis: int) -> Array:
    """The least label of each unbroken run of `region` along one axis, at all of its pixels.

    The number of walls passed so far stands in front of the label, so one running maximum starts
    anew behind each wall.
    """
    walls = (~region).astype(jnp.int32)
    best = jnp.full_like(labels, 0)
    for reverse in (False, True):
        passed = lax.cumsum(walls, axis=axis, reverse=reverse) << 16
        running = lax.cummax(passed | (_NONE - labels), axis=axis, reverse=reverse)
        best = jnp.maximum(best, running & _NONE)
    return jnp.where(region, _NONE - best, _NONE)


def _flood(labels: Array, region: Array, *, diagonal: bool) -> Array:
    """Spreads the least label, int32 [N, N] in 0..65535, over each connected part of a region."""

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        before, _ = state
        new = _least_of_runs(_least_of_runs(before, region, 0), region, 1)
        if diagonal:
            around = _windows(_windows(new, lax.min, _NONE, 1, 0), lax.min, _NONE, 1, 1)
            new = jnp.where(region, around, _NONE)
        return new, jnp.any(new != before)

    labels = jnp.where(region, labels, _NONE)
    return lax.while_loop(lambda state: state[1], step, (labels, jnp.any(region)))[0]


def _connected_to_edge(region: Array) -> Array:
    count = len(region)
    at = indices(count)
    rim = (at == 0) | (at == count - 1)
    labels = jnp.where(rim[:, None] | rim[None], 0, _NONE)
    return region & (_flood(labels, region, diagonal=True) == 0)


def largest_component(region: Array) -> Array:
    """The largest 4-connected part of bool [N, N]; of equal ones the first in reading order."""
    order = jnp.arange(region.size, dtype=jnp.int32).reshape(region.shape)
    labels = _flood(order, region, diagonal=False)
    areas = jnp.zeros(region.size, jnp.int32).at[labels].add(region.astype(jnp.int32))
    return region & (labels == jnp.argmax(areas))


def convex_hull(region: Array) -> Array:
    """The filled convex hull of bool [N, N], as `cv2.fillConvexPoly` draws `cv2.convexHull`.

    Spans of rows between the left and the right chain of the hull, and the pixels of its outline
    where that is flatter than 45°, which a span may miss.
    """
    return _spans(region) | _flat_outline(region.T).T


def _spans(region: Array) -> Array:
    columns = indices(len(region))
    left, right, present = _ends(region)
    first = _chain(left, present, sign=-1)
    last = _chain(right, present, sign=1)
    steep = jnp.abs(first.rise) <= first.run
    start = jnp.where(steep, first.from_the_least(), first.rounded())
    inside = (columns >= start[:, None]) & (columns <= last.rounded()[:, None])
    return inside & (first.covered & last.covered)[:, None]


def _flat_outline(region: Array) -> Array:
    """Outline pixels of edges with at most one row a column; rows and columns are exchanged."""
    at = indices(len(region))
    outline = jnp.zeros_like(region)
    low, high, present = _ends(region)
    for ends, sign in ((low, -1), (high, 1)):
        chain = _chain(ends, present, sign=sign)
        flat = chain.covered & (jnp.abs(chain.rise) <= chain.run)
        outline |= flat[:, None] & (at == chain.along()[:, None])
    return outline


def _ends(region: Array) -> tuple[Array, Array, Array]:
    """First and last True of each row, int32 [N], and whether there is any."""
    count = len(region)
    first = jnp.argmax(region, 1).astype(jnp.int32)
    last = count - 1 - jnp.argmax(region[:, ::-1], 1).astype(jnp.int32)
    return first, last, region.any(1)


class _Chain:
    """One side of a hull: for each row the edge (start, rise over run) that crosses it."""

    def __init__(self, start: Array, rise: Array, run: Array, step: Array, covered: Array):
        self.start, self.rise, self.run, self.step = start, rise, run, step
        self.covered = covered

    def rounded(self) -> Array:
        """In 1/65,536 pixel like OpenCV's spans, one half upwards."""
        slope = lax.div(2 * self.rise * _ONE + self.run, 2 * self.run)
        return (self.start * _ONE + slope * self.step + _ONE // 2) >> 16

    def along(self) -> Array:
        """Like OpenCV's lines from their start: one half stays."""
        moved = -jnp.floor_divide(self.run - 2 * jnp.abs(self.rise) * self.step, 2 * self.run)
        return self.start + jnp.sign(self.rise) * moved

    def from_the_least(self) -> Array:
        """Like lines that start at their least end: one half downwards."""
        doubled = 2 * self.rise * self.step - self.run
        return self.start - jnp.floor_divide(-doubled, 2 * self.run)


def _chain(ends: Array, present: Array, *, sign: int) -> _Chain:
    """The convex chain through the outermost `ends` [N] of the rows that are `present`.

    A row is a vertex where every slope behind it is smaller than every slope before it. Slopes of
    pixels differ by far more than float32 resolves.
    """
    count = len(ends)
    at = indices(count)
    slopes = (sign * (ends[None] - ends[:, None])).astype(jnp.float32)
    slopes = slopes / jnp.maximum(at[None] - at[:, None], 1)
    pairs = (at[None] > at[:, None]) & present[None] & present[:, None]
    ahead = jnp.where(pairs, slopes, -jnp.inf).max(1)
    behind = jnp.where(pairs, slopes, jnp.inf).min(0)
    vertex = present & (ahead < behind)
    start = lax.cummax(jnp.where(vertex, at, -1))
    stop = lax.cummin(jnp.where(vertex, at, count), reverse=True)
    covered = (start >= 0) & (stop < count)
    start, stop = jnp.maximum(start, 0), jnp.minimum(stop, count - 1)
    run = jnp.maximum(stop - start, 1)
    return _Chain(ends[start], ends[stop] - ends[start], run, at - start, covered)


def background(image: Array, field: Array, *, sigma: float) -> Array:
    """Local mean of float32 [S, S] inside the field; see `data.field_of_view.background`."""
    size = image.shape[0]
    weight = field.astype(jnp.float32)
    blur: np.ndarray = np.eye(size, dtype=np.float32)
    if size > WORKING_SIZE:
        blur = fixed_matrix(size, WORKING_SIZE, cv2.INTER_AREA)
        sigma = sigma * WORKING_SIZE / size
    # One axis with all of OpenCV's choices: length of the kernel, rounding, mirrored border.
    taps = int(np.rint(sigma * 8 + 1)) | 1
    kernel = cv2.getGaussianKernel(taps, sigma, cv2.CV_32F)
    blur = cv2.sepFilter2D(
        blur, cv2.CV_32F, np.ones(1, np.float32), kernel, borderType=cv2.BORDER_REFLECT
    )
    blurred, support = (along_axes(blur, x, blur) for x in (image * weight, weight))
    local = blurred / jnp.maximum(support, 1e-6)
    if size > WORKING_SIZE:
        enlarge = fixed_matrix(WORKING_SIZE, size, cv2.INTER_LINEAR)
        local = along_axes(enlarge, local, enlarge)
    return local


def fade(field: Array, valid: Array, *, width: float) -> Array:
    """Weights in 0..1, float32 [S, S], towards the field's edge; see `data.field_of_view.fade`.

    Distances count as far as they matter, 1.5 `width`, and that bounds the steps of a path.
    """
    collimated = valid & ~field
    farthest = math.ceil(1.5 * width) + 1
    size = field.shape[0]
    steps = [
        (i, j, round(length * _ONE))
        for step, length in _CHAMFER
        for i, j in {
            (a * p, b * q) for a, b in (step, step[::-1]) for p in (1, -1) for q in (1, -1)
        }
    ]

    def relax(_: int, distance: Array) -> Array:
        padded = jnp.pad(distance, 2, constant_values=farthest * _ONE)
        for i, j, length in steps:
            moved = padded[2 + i : 2 + i + size, 2 + j : 2 + j + size] + length
            distance = jnp.minimum(distance, moved)
        return distance

    start = jnp.where(collimated, 0, farthest * _ONE).astype(jnp.int32)
    distance = lax.fori_loop(0, farthest, relax, start).astype(jnp.float32) / _ONE
    weight = jnp.clip(distance / width - 0.5, 0, 1)
    return jnp.where(collimated.any(), weight, 1) * valid
