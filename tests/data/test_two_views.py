"""The two views of MoCo: drawn alike, independently, and each transform as its options say."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cmunet_jax.data import views
from tests.data.test_views import SIDE, assert_close, batch, make
from tfds_angio.errors import UserError

PLAIN = {
    **dict.fromkeys(("rotate", "blur", "noise", "flip_horizontal", "flip_vertical"), 0.0),
    "area": (1.0, 1.0),
    "aspect": (1.0, 1.0),
    "crop": SIDE,
}


def both(data=None, **changes):
    made = make("two_views", data, **changes)
    assert made.keys() == {"view_q", "view_k"}
    return np.asarray(made["view_q"]), np.asarray(made["view_k"])


def many(count):
    """One image many times over, each with a place of its own in the set."""
    image = batch(1)["image"]
    return {
        "image": jnp.repeat(image, count, 0),
        "index": jnp.arange(count, dtype=jnp.int32),
    }


@pytest.mark.parametrize("preset", ["paper", "fixed"])
def test_defaults_at_256_are_the_released_numbers(preset):
    options = views.default_options("two_views", 256, preset=preset)
    assert options == {
        "rotate": 0.5, "degrees": 180.0, "area": (0.2, 1.0), "aspect": (3 / 4, 4 / 3),
        "crop": 224, "blur": 0.5, "blur_sigma": (0.1, 2.0), "flip_horizontal": 0.5,
        "flip_vertical": 0.5, "noise": 0.5, "noise_fraction": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize("train", [True, False])
def test_shapes_and_finite_values(train):
    for view in both(train=train):
        assert view.shape == (12, 48, 48, 1) and view.dtype == np.float32
        assert np.isfinite(view).all()


def test_the_views_of_an_image_differ_and_depend_on_nothing_else():
    data, rows = batch(), np.array([7, 2, 9])
    q, k = both(data)
    assert (np.abs(q - k).mean((1, 2, 3)) > 0.05).all()
    assert_close(
        make("two_views", data), make("two_views", {n: v[rows] for n, v in data.items()}), rows
    )
    again, _ = both(data)
    np.testing.assert_array_equal(q, again)
    other, _ = both(data, step=4)
    assert np.abs(q - other).mean() > 0.05


def test_validation_sees_the_whole_image_twice():
    data = batch()
    q, k = both(data, train=False, crop=SIDE)
    np.testing.assert_array_equal(q, data["image"])
    np.testing.assert_array_equal(k, data["image"])
    assert_close(make("two_views", train=False, step=1), make("two_views", train=False, step=9))


def test_everything_off_is_the_image():
    data = batch()
    for view in both(data, **PLAIN):
        np.testing.assert_allclose(view, data["image"], atol=1e-4)


def test_flips_are_independent_of_each_other_and_between_the_views():
    data = many(200)
    image = np.asarray(data["image"][0])
    kinds = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
    found = []
    for view in both(data, **{**PLAIN, "flip_horizontal": 0.5, "flip_vertical": 0.5}):
        found.append([int(np.argmin([np.abs(v - kind).max() for kind in kinds])) for v in view])
        counts = np.bincount(found[-1], minlength=4)
        assert (counts > 25).all()
    same = np.mean(np.equal(*found))
    assert 0.13 < same < 0.37  # a quarter by chance


def test_half_of_the_views_are_rotated_by_any_angle():
    data = many(200)
    image = np.asarray(data["image"][0])
    rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    inside = np.hypot(rows, columns) < SIDE / 2 - 2
    q, _ = both(data, **{**PLAIN, "rotate": 0.5})
    same = np.abs(q - image).max((1, 2, 3)) < 1e-3
    assert 0.38 < same.mean() < 0.62
    # The angle that fits best, in steps of ten degrees, by another implementation.
    angles = np.arange(0, 360, 10)
    turned = np.stack(
        [ndimage.rotate(image[..., 0], a, reshape=False, order=1)[inside] for a in angles]
    )
    apart = np.abs(q[~same][:, None, inside, 0] - turned).mean(-1)
    best = angles[apart.argmin(1)]
    assert (np.histogram(best, bins=[0, 90, 180, 270, 360])[0] > 8).all()
    assert np.median(apart.min(1)) < 0.5 * np.median(apart)


def test_blur_and_noise_fall_on_half_of_the_views():
    data = many(200)
    for name in ("blur", "noise"):
        for view in both(data, **{**PLAIN, name: 0.5}):
            hit = np.abs(view - np.asarray(data["image"])).max((1, 2, 3)) > 1e-3
            # a blur of less than 0.3 pixels is none
            assert (0.3 if name == "blur" else 0.38) < hit.mean() < 0.62
            sharpness = np.abs(np.diff(view, axis=1)).mean((1, 2, 3))
            order = sharpness[hit].mean() - sharpness[~hit].mean()
            assert order < 0 if name == "blur" else order > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 40}, "crop=40 must be a multiple of 16"),
        ({"crop": 0}, "crop=0"),
        ({"rotate": 1.5}, "rotate=1.5"),
        ({"flip_vertical": -0.5}, "flip_vertical=-0.5"),
        ({"degrees": -10.0}, "degrees=-10.0"),
        ({"noise_fraction": -1.0}, "noise_fraction=-1.0"),
        ({"area": (0.2, 1.2)}, "area must end at 1"),
        ({"blur_sigma": (2.0, 0.1)}, "blur_sigma"),
    ],
)
def test_unusable_options_are_named(changes, message):
    options = {**views.default_options("two_views", SIDE), **changes}
    with pytest.raises(UserError, match=rf"config\.views\.{message}") as caught:
        views.check(("two_views",), options)
    assert "\n" not in str(caught.value)
