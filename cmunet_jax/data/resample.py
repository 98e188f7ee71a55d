"""Resampling on the device with static shapes, whatever the box, the angle or the factor.

Axis-aligned resampling is written as two matrix products an example (rows, then columns): sizes
stay static while boxes and scales vary, and accelerators are good at it.
"""

import jax
import jax.numpy as jnp

Array = jax.Array
Box = tuple[Array | float, Array | float, Array | float, Array | float]
PRECISE = jax.lax.Precision.HIGHEST  # bfloat16 products would show as noise in the image


def crop_resize(
    image: Array, mask: Array | None = None, *, box: Box, size: int
) -> tuple[Array, Array | None]:
    """Resamples a box of an image, and of its mask, to a square.

    Bicubic (Keys, a = -0.5) for images, linear for masks, both antialiased when shrinking, as
    Pillow does with ``box``.

    Args:
      image: float32 [S, S, 1].
      mask: int32 0/1 [S, S]; comes back cut at one half.
      box: (top, left, height, width) in pixels, inside of the image, sub-pixel.
      size: side of the result in pixels.

    Returns:
      float32 [size, size, 1] and int32 [size, size] or None.
    """
    out = _box_resize(image[..., 0], box, size=size, method="cubic")[..., None]
    if mask is None:
        return out, None
    soft = _box_resize(mask.astype(jnp.float32), box, size=size, method="linear")
    return out, (soft >= 0.5).astype(jnp.int32)


def resize(image: Array, mask: Array | None = None, *, size: int) -> tuple[Array, Array | None]:
    """``crop_resize`` of the whole square; the arguments themselves where nothing changes."""
    length = image.shape[0]
    if length == size:
        return image, mask
    return crop_resize(image, mask, box=(0.0, 0.0, float(length), float(length)), size=size)


def _box_resize(values: Array, box: Box, *, size: int, method: str) -> Array:
    top, left, height, width = (jnp.asarray(value, jnp.float32) for value in box)
    scale = jnp.stack([size / height, size / width])
    return jax.image.scale_and_translate(
        values,
        (size, size),
        (0, 1),
        scale,
        -jnp.stack([top, left]) * scale,
        method=method,
        antialias=True,
        precision=PRECISE,
    )


def linear_weights(length: int, count_in: Array | int, count_out: Array | int) -> Array:
    """Matrix [length, length] that resamples the first ``count_in`` to ``count_out`` samples.

    Triangle kernel over pixel centres, widened when shrinking, normalised over the samples that
    exist; rows from ``count_out`` on are not meaningful and columns from ``count_in`` on are zero.
    """
    step = count_in / count_out
    places = (jnp.arange(length) + 0.5) * step - 0.5
    samples = jnp.arange(length)
    distance = jnp.abs(places[:, None] - samples[None, :]) / jnp.maximum(step, 1.0)
    weights = jnp.maximum(1 - distance, 0) * (samples < count_in)
    return weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-6)


def bilinear(values: Array, rows: Array, columns: Array, fill: Array) -> Array:
    """Samples [S, S, C] at [S, S] places; one gather of pixels with their right-hand neighbours."""
    size = values.shape[0]
    padded = jnp.pad(values - fill, ((1, 2), (1, 2), (0, 0)))
    rows, columns = jnp.clip(rows, -1, size), jnp.clip(columns, -1, size)
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    stride = size + 3
    start = (top.astype(jnp.int32) + 1) * stride + left.astype(jnp.int32) + 1
    flat = padded.reshape(-1, values.shape[-1])
    corner = lambda step: flat[start + step]  # noqa: E731
    upper = corner(0) * (1 - right) + corner(1) * right
    lower = corner(stride) * (1 - right) + corner(stride + 1) * right
    return upper * (1 - down) + lower * down + fill
