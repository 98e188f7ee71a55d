"""Each augmentation against SciPy, Pillow or NumPy, and its distribution."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cmunet_jax.data import augment, resample
from tests.data.fakes import angiogram, vessels

SIDE = 48
SEEDS = st.integers(0, 2**31 - 1)


def picture(seed=0, side=SIDE):
    values = angiogram(side, side, seed).astype(np.float32)
    return jnp.asarray((values - values.mean()) / values.std())[..., None]


def key(seed=0):
    return jax.random.key(seed)


def many(function, count=400, seed=7):
    """The function of a key, over many keys."""
    return jax.jit(jax.vmap(function))(jax.random.split(key(seed), count))


def pillow(values, box, size, how):
    top, left, height, width = box
    image = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(image.resize((size, size), how, box=(left, top, left + width, top + height)))


# --- resampling

crop_resize = jax.jit(resample.crop_resize, static_argnames="size")


@given(
    top=st.floats(0, 10),
    left=st.floats(0, 10),
    height=st.floats(8, 38),
    width=st.floats(8, 38),
    size=st.sampled_from([16, 48, 64]),
)
@settings(max_examples=20, deadline=None)
def test_crop_resize_agrees_with_pillow(top, left, height, width, size):
    image, box = picture(), (top, left, height, width)
    ours, mask = crop_resize(image, None, box=box, size=size)
    assert ours.shape == (size, size, 1) and mask is None
    theirs = pillow(image[..., 0], box, size, Image.Resampling.BICUBIC)
    np.testing.assert_allclose(ours[..., 0], theirs, atol=2e-2)
    assert np.abs(ours[..., 0] - theirs).mean() < 2e-3


def test_mask_is_resampled_linearly_and_cut_at_one_half():
    mask = jnp.asarray(vessels(SIDE, SIDE), jnp.int32)
    box = (3.0, 5.0, 30.0, 24.0)
    _, ours = crop_resize(picture(), mask, box=box, size=32)
    soft = pillow(mask, box, 32, Image.Resampling.BILINEAR)
    clear = np.abs(soft - 0.5) > 0.02
    np.testing.assert_array_equal(np.asarray(ours)[clear], (soft >= 0.5)[clear])
    assert ours.dtype == jnp.int32


def test_resize_to_the_same_size_is_the_identity():
    image = picture()
    assert resample.resize(image, size=SIDE)[0] is image


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_bilinear_agrees_with_scipy(seed):
    places = np.random.default_rng(seed).uniform(-3, SIDE + 2, (2, SIDE, SIDE)).astype(np.float32)
    image = picture()
    ours = resample.bilinear(image, *map(jnp.asarray, places), fill=jnp.array([0.7]))
    theirs = scipy.ndimage.map_coordinates(
        np.asarray(image[..., 0]), places, order=1, mode="grid-constant", cval=0.7
    )
    np.testing.assert_allclose(ours[..., 0], theirs, atol=1e-4)


# --- random crops


@jax.jit
def draw_boxes(seed, low):
    keys = jax.random.split(jax.random.key(seed), 400)
    return jax.vmap(lambda k: jnp.stack(augment.sample_box(k, length=100, area=(low, 1.0))))(keys)


@given(seed=SEEDS, low=st.floats(0.05, 0.9))
@settings(max_examples=30, deadline=None)
def test_boxes_keep_area_aspect_and_image(seed, low):
    boxes = draw_boxes(seed, low)
    top, left, height, width = np.asarray(boxes).T
    area, ratio = height * width / 1e4, width / height
    assert area.min() >= low - 1e-4 and area.max() <= 1 + 1e-4
    assert ratio.min() >= 0.75 - 1e-4 and ratio.max() <= 4 / 3 + 1e-4
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 100 + 1e-3


def test_area_is_uniform_and_aspect_symmetric():
    boxes = many(lambda k: jnp.stack(augment.sample_box(k, length=1, area=(0.2, 0.6))), 4000)
    _, _, height, width = np.asarray(boxes).T
    area, ratio = height * width, np.log(width / height)
    assert scipy.stats.kstest(area, scipy.stats.uniform(0.2, 0.4).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(ratio, scipy.stats.uniform(*_span()).cdf).pvalue > 1e-3


def _span():
    bound = np.log(4 / 3)  # areas up to 0.6 leave the whole range of aspects possible
    return -bound, 2 * bound


def test_random_resized_crop_shows_its_box():
    image, k = picture(), key(3)
    ours, _ = augment.random_resized_crop(k, image, None, size=32, area=(0.3, 0.5))
    box = [float(v) for v in augment.sample_box(k, length=SIDE, area=(0.3, 0.5))]
    theirs = pillow(image[..., 0], box, 32, Image.Resampling.BICUBIC)
    assert np.abs(ours[..., 0] - theirs).mean() < 2e-3


def test_offsets_cover_their_range_evenly():
    rows, columns = jnp.meshgrid(jnp.arange(40.0), jnp.arange(40.0), indexing="ij")
    places = (rows * 100 + columns)[..., None]
    crops = many(lambda k: augment.random_offset_crop(k, places, size=32, max_offset=7), 2000)
    assert crops.shape == (2000, 32, 32, 1)
    dy, dx = np.divmod(np.asarray(crops[:, 0, 0, 0]).astype(int), 100)
    np.testing.assert_array_equal(crops[:, 5, 6, 0], (dy + 5) * 100 + dx + 6)
    for offsets in (dy, dx):
        counts = np.bincount(offsets, minlength=8)
        assert len(counts) == 8 and counts.min() > 180


# --- flips and rotations


def test_flips_are_the_four_mirrorings_equally_often():
    image, mask = picture(), jnp.asarray(vessels(SIDE, SIDE), jnp.int32)
    flipped, masks = many(
        lambda k: augment.random_flip(k, image, mask, horizontal=0.5, vertical=0.5)
    )
    options = [np.asarray(image)[::v, ::h] for v in (1, -1) for h in (1, -1)]
    counts = [sum(np.array_equal(x, option) for x in flipped) for option in options]
    assert sum(counts) == 400 and min(counts) > 70
    both = [
        (np.asarray(image)[::v, ::h], np.asarray(mask)[::v, ::h]) for v in (1, -1) for h in (1, -1)
    ]
    assert all(
        any(np.array_equal(x, a) and np.array_equal(m, b) for a, b in both)
        for x, m in zip(flipped[:20], masks[:20])
    )


def test_quarter_turns_are_equally_often_and_move_the_mask_along():
    image, mask = picture(), jnp.asarray(vessels(SIDE, SIDE), jnp.int32)
    turned, masks = many(lambda k: augment.random_rot90(k, image, mask))
    counts = np.zeros(4, int)
    for x, m in zip(np.asarray(turned), np.asarray(masks)):
        (turns,) = [t for t in range(4) if np.array_equal(x, np.rot90(image, t))]
        np.testing.assert_array_equal(m, np.rot90(mask, turns))
        counts[turns] += 1
    assert counts.min() > 70


def test_affine_scales_as_scipy_does():
    image = picture()
    ours, _ = augment.random_affine(key(), image, None, degrees=0, scale=(1.3, 1.3), shift=0)
    middle = (SIDE - 1) / 2
    theirs = scipy.ndimage.affine_transform(
        np.asarray(image[..., 0]),
        [1 / 1.3] * 2,
        middle * (1 - 1 / 1.3),
        order=1,
        mode="grid-constant",
    )
    np.testing.assert_allclose(ours[..., 0], theirs, atol=1e-4)


def test_affine_parameters_stay_in_their_ranges():
    """An affine map of a ramp is a ramp, from whose slope the parameters can be read."""
    grid = jnp.arange(96.0) - 47.5
    ramps = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"))

    def parameters(k):
        rows, columns = (
            augment.random_affine(k, r[..., None], None, degrees=20, scale=(0.9, 1.2), shift=0.1)[0]
            for r in ramps
        )
        centre = lambda x: x[47:49, 47:49, 0]  # noqa: E731
        r, c = centre(rows), centre(columns)
        return jnp.stack(
            [
                r[1, 0] - r[0, 0],
                r[0, 1] - r[0, 0],
                c[1, 0] - c[0, 0],
                c[0, 1] - c[0, 0],
                r.mean(),
                c.mean(),
            ]
        )

    a, b, c, d, row, column = np.asarray(many(parameters)).T
    np.testing.assert_allclose([a, b], [d, -c], atol=1e-4)  # a rotation and one magnification
    zoom, angle = 1 / np.hypot(a, b), np.degrees(np.arctan2(b, a))
    assert 0.9 - 1e-3 < zoom.min() < 0.92 and 1.18 < zoom.max() < 1.2 + 1e-3
    assert -20.1 < angle.min() < -17 and 17 < angle.max() < 20.1
    moved = np.stack([a * row - b * column, b * row + a * column]) * zoom**2
    assert 8 < np.abs(moved).max() < 9.7


@pytest.mark.parametrize(
    "move",
    [
        lambda k, x, m: augment.random_affine(k, x, m),
        lambda k, x, m: augment.random_resized_crop(k, x, m, size=64, area=(0.3, 1.0)),
        lambda k, x, m: augment.random_flip(k, x, m, horizontal=0.5, vertical=0.5),
        lambda k, x, m: augment.random_rot90(k, x, m),
    ],
    ids=["affine", "crop", "flip", "rot90"],
)
def test_mask_and_image_move_together(move):
    mask = jnp.asarray(vessels(64, 64), jnp.int32)
    image = mask[..., None].astype(jnp.float32)
    images, masks = many(lambda k: move(k, image, mask), 40)
    drawn, expected = np.asarray(images[..., 0]) >= 0.5, np.asarray(masks) > 0
    assert set(np.unique(masks)) == {0, 1}
    overlap = 2 * (drawn & expected).sum() / (drawn.sum() + expected.sum())
    assert overlap > 0.97


# --- grey levels


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_agrees_with_scipy(sigma):
    image = picture()
    ours = augment.random_blur(key(), image, sigma=(sigma, sigma), probability=1.0, radius=6)
    theirs = scipy.ndimage.gaussian_filter(np.asarray(image[..., 0]), sigma, radius=6)
    np.testing.assert_allclose(ours[..., 0], theirs, atol=1e-5)


def test_noise_has_its_strength_in_half_of_the_cases():
    image = picture()
    noisy = many(lambda k: augment.random_noise(k, image, fraction=0.1, probability=0.5))
    spread = np.asarray(noisy - image).std(axis=(1, 2, 3))
    applied = spread > 0
    assert 0.4 < applied.mean() < 0.6
    np.testing.assert_allclose(spread[applied], float(image.max()) / 10, rtol=0.1)


def test_brightness_is_a_bounded_constant():
    image = picture()
    change = np.asarray(many(lambda k: augment.random_brightness(k, image, delta=0.3)) - image)
    assert np.ptp(change, axis=(1, 2, 3)).max() < 1e-5
    assert -0.3 <= change.min() < -0.25 and 0.25 < change.max() <= 0.3


def test_contrast_keeps_the_mean():
    image = picture() + 2
    out = np.asarray(many(lambda k: augment.random_contrast(k, image, factor=(0.5, 2.0))))
    np.testing.assert_allclose(out.mean(axis=(1, 2, 3)), float(image.mean()), atol=1e-4)
    gain = out.std(axis=(1, 2, 3)) / float(image.std())
    assert 0.5 <= gain.min() < 0.55 and 1.8 < gain.max() <= 2.001
    assert 0.4 < np.mean(gain > 1) < 0.6  # log-uniform


def test_gamma_keeps_the_range_and_the_order():
    image = picture()
    out = many(lambda k: augment.random_gamma(k, image, gamma=(0.5, 2.0), probability=1.0), 50)
    flat, rank = np.asarray(out).reshape(50, -1), np.argsort(np.asarray(image).ravel())
    np.testing.assert_allclose(flat.min(1), float(image.min()), atol=1e-5)
    np.testing.assert_allclose(flat.max(1), float(image.max()), atol=1e-5)
    assert (np.diff(flat[:, rank], axis=1) >= -1e-5).all()
    unit = (np.asarray(image).ravel() - flat.min()) / (flat.max() - flat.min())
    middle = np.abs(unit - 0.5) < 0.2
    mapped = (flat[:, middle] - flat.min()) / (flat.max() - flat.min())
    power = np.log(mapped) / np.log(unit[middle])
    assert np.ptp(power, axis=1).max() < 1e-3
    assert 0.5 < power.min() < 0.6 and 1.7 < power.max() < 2.01


@pytest.mark.parametrize("factor", [0.5, 0.75, 0.4])
def test_downscale_agrees_with_pillow(factor):
    image = picture(side=64)
    ours = augment.random_downscale(key(), image, factor=(factor, factor), probability=1.0)
    small = round(64 * factor)
    down = pillow(image[..., 0], (0, 0, 64, 64), small, Image.Resampling.BILINEAR)
    theirs = pillow(down, (0, 0, small, small), 64, Image.Resampling.BILINEAR)
    np.testing.assert_allclose(ours[..., 0], theirs, atol=1e-4)


@pytest.mark.parametrize(
    "function,probability",
    [
        (augment.random_blur, 0.3),
        (augment.random_gamma, 0.3),
        (augment.random_downscale, 0.3),
        (augment.random_noise, 0.3),
    ],
)
def test_probability_is_kept_and_zero_changes_nothing(function, probability):
    image = picture()
    options = {"factor": (0.5, 0.8)} if function is augment.random_downscale else {}
    out = many(lambda k: function(k, image, probability=probability, **options))
    changed = np.abs(out - image).max(axis=(1, 2, 3)) > 1e-4
    assert 0.2 < changed.mean() < 0.4
    never = function(key(), image, probability=0.0, **options)
    np.testing.assert_allclose(never, image, atol=1e-5)


# --- patches


@pytest.mark.parametrize("side,ratio", [(3, 0.3), (7, 0.65), (14, 0.65), (14, 0.6), (5, 0.99)])
def test_the_number_of_hidden_patches_is_exact(side, ratio):
    size = side * 16
    masks = many(lambda k: augment.random_patch_mask(k, size=size, ratio=ratio), 20)
    assert masks.shape == (20, side, side) and masks.dtype == bool
    assert set(np.asarray(masks).sum(axis=(1, 2))) == {int(ratio * size * size / 256)}


def test_the_paper_hides_127_of_196_patches():
    assert augment.random_patch_mask(key(), size=224, ratio=0.65).sum() == 127


def test_every_patch_is_hidden_equally_often():
    masks = many(lambda k: augment.random_patch_mask(k, size=112, ratio=0.65), 3000)
    rate = np.asarray(masks).mean(0)
    assert np.abs(rate - 31 / 49).max() < 0.04


# --- all


RANDOM = [f for n, f in inspect.getmembers(augment, inspect.isfunction) if n.startswith("random_")]


def test_no_augmentation_was_forgotten():
    assert len(RANDOM) >= 11


@pytest.mark.parametrize("function", RANDOM, ids=lambda f: f.__name__)
def test_same_key_same_result_in_and_out_of_jit(function):
    names = inspect.signature(function).parameters
    image, mask = picture(side=64), jnp.asarray(vessels(64, 64), jnp.int32)
    given_ = {"image": image, "mask": mask, "size": 48, "max_offset": 5}
    arguments = {name: given_[name] for name in names if name in given_}

    def call(k, arrays):
        return function(k, **arrays, **{k: v for k, v in arguments.items() if k not in arrays})

    arrays = {name: arguments[name] for name in ("image", "mask") if name in arguments}
    jitted = jax.tree.leaves(many(lambda k: call(k, arrays), 40))
    eager = jax.tree.leaves(call(jax.random.split(key(7), 40)[1], arrays))
    for a, b in zip(eager, jitted, strict=True):
        difference = np.abs(np.asarray(a, float) - np.asarray(b[1], float))
        assert np.mean(difference > 1e-4) < 1e-3
    assert (np.asarray(jitted[0]) != np.asarray(jitted[0][0])).any()
