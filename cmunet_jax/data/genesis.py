"""The four transforms of Model Genesis; a network learns to restore the image from them.

Zhou et al., Models Genesis (MICCAI 2019; Medical Image Analysis 2021), with the numbers of
CM-UNet's two-dimensional port (method.md, section 4). Conventions are those of `augment`: pure
functions of one example, jitted and vmapped by `views`; the key first, options by keyword; an image
is float32 [S, S, 1]. Shapes are static, and no loop is longer than the side of a window.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

MARGIN = 3
"""Pixels along the border that no painted window touches."""
WINDOWS = 5
"""Most windows that are painted, or kept."""
ONE_MORE = 0.95
"""Probability of another window."""
_HALVINGS = 24  # as many as float32 has bits


def random_flips(key: Array, image: Array, *, probability: float = 0.4, most: int = 3) -> Array:
    """Mirrors [S, S, 1] along one of its axes, and perhaps again.

    Each flip, of at most `most`, follows the one before with `probability` in 0..1 and takes either
    axis; two along the same axis cancel.
    """
    go_key, axis_key = jax.random.split(key)
    go = jnp.cumprod(jax.random.bernoulli(go_key, probability, (most,)))
    rows = jax.random.bernoulli(axis_key, 0.5, (most,))
    image = jnp.where((go * rows).sum() % 2 == 1, image[::-1], image)
    return jnp.where((go * ~rows).sum() % 2 == 1, image[:, ::-1], image)


def random_pixel_shuffling(
    key: Array, image: Array, *, side: int, windows: int = 10_000, probability: float = 0.5
) -> Array:
    """Permutes the pixels of [S, S, 1] inside of small windows.

    Windows with sides of 1..`side` pixels are written one over another, each a permutation of what
    the unchanged image has there; so a pixel comes from the last window over it. The released loop
    writes them. Here the last window of all pixels is found at once: the number of each window goes
    to its corner in a map of its size, and shifted maxima spread it over its pixels.

    Args:
      key: jax key.
      image: float32 [S, S, 1], any range.
      side: longest side of a window in pixels, 1..S.
      windows: how many there are.
      probability: of doing anything, in 0..1.
    """
    if side == 1:
        return image  # all permutations of one pixel
    size = image.shape[0]
    apply_key, window_key, order_key = jax.random.split(key, 3)
    top, left, height, width = _draw_windows(window_key, size=size, side=side, windows=windows)
    last = _last_window(top, left, height, width, size=size, side=side)
    row, column = jnp.meshgrid(*(jnp.arange(size, dtype=jnp.int32),) * 2, indexing="ij")
    covered = last >= 0
    top, left = jnp.where(covered, top[last], row), jnp.where(covered, left[last], column)
    height, width = jnp.where(covered, height[last], 1), jnp.where(covered, width[last], 1)
    place = (row - top) * width + column - left
    seed = jax.random.bits(order_key, (), jnp.uint32)
    rank = _rank(seed, last, place, height * width, most=side * side)
    source = (top + rank // width) * size + left + rank % width
    shuffled = image.reshape(-1)[source][..., None]
    return jnp.where(jax.random.bernoulli(apply_key, probability), shuffled, image)


def _draw_windows(key: Array, *, size: int, side: int, windows: int) -> tuple[Array, ...]:
    """Top, left, height and width, int32 [windows]: sides uniform, places uniform where they fit.

    One draw of bits: drawing integers one by one costs more than all the rest on a CPU.
    """
    bits = jax.random.bits(key, (3, windows), jnp.uint32)

    def below(bits: Array, count: Array | int, width: int) -> Array:
        fraction = bits.astype(jnp.float32) * 2.0**-width
        return jnp.floor(fraction * count).astype(jnp.int32)

    height, width = below(bits[0] >> 16, side, 16) + 1, below(bits[0] & 0xFFFF, side, 16) + 1
    # 24 bits, which float32 holds exactly
    top, left = (below(b >> 8, size - n + 1, 24) for b, n in ((bits[1], height), (bits[2], width)))
    return top, left, height, width


def _last_window(
    top: Array, left: Array, height: Array, width: Array, *, size: int, side: int
) -> Array:
    """The number of the last window over each pixel, int32 [size, size]; -1 where there is none."""
    cell = (((height - 1) * side + width - 1) * size + top) * size + left
    number = jnp.arange(len(top), dtype=jnp.int32)
    maps = jnp.full(side * side * size * size, -1, jnp.int32).at[cell].max(number)
    maps = maps.reshape(side, side, size, size)
    return _spread(_spread(jnp.moveaxis(maps, 1, 0), axis=2), axis=0)


def _spread(maps: Array, *, axis: int) -> Array:
    """Spreads the entries of maps[n] over n + 1 places along an axis of it; the largest stays.

    A loop, because its result is stored: XLA on CPU computes what is not anew for every use.
    """
    side = maps.shape[0]
    padding = [(side, 0) if i == axis else (0, 0) for i in range(maps.ndim - 1)]

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        reaching, found = carry
        shift = side - 1 - i
        reaching = jnp.maximum(reaching, maps[shift])  # all that are longer than the shift
        padded = jnp.pad(reaching, padding, constant_values=-1)
        moved = jax.lax.dynamic_slice_in_dim(padded, side - shift, maps.shape[axis + 1], axis)
        return reaching, jnp.maximum(found, moved)

    nothing = jnp.full_like(maps[0], -1)
    return jax.lax.fori_loop(0, side, body, (nothing, nothing))[1]


def _rank(seed: Array, window: Array, place: Array, count: Array, *, most: int) -> Array:
    """A random permutation for each window, at one place of it: int32, below `count`.

    It is the rank of the place's random number among those of the window's `count` <= `most`
    places. The numbers are a hash of (seed, window, place), so none need be stored.
    """
    salt = seed ^ (window.astype(jnp.uint32) * jnp.uint32(0x9E3779B9))

    def number(place: Array | int) -> Array:
        return _mix(salt + jnp.asarray(place, jnp.uint32) * jnp.uint32(0x85EBCA6B))

    own = number(place)

    def compare(other: Array, rank: Array) -> Array:
        smaller = number(other) < own
        return rank + (smaller & (other < count))

    return jax.lax.fori_loop(0, most, compare, jnp.zeros_like(place), unroll=min(most, 16))


def _mix(x: Array) -> Array:
    """The finaliser of MurmurHash3 (Appleby): every bit of a uint32 changes half of the others."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def random_intensity_map(key: Array, image: Array, *, probability: float = 0.9) -> Array:
    """Maps the intensities of [S, S, 1] along a random monotone curve, up or down.

    The curve is a cubic Bézier curve in the unit square from (0, 0) to (1, 1) with two control
    points uniform in it; with probability ½ its ordinates run backwards, which inverts the image.
    0 and 1 are the image's own minimum and maximum, before and after, as in the released port: our
    images are standardised and have no range of their own.

    Args:
      key: jax key.
      image: float32 [S, S, 1], any range.
      probability: of doing anything, in 0..1.
    """
    apply_key, point_key, down_key = jax.random.split(key, 3)
    (x1, x2), (y1, y2) = jax.random.uniform(point_key, (2, 2))
    low, span = image.min(), jnp.maximum(image.max() - image.min(), 1e-6)
    at = _bezier_parameter((image - low) / span, x1, x2)
    at = jnp.where(jax.random.bernoulli(down_key), 1 - at, at)
    mapped = low + span * _bezier(at, y1, y2)
    return jnp.where(jax.random.bernoulli(apply_key, probability), mapped, image)


def _bezier(t: Array, first: Array, second: Array) -> Array:
    """One coordinate of the curve at t in 0..1; it rises from 0 to 1 if both points are in 0..1."""
    return t * (3 * (1 - t) * ((1 - t) * first + t * second) + t * t)


def _bezier_parameter(value: Array, first: Array, second: Array) -> Array:
    """Where the coordinate takes a value in 0..1: halving, since its slope may vanish."""
    t, step = jnp.full_like(value, 0.5), 0.25
    for _ in range(_HALVINGS):
        t = t + jnp.where(_bezier(t, first, second) < value, step, -step)
        step /= 2
    return t


def random_painting(
    key: Array,
    image: Array,
    *,
    probability: float = 0.9,
    inpainting: float = 0.2,
    low: Array | float = 0.0,
    high: Array | float = 1.0,
) -> Array:
    """Replaces parts of [S, S, 1] by uniform noise.

    In-painting fills up to five windows with sides of S/6..S/3; out-painting fills all but the
    union of up to five windows, the first with sides of 3S/7..5S/7, the others of 3S/7..4S/7. There
    is always a first window to out-paint around; every other follows with probability 0.95.

    Args:
      key: jax key.
      image: float32 [S, S, 1], any range; S >= 21.
      probability: of doing anything, in 0..1.
      inpainting: probability of in-painting, otherwise it is out-painting, in 0..1.
      low: end of the noise's range.
      high: the other end.
    """
    size = image.shape[0]
    choice_key, window_key, noise_key = jax.random.split(key, 3)
    apply, inside = jax.random.uniform(choice_key, (2,)) < jnp.array([probability, inpainting])
    draws = jax.random.uniform(window_key, (2, WINDOWS, 5))
    sides = [[size // 6, size // 3]] * WINDOWS
    filled = _union(draws[0], jnp.array(sides), size=size, sure=0)
    sides = [[size - 4 * size // 7, size - n * size // 7] for n in (2, 3, 3, 3, 3)]
    kept = _union(draws[1], jnp.array(sides), size=size, sure=1)
    hidden = jnp.where(inside, filled, ~kept) & apply
    noise = jax.random.uniform(noise_key, image.shape, minval=low, maxval=high)
    return jnp.where(hidden[..., None], noise, image)


def _union(draws: Array, sides: Array, *, size: int, sure: int) -> Array:
    """Pixels in any window, bool [size, size].

    Args:
      draws: float32 [n, 5], uniform in [0, 1): whether it is there, two sides, two places.
      sides: int [n, 2], the shortest and the longest side in pixels.
      size: of the image in pixels.
      sure: how many windows are always there; each of the others follows the one before.
    """
    go = jnp.cumprod((draws[:, 0] < ONE_MORE) | (jnp.arange(len(sides)) < sure)) == 1
    low, high = sides[:, :1], sides[:, 1:]
    length = low + jnp.floor(draws[:, 1:3] * (high - low + 1)).astype(jnp.int32)
    places = size - length - 2 * MARGIN + 1
    start = MARGIN + jnp.floor(draws[:, 3:] * places).astype(jnp.int32)
    grid = jnp.arange(size)
    inside = (grid >= start[..., None]) & (grid < (start + length)[..., None])
    return (inside[:, 0, :, None] & inside[:, 1, None, :] & go[:, None, None]).any(0)
