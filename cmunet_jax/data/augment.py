"""Augmentation of single examples: pure functions, jitted and vmapped by ``views``.

Conventions: the key comes first, options are keyword-only. An image is float32 [S, S, 1] with mean
about 0 and standard deviation about 1; a mask is int32 [S, S], 0 or 1. Shapes are static. Geometric
functions take an optional mask and give it the same geometry (sampled linearly, then cut at one
half, so that thin vessels keep their width); they return ``(image, mask)``, mask None where none
was given. Rows come before columns everywhere.
"""

import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from cmunet_jax.data.resample import PRECISE, bilinear, crop_resize, linear_weights

Array = jax.Array


def sample_box(
    key: Array,
    *,
    length: int,
    area: tuple[float, float],
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[Array, Array, Array, Array]:
    """Draws the box of a RandomResizedCrop: four float32 scalars in pixels,
    (top, left, height, width).

    The area is uniform, the aspect ratio (width / height) log-uniform, the place uniform among
    those inside of the image. Where torchvision draws again until the box fits, the aspect ratio
    is drawn here from the part of its range that fits the area: static work, and no fallback.

    Args:
      key: jax key.
      length: side of the image in pixels.
      area: range of the box's area as a fraction of the image's, in (0, 1].
      aspect: range of width / height.
    """
    key_area, key_aspect, key_top, key_left = jax.random.split(key, 4)
    fraction = jax.random.uniform(key_area, minval=area[0], maxval=area[1])
    # width = sqrt(fraction * ratio) <= 1 and height = sqrt(fraction / ratio) <= 1
    low = jnp.maximum(math.log(aspect[0]), jnp.log(fraction))
    high = jnp.minimum(math.log(aspect[1]), -jnp.log(fraction))
    ratio = jnp.exp(low + (high - low) * jax.random.uniform(key_aspect))
    width = jnp.minimum(jnp.sqrt(fraction * ratio), 1) * length
    height = jnp.minimum(jnp.sqrt(fraction / ratio), 1) * length
    top = jax.random.uniform(key_top) * (length - height)
    left = jax.random.uniform(key_left) * (length - width)
    return top, left, height, width


def random_resized_crop(
    key: Array,
    image: Array,
    mask: Array | None,
    *,
    size: int,
    area: tuple[float, float] = (0.2, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[Array, Array | None]:
    """Crops a random box and resamples it to [size, size, 1] (bicubic, antialiased).

    The box has sub-pixel corners; the kernel reads pixels beside the box where there are any.

    Args:
      key: jax key.
      image: float32 [S, S, 1], any range.
      mask: int32 [S, S], 0 or 1, or None.
      size: side of the result in pixels.
      area: range of the box's area as a fraction of the image, in (0, 1].
      aspect: range of its width / height, log-uniform.
    """
    box = sample_box(key, length=image.shape[0], area=area, aspect=aspect)
    return crop_resize(image, mask, box=box, size=size)


def random_flip(
    key: Array,
    image: Array,
    mask: Array | None,
    *,
    horizontal: float = 0.5,
    vertical: float = 0.0,
) -> tuple[Array, Array | None]:
    """Mirrors [S, S, 1] and mask [S, S] left-right and top-bottom, with probabilities in 0..1."""
    key_h, key_v = jax.random.split(key)
    flip_h = jax.random.bernoulli(key_h, horizontal)
    flip_v = jax.random.bernoulli(key_v, vertical)

    def flip(values: Array) -> Array:
        values = jnp.where(flip_h, values[:, ::-1], values)
        return jnp.where(flip_v, values[::-1], values)

    return flip(image), None if mask is None else flip(mask)


def random_rot90(
    key: Array, image: Array, mask: Array | None, *, probability: float = 1.0
) -> tuple[Array, Array | None]:
    """Rotates [S, S, 1] and mask [S, S] by 0, 90, 180 or 270 degrees, all equally likely.

    With ``probability`` in 0..1; otherwise they stay.
    """
    key_apply, key_turns = jax.random.split(key)
    turns = jax.random.randint(key_turns, (), 0, 4)
    turns = jnp.where(jax.random.bernoulli(key_apply, probability), turns, 0)

    def rotate(values: Array) -> Array:
        # a quarter turn is a transposition and a flip; both are cheap selections under vmap
        values = jnp.where(turns >= 2, values[::-1, ::-1], values)
        return jnp.where(turns % 2 == 1, jnp.swapaxes(values, 0, 1)[::-1], values)

    return rotate(image), None if mask is None else rotate(mask)


def random_affine(
    key: Array,
    image: Array,
    mask: Array | None,
    *,
    degrees: float = 15.0,
    scale: tuple[float, float] = (0.85, 1.2),
    shift: float = 0.05,
    probability: float = 1.0,
    fill: float = 0.0,
) -> tuple[Array, Array | None]:
    """Rotates, scales and shifts about the centre; bilinear.

    Args:
      key: jax key.
      image: float32 [S, S, 1], any range.
      mask: int32 [S, S], 0 or 1, or None.
      degrees: the angle is uniform in ±degrees.
      scale: range of the magnification, log-uniform, > 0.
      shift: rows and columns move by up to ±shift of the side.
      probability: of doing anything, in 0..1.
      fill: value outside of the image; 0 is the mean of a standardised image. Masks get 0.
    """
    keys = jax.random.split(key, 4)
    apply = jax.random.bernoulli(keys[0], probability)
    bound = math.radians(degrees)
    angle = jnp.where(apply, jax.random.uniform(keys[1], minval=-bound, maxval=bound), 0.0)
    low, high = math.log(scale[0]), math.log(scale[1])
    zoom = jnp.exp(jnp.where(apply, jax.random.uniform(keys[2], minval=low, maxval=high), 0.0))
    size = image.shape[0]
    moved = jax.random.uniform(keys[3], (2,), minval=-shift, maxval=shift) * size
    moved = jnp.where(apply, moved, 0.0)
    centre = (size - 1) / 2
    grid = jnp.arange(size, dtype=jnp.float32) - centre
    row, column = grid[:, None] - moved[0], grid[None, :] - moved[1]
    cosine, sine = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    rows = cosine * row + sine * column + centre
    columns = cosine * column - sine * row + centre
    values = image if mask is None else jnp.stack([image[..., 0], mask.astype(jnp.float32)], -1)
    filling = jnp.array([fill, 0.0], jnp.float32)[: values.shape[-1]]
    out = bilinear(values, rows, columns, filling)
    if mask is None:
        return out, None
    return out[..., :1], (out[..., 1] >= 0.5).astype(jnp.int32)


def random_blur(
    key: Array,
    image: Array,
    *,
    sigma: tuple[float, float] = (0.1, 2.0),
    probability: float = 0.5,
    radius: int = 6,
) -> Array:
    """Gaussian blur of [S, S, 1], sigma uniform in the range (pixels), ``probability`` in 0..1.

    The kernel has a fixed radius in pixels (three of the largest sigma are enough) and is
    normalised; the border is mirrored.
    """
    key_apply, key_sigma = jax.random.split(key)
    width = jax.random.uniform(key_sigma, minval=sigma[0], maxval=sigma[1])
    taps = jnp.exp(-0.5 * (jnp.arange(-radius, radius + 1) / width) ** 2)
    identity = jnp.zeros(2 * radius + 1).at[radius].set(1)
    apply = jax.random.bernoulli(key_apply, probability)
    taps = jnp.where(apply, taps / taps.sum(), identity)
    size = image.shape[0]
    values = jnp.pad(image[..., 0], radius, mode="symmetric")
    # sums of shifted slices fuse into one loop; a convolution with a kernel an example does not
    values = _sum_of(taps[i] * values[i : i + size] for i in range(2 * radius + 1))
    values = _sum_of(taps[i] * values[:, i : i + size] for i in range(2 * radius + 1))
    return values[..., None]


def _sum_of(terms: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, terms)


def random_noise(
    key: Array, image: Array, *, fraction: float = 0.1, probability: float = 0.5
) -> Array:
    """Adds noise to [S, S, 1]: Gaussian, sigma = max(image) * fraction, ``probability`` in 0..1.

    The released rule (sigma = max / 10) for a standardised image, whose maximum is positive; an
    image without positive values gets none.
    """
    key_apply, key_noise = jax.random.split(key)
    sigma = jnp.maximum(image.max(), 0) * fraction * jax.random.bernoulli(key_apply, probability)
    return image + sigma * jax.random.normal(key_noise, image.shape)


def random_brightness(key: Array, image: Array, *, delta: float = 0.2) -> Array:
    """Adds to [S, S, 1] a constant uniform in ±delta; delta >= 0 has the unit of the image."""
    return image + jax.random.uniform(key, minval=-delta, maxval=delta)


def random_contrast(
    key: Array, image: Array, *, factor: tuple[float, float] = (0.8, 1.25)
) -> Array:
    """Scales deviations of [S, S, 1] from its mean by a log-uniform factor of the range (> 0)."""
    low, high = math.log(factor[0]), math.log(factor[1])
    gain = jnp.exp(jax.random.uniform(key, minval=low, maxval=high))
    mean = image.mean()
    return mean + gain * (image - mean)


def random_gamma(
    key: Array, image: Array, *, gamma: tuple[float, float] = (0.8, 1.25), probability: float = 0.5
) -> Array:
    """Raises [S, S, 1], on its own range mapped to 0..1, to a log-uniform power of the range.

    Minimum and maximum stay; with ``probability`` in 0..1.
    """
    key_apply, key_gamma = jax.random.split(key)
    low, high = math.log(gamma[0]), math.log(gamma[1])
    power = jnp.exp(jax.random.uniform(key_gamma, minval=low, maxval=high))
    power = jnp.where(jax.random.bernoulli(key_apply, probability), power, 1.0)
    floor, span = image.min(), jnp.maximum(image.max() - image.min(), 1e-6)
    return floor + span * jnp.clip((image - floor) / span, 0, 1) ** power


def random_downscale(
    key: Array, image: Array, *, factor: tuple[float, float] = (0.5, 1.0), probability: float = 0.25
) -> Array:
    """Loses resolution: [S, S, 1] shrinks by a factor uniform in (0..1] and is enlarged again.

    Antialiased linear down and linear up, both to whole pixels, with ``probability`` in 0..1.
    """
    key_apply, key_factor = jax.random.split(key)
    size = image.shape[0]
    drawn = jax.random.uniform(key_factor, minval=factor[0], maxval=factor[1])
    drawn = jnp.where(jax.random.bernoulli(key_apply, probability), drawn, 1.0)
    count = jnp.maximum(jnp.round(size * drawn), 1)
    down = linear_weights(size, size, count)
    up = linear_weights(size, count, size)
    both = jnp.matmul(up, down, precision=PRECISE)
    values = jnp.matmul(both, image[..., 0], precision=PRECISE)
    return jnp.matmul(values, both.T, precision=PRECISE)[..., None]


def random_patch_mask(key: Array, *, size: int, patch: int = 16, ratio: float = 0.65) -> Array:
    """Chooses which patches are hidden: bool [S / patch, S / patch], True where masked.

    Exactly floor(ratio * size² / patch²) of them, uniformly without replacement (paper, masking of
    the online view).

    Args:
      key: jax key.
      size: side of the image in pixels, a multiple of ``patch``.
      patch: side of a patch in pixels.
      ratio: part that is hidden, in 0..1.
    """
    side = size // patch
    count = math.floor(ratio * size * size / (patch * patch))
    hidden = jax.random.permutation(key, jnp.arange(side * side) < count)
    return hidden.reshape(side, side)


def random_offset_crop(key: Array, image: Array, *, size: int, max_offset: int) -> Array:
    """Crops [S, S, 1] to ``size`` pixels at (dy, dx) uniform in {0..max_offset}², whole pixels."""
    offset = jax.random.randint(key, (2,), 0, max_offset + 1)
    return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), (size, size, 1))
