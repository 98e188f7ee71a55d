"""From native frames to the network's input, and back, as operations that can be exported.

The counterpart of `cmunet_jax.data.preprocessing`, which works on the host with OpenCV, SciPy and
Pillow. Height and width may be unknown until the exported program runs; the square that the network
sees is not. Everything that depends on the size only is a matrix of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cmunet_jax.interop import export_field, export_inpaint, export_resample
from cmunet_jax.interop.export_resample import along_axes, indices

Array = jax.Array

VERSIONS = {"paper": 1, "fixed": 1}
"""Of `data.preprocessing.VERSIONS`: those that this module follows."""
# Ten times that of the host's chain: resampling by products of matrices leaves rounding of a few
# 1e-6 in a constant frame, which OpenCV's does not, and no angiogram has so little contrast.
_NEUTRAL_MARGIN = 1e-5
_CORNER, _DARK, _MIN_DARK_PIXELS = 0.3, 30, 100
_SIGMA, _AMOUNT = 60, 3


def network_input(frames: Array, is_8bit: Array, options: Mapping[str, Any]) -> Array:
    """Prepares grey frames.

    Args:
      frames: float32 [B, H, W], finite; any of the three may be symbolic.
      is_8bit: bool scalar, whether the levels are those of 8-bit images, which `paper` takes as
        they are; it maps all others from their minimum and maximum to 0..255.
      options: `Preprocessing.to_dict()`.

    Returns:
      float32 [B, S, S], what `Preprocessing.apply(frame).float()` gives.
    """
    if options["name"] == "fixed":
        rows, columns, cover = _window_of(frames, options["size"])
        return jax.vmap(lambda frame: _fixed(frame, rows, columns, cover, options))(frames)
    reach = options["centre_crop"]
    side = _side(frames, options)
    blur = export_resample.reflected_gaussian(reach, side, sigma=_SIGMA, truncate=4)
    shrink = export_resample.pillow_bicubic(
        indices(options["size"]), indices(reach), inputs=side, outputs=options["size"]
    )
    cut = [(length - side) // 2 + indices(reach) for length in _lengths(frames)]
    kept = indices(reach) < side
    inside = kept[:, None] & kept[None]

    def crop(frame: Array) -> Array:
        levels = _to_8bit(frame, is_8bit)
        return levels.at[cut[0][:, None], cut[1][None]].get(mode="clip") * inside

    def prepare(filled: Array) -> Array:
        sharp = _standardise(filled, inside, blur)
        return _coded(along_axes(shrink, sharp, shrink))

    # Pixel after pixel: frames next to each other would wait for the one with most to fill.
    fill = lambda image: _inpaint_corners(image, inside, side)  # noqa: E731
    return jax.vmap(prepare)(lax.map(fill, jax.vmap(crop)(frames)))


def restore(margins: Array, frames: Array, options: Mapping[str, Any]) -> tuple[Array, Array]:
    """Brings what the network says back to the frames: `Preprocessing.restore`.

    Args:
      margins: float32 [B, S, S].
      frames: as they were given to `network_input`.
      options: `Preprocessing.to_dict()`.

    Returns:
      float32 [B, H, W], and bool [H, W], where the network has seen the frames.
    """
    side, samples = _side(frames, options), indices(options["size"])
    axes, seen = [], []
    for length, count in zip(_lengths(frames), frames.shape[1:], strict=True):
        # Centred; a window larger than the frame begins before it.
        first = jnp.where(side > length, -((side - length) // 2), (length - side) // 2)
        places = indices(count) - first
        size = jnp.asarray(options["size"])
        smaller = export_resample.area(places, samples, inputs=size, outputs=side)
        larger = export_resample.linear(places, samples, inputs=size, outputs=side)
        axes.append(jnp.where(side < options["size"], smaller, larger))
        seen.append((places >= 0) & (places < side))
    native = jax.vmap(lambda margin: along_axes(axes[0], margin, axes[1]))(margins)
    return native, seen[0][:, None] & seen[1][None]


def _lengths(frames: Array) -> list[Array]:
    """Height and width as int32 scalars."""
    return [jnp.asarray(length, jnp.int32) for length in frames.shape[1:]]


def _side(frames: Array, options: Mapping[str, Any]) -> Array:
    """The side of the window in native pixels."""
    height, width = _lengths(frames)
    if options["name"] == "fixed":
        return jnp.maximum(height, width)
    return jnp.minimum(jnp.minimum(height, width), options["centre_crop"])


def _window_of(frames: Array, size: int) -> tuple[Array, Array, Array]:
    """Weights of rows and of columns from a frame to its padded square, and bool [S, S] inside."""
    lengths = _lengths(frames)
    side = jnp.maximum(*lengths)
    places = indices(size)
    axes, covers = [], []
    for length, count in zip(lengths, frames.shape[1:], strict=True):
        samples = indices(count) + (side - length) // 2
        wide = jnp.asarray(size)
        shrunk = export_resample.area(places, samples, inputs=side, outputs=wide, repeat_ends=True)
        enlarged = export_resample.cubic(places, samples, inputs=side, outputs=wide)
        axes.append(jnp.where(side >= size, shrunk, enlarged))
        covers.append(_cover(places, samples, side, size))
    return axes[0], axes[1], covers[0][:, None] * covers[1][None] > 0.999


def _cover(places: Array, samples: Array, side: Array, size: int) -> Array:
    """How much of each place of the square lies on the frame, in 0..1.

    OpenCV's area interpolation is another rule when enlarging: linear, but within whole pixels.
    """
    shrunk = export_resample.area(places, samples, inputs=side, outputs=jnp.asarray(size)).sum(1)
    left = places * side // size
    beyond = ((places + 1) * side - (left + 1) * size) / side.astype(jnp.float32)
    beyond = jnp.where(beyond <= 0, 0, beyond - jnp.floor(beyond))
    on = lambda at: (at >= samples[0]) & (at <= samples[-1])  # noqa: E731
    enlarged = on(left) * (1 - beyond) + on(jnp.minimum(left + 1, side - 1)) * beyond
    return jnp.where(side >= size, shrunk, enlarged)


def _fixed(
    frame: Array, rows: Array, columns: Array, valid: Array, options: Mapping[str, Any]
) -> Array:
    """The `fixed` chain on one frame [H, W]; the steps of `data.preprocessing._prepare_robust`."""
    size = options["size"]
    values = along_axes(rows, frame, columns)
    field = valid & export_field.detect(
        values, darkness=options["darkness"], min_area=options["min_field"]
    )
    local = export_field.background(values, field, sigma=options["flatten_sigma"] * size)
    flat = values - options["flatten"] * local
    weight = export_field.fade(field, valid, width=options["fade"] * size)
    rim = max(1, round(options["fade"] * size))
    at = indices(size)
    core = (at >= rim) & (at < size - rim)
    trusted = (weight >= 1) & core[:, None] & core[None]
    trusted = jnp.where(trusted.any(), trusted, field)
    tail = options["percentile"]
    low, high = _percentiles(flat, trusted, (tail, 100 - tail))
    span = high - low
    levels = jnp.clip((flat - low) * (255 / jnp.where(span > 0, span, 1)), 0, 255)
    neutral = jnp.rint(_mean(levels, trusted))
    code = jnp.rint(neutral + (levels - neutral) * weight)
    centred = code - _mean(code, trusted)
    deviation = jnp.sqrt(_mean(centred * centred, trusted))
    seen = span > _NEUTRAL_MARGIN * jnp.abs(values).max()
    return jnp.where(seen, (code - neutral) / deviation, 0)


def _mean(values: Array, where: Array) -> Array:
    """Mean of [H, W] over True; rows first, so that rounding errors stay those of a row."""
    kept = jnp.where(where, values, 0)
    return kept.sum(1).sum() / where.sum()


def _percentiles(values: Array, where: Array, percents: tuple[float, ...]) -> list[Array]:
    """Percentiles over True, linear between order statistics like `numpy.percentile`."""
    ordered = jnp.sort(jnp.where(where, values, jnp.inf).reshape(-1))
    last = (where.sum() - 1).astype(jnp.float32)
    found = []
    for percent in percents:
        # From the nearer end: float32 would lose the fraction at the far one.
        from_end = percent > 50
        place = last * np.float32((100 - percent if from_end else percent) / 100)
        below = jnp.floor(place)
        part, at = place - below, below.astype(jnp.int32)
        end = last.astype(jnp.int32)
        first, second = (end - at, end - at - 1) if from_end else (at, at + 1)
        first, second = jnp.clip(first, 0, end), jnp.clip(second, 0, end)
        found.append(ordered[first] + (ordered[second] - ordered[first]) * part)
    return found


def _to_8bit(frame: Array, is_8bit: Array) -> Array:
    """Grey levels 0..255 as whole float32 numbers."""
    # In float64 like the host: which way a level goes that lies half-way is a matter of rounding.
    with jax.enable_x64(True):
        values = frame.astype(jnp.float64)
        low, high = values.min(), values.max()
        scale = 255 / jnp.where(high > low, high - low, 1)
        mapped = jnp.rint((values - low) * scale).astype(jnp.float32)
    return jnp.where(is_8bit, frame, mapped)


def _inpaint_corners(image: Array, inside: Array, side: Array) -> Array:
    """Fills dark corners of the first `side` rows and columns; see `data.released`."""
    at, corner = indices(len(image)), (jnp.float32(_CORNER) * side).astype(jnp.int32)
    outer = (at < corner) | ((at >= side - corner) & (at < side))
    dark = (image <= _DARK) & outer[:, None] & outer[None]
    grown = (
        lax.reduce_window(dark, np.array(False), lax.bitwise_or, (5, 5), (1, 1), "SAME") & inside
    )
    region = grown & (dark.sum() >= _MIN_DARK_PIXELS)
    return export_inpaint.inpaint(image, region, side)


def _standardise(image: Array, inside: Array, blur: Array) -> Array:
    """Unsharp masking and the z-score over the pixels inside; 0 where the image is constant."""
    sharp = image + _AMOUNT * (image - along_axes(blur, image, blur))
    centred = sharp - _mean(sharp, inside)
    deviation = jnp.sqrt(_mean(centred * centred, inside))
    low, high = jnp.where(inside, image, jnp.inf).min(), jnp.where(inside, image, -jnp.inf).max()
    constant = low == high
    return jnp.where(inside & ~constant, centred / jnp.where(constant, 1, deviation), 0)


def _coded(values: Array) -> Array:
    """What the 16-bit code between minimum and maximum keeps of float32 [S, S]."""
    low, high = values.min(), values.max()
    scale = (high - low) / 65535
    scale = jnp.where(scale > 0, scale, 1)
    return jnp.rint((values - low) / scale) * scale + low
