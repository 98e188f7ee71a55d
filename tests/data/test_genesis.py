"""The transforms of Model Genesis against plain loops: what they do, how often, and how much.

The loops below write one window after another, as the released code does. Random numbers differ, so
distributions are compared; where the windows are given, results are compared pixel by pixel.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cmunet_jax.data import genesis
from tests.data.fakes import angiogram

SIZE, SIDE, WINDOWS, IMAGES = 48, 4, 1000, 24
PLACES = np.arange(SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)  # each value names its place


def _keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def _map(function, keys, image, **options):
    """The function for each key, on one image [S, S]; [N, S, S]."""
    one = lambda key: function(key, jnp.asarray(image)[..., None], **options)[..., 0]  # noqa: E731
    return np.asarray(jax.jit(jax.vmap(one))(keys))


# --- pixel shuffling


def _shuffling_loop(rng, image, *, side, windows):
    written = image.copy()
    for _ in range(windows):
        height, width = rng.integers(1, side + 1, 2)
        top = rng.integers(0, image.shape[0] - height + 1)
        left = rng.integers(0, image.shape[1] - width + 1)
        window = np.s_[top : top + height, left : left + width]
        written[window] = rng.permutation(image[window].ravel()).reshape(height, width)
    return written


@pytest.fixture(scope="module")
def shuffled():
    """(ours, the loop's): from which place each pixel comes, int [IMAGES, SIZE, SIZE]."""
    options = dict(side=SIDE, windows=WINDOWS)
    ours = _map(genesis.random_pixel_shuffling, _keys(IMAGES), PLACES, probability=1.0, **options)
    rng = np.random.default_rng(0)
    loop = np.stack([_shuffling_loop(rng, PLACES, **options) for _ in range(IMAGES)])
    return ours.astype(int), loop.astype(int)


def _displacements(source):
    """How often a pixel comes from (dy, dx) away, as fractions [2·SIDE - 1, 2·SIDE - 1]."""
    rows, columns = np.divmod(PLACES.astype(int), SIZE)
    moved = np.stack([source // SIZE - rows, source % SIZE - columns], -1).reshape(-1, 2)
    assert np.abs(moved).max() == SIDE - 1  # only within a window, and as far as it reaches
    count, _, _ = np.histogram2d(*moved.T, bins=np.arange(-SIDE, SIDE) + 0.5)
    return count / len(moved)


def test_pixels_move_as_far_and_as_often_as_in_the_loop(shuffled):
    ours, loop = map(_displacements, shuffled)
    assert (
        0.5 * np.abs(ours - loop).sum() < 0.015
    )  # total variation; two loops differ by about 0.01
    np.testing.assert_allclose(ours[SIDE - 1, SIDE - 1], loop[SIDE - 1, SIDE - 1], atol=0.01)


def test_grey_values_are_kept_as_well_as_in_the_loop(shuffled):
    """Windows overwrite each other, so a few pixels appear twice and others never, in both."""

    def repeats(source):
        counts = [np.bincount(image.ravel(), minlength=SIZE * SIZE) for image in source]
        return np.bincount(np.minimum(counts, 4).ravel(), minlength=5) / PLACES.size / IMAGES

    ours, loop = map(repeats, shuffled)
    assert loop[0] > 0.1  # the loop does not permute the whole image either
    np.testing.assert_allclose(ours, loop, atol=0.01)
    grey = angiogram(SIZE, SIZE).ravel().astype(float)
    distance = [
        np.mean([stats.wasserstein_distance(grey, grey[image.ravel()]) for image in source])
        for source in shuffled
    ]
    assert distance[0] < 1.2 * distance[1] < 0.05 * grey.std()


def test_the_last_window_over_a_pixel_is_found():
    top, left, height, width = _drawn(300)
    expected = np.full((SIZE, SIZE), -1)
    for i in range(300):
        expected[top[i] : top[i] + height[i], left[i] : left[i] + width[i]] = i
    find = jax.jit(functools.partial(genesis._last_window, size=SIZE, side=SIDE))
    found = find(top, left, height, width)
    np.testing.assert_array_equal(found, expected)


def _drawn(windows):
    draw = functools.partial(genesis._draw_windows, size=SIZE, side=SIDE, windows=windows)
    return [np.asarray(x) for x in jax.jit(draw)(jax.random.key(5))]


def test_windows_have_all_sides_and_places_equally_often():
    top, left, height, width = _drawn(40_000)
    sizes = np.histogram2d(height, width, bins=np.arange(1, SIDE + 2))[0].ravel()
    assert len(sizes) == SIDE**2 and stats.chisquare(sizes).pvalue > 1e-3
    for place, side in ((top, height), (left, width)):
        for length in range(1, SIDE + 1):
            counts = np.bincount(place[side == length], minlength=SIZE - length + 1)
            assert len(counts) == SIZE - length + 1  # as far as the border and no further
            assert stats.chisquare(counts).pvalue > 1e-4


def test_one_window_is_permuted_and_the_rest_stays():
    options = dict(side=SIDE, windows=1, probability=1.0)
    made = _map(genesis.random_pixel_shuffling, _keys(200), PLACES, **options)
    changed = 0
    for image in made:
        np.testing.assert_array_equal(np.sort(image.ravel()), PLACES.ravel())
        rows, columns = np.nonzero(image != PLACES)
        if len(rows):
            changed += 1
            assert np.ptp(rows) < SIDE and np.ptp(columns) < SIDE
    assert changed > 150


def test_all_permutations_of_a_window_are_equally_likely():
    windows = 24 * 400
    place = np.broadcast_to(np.arange(4, dtype=np.int32), (windows, 4))
    window = np.broadcast_to(np.arange(windows, dtype=np.int32)[:, None], place.shape)
    rank = genesis._rank(jnp.uint32(9), window, place, jnp.full_like(place, 4), most=9)
    found = [tuple(row) for row in np.asarray(rank)]
    counts = [found.count(order) for order in itertools.permutations(range(4))]
    assert sum(counts) == windows
    assert stats.chisquare(counts).pvalue > 1e-3


# --- intensities


def _intensity_loop(rng, values):
    """The map at values in 0..1: nodes of the curve, sorted or half sorted, and interpolated."""
    points = np.array([[0, 0], *rng.random((2, 2)), [1, 1]])
    t = np.linspace(0, 1, 20_000)[:, None]
    weights = [math.comb(3, i) * t ** (3 - i) * (1 - t) ** i for i in range(4)]
    x, y = np.hstack(weights) @ points[:, 0], np.hstack(weights) @ points[:, 1]
    return np.interp(values, np.sort(x), y if rng.random() < 0.5 else np.sort(y))


def test_intensity_maps_are_distributed_as_in_the_loop():
    values = np.array([0, 0.1, 0.3, 0.5, 0.8, 1])
    rng = np.random.default_rng(1)
    # Rounded, or the test would compare the rounding of 0 and 1.
    loop = np.stack([_intensity_loop(rng, values) for _ in range(1500)]).round(4)
    image = np.zeros((4, 4), np.float32)
    image.flat[: len(values)] = values
    ours = _map(genesis.random_intensity_map, _keys(3000), image, probability=1.0)
    ours = ours.reshape(3000, -1)[:, : len(values)].round(4)
    for column in range(len(values)):
        assert stats.ks_2samp(ours[:, column], loop[:, column]).statistic < 0.05
    steps = np.diff(ours, axis=1)
    assert ((steps >= 0).all(1) | (steps <= 0).all(1)).all()
    assert 0.46 < (steps.sum(1) > 0).mean() < 0.54


@pytest.mark.parametrize("points", [(0.3, 0.6, 0.9, 0.2), (0.0, 1.0, 1.0, 0.0), (0.7, 0.8, 0, 0)])
def test_the_curve_is_that_of_interpolated_nodes(points):
    x1, x2, y1, y2 = points
    t = np.linspace(0, 1, 100_001)
    bezier = lambda a, b: 3 * a * t * (1 - t) ** 2 + 3 * b * t**2 * (1 - t) + t**3  # noqa: E731
    values = np.linspace(0, 1, 301)
    at = genesis._bezier_parameter(jnp.asarray(values, jnp.float32), x1, x2)
    expected = np.interp(values, bezier(x1, x2), bezier(y1, y2))
    np.testing.assert_allclose(genesis._bezier(at, y1, y2), expected, atol=2e-3)


def test_an_image_keeps_its_own_range():
    image = np.asarray(angiogram(SIZE, SIZE), np.float32) / 30 - 5
    made = _map(genesis.random_intensity_map, _keys(50), image, probability=1.0)
    np.testing.assert_allclose(made.min((1, 2)), image.min(), atol=1e-4)
    np.testing.assert_allclose(made.max((1, 2)), image.max(), atol=1e-4)
    flat = _map(genesis.random_intensity_map, _keys(5), np.full((8, 8), 3.0, np.float32))
    np.testing.assert_allclose(flat, 3, atol=1e-5)


# --- painting


def _painting_loop(rng, size, *, inside):
    """The hidden pixels, bool [size, size]."""
    drawn = np.zeros((size, size), bool)

    def window(low, high):
        height, width = rng.integers(low, high + 1, 2)
        top = rng.integers(3, size - height - 3 + 1)
        left = rng.integers(3, size - width - 3 + 1)
        drawn[top : top + height, left : left + width] = True

    if inside:
        for _ in range(5):
            if rng.random() >= 0.95:
                break
            window(size // 6, size // 3)
        return drawn
    window(size - 4 * size // 7, size - 2 * size // 7)
    for _ in range(4):
        if rng.random() >= 0.95:
            break
        window(size - 4 * size // 7, size - 3 * size // 7)
    return ~drawn


@pytest.mark.parametrize("inside", [True, False], ids=["in", "out"])
def test_painted_areas_are_distributed_as_in_the_loop(inside):
    rng = np.random.default_rng(2)
    loop = np.stack([_painting_loop(rng, SIZE, inside=inside) for _ in range(2000)])
    options = dict(probability=1.0, inpainting=float(inside), low=5.0, high=7.0)
    made = _map(genesis.random_painting, _keys(2000), np.zeros((SIZE, SIZE), np.float32), **options)
    ours = made != 0
    assert made[ours].min() >= 5 and made[ours].max() <= 7  # noise or, exactly, the image
    assert stats.kstest(made[ours][::97], stats.uniform(5, 2).cdf).pvalue > 1e-3
    areas = [hidden.mean((1, 2)) for hidden in (ours, loop)]
    assert stats.ks_2samp(*areas).statistic < 0.06
    np.testing.assert_allclose(ours.mean(0), loop.mean(0), atol=0.06)
    border = ours[:, [0, 1, 2, -1, -2, -3]]
    assert not border.any() if inside else border.all()


def test_painting_happens_as_often_as_asked():
    image = np.zeros((SIZE, SIZE), np.float32)
    made = _map(genesis.random_painting, _keys(2000), image, probability=0.9, inpainting=0.2) != 0
    outside = made[:, 0].all(1)  # only out-painting reaches the border
    assert abs(outside.mean() - 0.9 * 0.8) < 0.03
    assert abs(made.any((1, 2)).mean() - (0.9 * 0.8 + 0.9 * 0.2 * 0.95)) < 0.03


# --- flips


def test_flips_follow_each_other_as_in_the_loop():
    image = np.arange(4, dtype=np.float32).reshape(2, 2)
    made = _map(genesis.random_flips, _keys(6000), image)
    outcomes = [image, image[::-1], image[:, ::-1], image[::-1, ::-1]]
    ours = [(made == outcome).all((1, 2)).mean() for outcome in outcomes]
    expected = dict.fromkeys(range(4), 0.0)
    for count in range(4):
        chance = 0.4**count * (0.6 if count < 3 else 1)
        for axes in itertools.product((1, 2), repeat=count):
            rows, columns = axes.count(1) % 2, axes.count(2) % 2
            expected[rows + 2 * columns] += chance / 2**count
    np.testing.assert_allclose(sum(ours), 1)
    np.testing.assert_allclose(ours, list(expected.values()), atol=0.025)


# --- all


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (genesis.random_pixel_shuffling, {"side": SIDE, "windows": WINDOWS}),
        (genesis.random_intensity_map, {}),
        (genesis.random_painting, {"inpainting": 0.0}),
        (genesis.random_flips, {"most": 1}),
    ],
)
def test_probability_decides(function, options):
    image = np.asarray(angiogram(SIZE, SIZE), np.float32)
    never = _map(function, _keys(20), image, probability=0.0, **options)
    np.testing.assert_array_equal(never, np.broadcast_to(image, never.shape))
    half = _map(function, _keys(400), image, probability=0.5, **options)
    assert abs((half != image).any((1, 2)).mean() - 0.5) < 0.1


def test_the_cost_does_not_grow_with_the_number_of_windows():
    """Ten times the windows are not ten times the operations: no loop runs over windows."""

    def lines(windows):
        shuffle = lambda key, image: genesis.random_pixel_shuffling(  # noqa: E731
            key, image, side=SIDE, windows=windows
        )
        image = jnp.zeros((SIZE, SIZE, 1))
        return str(jax.make_jaxpr(shuffle)(jax.random.key(0), image)).replace(str(windows), "N")

    assert lines(1_000) == lines(10_000)
