"""What the objectives see: shapes, the relation of the two views, keys, refusals."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cmunet_jax.data import views
from tests.data.fakes import angiogram, vessels
from tfds_angio.errors import UserError

SIDE, BATCH = 64, 12
OFF = {
    **{name: 0.0 for name in ("flip_horizontal", "flip_vertical", "rot90", "affine", "downscale")},
    **{name: 0.0 for name in ("blur", "gamma", "brightness", "noise")},
    "contrast": (1.0, 1.0),
}
EVERY = pytest.mark.parametrize("name", ["supervised", "online_target", "masked", "genesis"])


def batch(count=BATCH, first=0):
    images = np.stack([angiogram(SIDE, SIDE, first + i) for i in range(count)]).astype(np.float32)
    images = (images - images.mean((1, 2), keepdims=True)) / images.std((1, 2), keepdims=True)
    masks = np.stack([vessels(SIDE, SIDE, first + i) for i in range(count)])
    return {
        "image": jnp.asarray(images)[..., None],
        "mask": jnp.asarray(masks, jnp.int32),
        "index": jnp.arange(first, first + count, dtype=jnp.int32),
    }


def make(name, data=None, *, seed=0, step=3, train=True, preset="fixed", **changes):
    made = _compiled(name, train, preset, tuple(sorted(changes.items())))
    return made(batch() if data is None else data, jnp.int32(seed), jnp.int32(step))


@functools.cache
def _compiled(name, train, preset, changes):
    """The views of these options as a function that is traced once for all tests."""
    options = {**views.default_options(name, SIDE, preset=preset), **dict(changes)}
    config = ml_collections.ConfigDict(options)
    return jax.jit(
        lambda data, seed, step: views.make_views(
            (name,), data, seed=seed, step=step, config=config, train=train
        )
    )


def assert_close(one, other, rows=slice(None)):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(
            np.asarray(one[name], float)[rows], np.asarray(other[name], float), atol=1e-5
        )


# --- both


@EVERY
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("preset", ["paper", "fixed"])
def test_shapes_types_and_finite_values(name, train, preset):
    made = make(name, train=train, preset=preset)
    whole, crop = ((SIDE, SIDE, 1), "float32"), ((48, 48, 1), "float32")
    expected = {
        "supervised": {"image": whole, "mask": ((SIDE, SIDE), "int32")},
        "online_target": {"view_a": crop, "view_b": crop, "patches": ((3, 3), "bool")},
        "masked": {"image": whole, "patches": ((4, 4), "bool")},
        "genesis": {"image": whole, "target": whole},
    }[name]
    if name == "supervised":
        assert set(np.unique(made["mask"])) == {0, 1}
    assert {k: (v.shape, str(v.dtype)) for k, v in made.items()} == {
        k: ((BATCH, *shape), kind) for k, (shape, kind) in expected.items()
    }
    assert all(np.isfinite(np.asarray(v, float)).all() for v in made.values())


@EVERY
def test_a_view_depends_on_its_example_and_not_on_its_neighbours(name):
    data, rows = batch(), np.array([7, 2, 9])
    some = {key: value[rows] for key, value in data.items()}
    assert_close(make(name, data), make(name, some), rows)


@EVERY
def test_seed_step_and_index_all_matter(name):
    data = batch()
    twins = {**data, "image": jnp.repeat(data["image"][:1], BATCH, 0)}
    made = [make(name, twins, seed=seed, step=step) for seed, step in ((0, 3), (0, 4), (1, 3))]
    flat = [
        np.concatenate([np.asarray(value, float).reshape(BATCH, -1) for value in one.values()], 1)
        for one in made
    ]
    flat = np.concatenate(flat)
    assert len(np.unique(flat, axis=0)) > 2.5 * BATCH


@EVERY
def test_validation_sees_the_same_at_every_step(name):
    assert_close(make(name, step=1, train=False), make(name, step=900, train=False))


@EVERY
def test_jit_equals_eager(name):
    options = views.default_options(name, SIDE)
    data = batch(2)
    eager = views.make_views((name,), data, seed=0, step=3, config=options, train=True)
    jitted = make(name, data)
    for key in eager:
        difference = np.abs(np.asarray(eager[key], float) - np.asarray(jitted[key], float))
        assert np.mean(difference > 1e-3) < 1e-3


def test_several_views_of_a_batch():
    names = ("online_target", "supervised")
    config = {name: views.default_options(name, SIDE) for name in names}
    made = jax.jit(
        lambda data: views.make_views(names, data, seed=0, step=0, config=config, train=True)
    )(batch(2))
    assert made.keys() == {"view_a", "view_b", "patches", "image", "mask"}
    assert_close(make("supervised", batch(2), step=0), {k: made[k] for k in ("image", "mask")})


# --- supervised


def test_everything_off_is_the_identity():
    data = batch()
    made = make("supervised", data, **OFF)
    np.testing.assert_array_equal(made["image"], data["image"])
    np.testing.assert_array_equal(made["mask"], data["mask"])


def test_validation_is_not_augmented():
    data = batch()
    made = make("supervised", data, train=False)
    np.testing.assert_array_equal(made["image"], data["image"])


def test_image_and_mask_keep_together():
    data = batch()
    data["image"] = data["mask"][..., None].astype(jnp.float32)
    grey = {name: OFF[name] for name in ("downscale", "blur", "gamma", "brightness", "noise")}
    made = make("supervised", data, **grey, contrast=(1.0, 1.0), affine=1.0)
    agree = (np.asarray(made["image"][..., 0]) >= 0.5) == (np.asarray(made["mask"]) == 1)
    assert agree.mean() > 0.99
    assert not np.array_equal(made["mask"], data["mask"])


@pytest.mark.parametrize("name", sorted(set(OFF) - {"flip_horizontal", "flip_vertical"}))
def test_each_step_can_be_switched_on_alone(name):
    data = batch()
    on = {"contrast": (0.5, 2.0), "brightness": 0.5}.get(name, 1.0)
    made = make("supervised", data, **{**OFF, name: on})
    assert not np.allclose(made["image"], data["image"], atol=1e-3)
    moved = not np.array_equal(made["mask"], data["mask"])
    assert moved == (name in ("rot90", "affine"))


def test_paper_has_the_released_kinds_only():
    paper = views.default_options("supervised", 256, preset="paper")
    assert paper["affine"] == paper["gamma"] == 0 and paper["contrast"] == (1, 1)
    for name in ("noise", "blur", "brightness", "downscale", "flip_horizontal", "rot90"):
        assert paper[name] > 0


def test_other_size_is_resampled():
    made = make("supervised", size=32)
    assert made["image"].shape == (BATCH, 32, 32, 1) and made["mask"].shape == (BATCH, 32, 32)


def test_masks_are_asked_for():
    data = batch(2)
    del data["mask"]
    with pytest.raises(UserError, match="masks"):
        make("supervised", data)


# --- online and target


@pytest.mark.parametrize("preset", ["paper", "fixed"])
def test_defaults_at_256_are_the_papers(preset):
    options = views.default_options("online_target", 256, preset=preset)
    assert options["base_size"] == 256 and options["crop"] == 224 and options["max_offset"] == 31
    assert options["area"] == (0.2, 1.0) and options["aspect"] == (3 / 4, 4 / 3)
    assert options["patch_ratio"] == 0.65 and options["noise"] == 0.5


@pytest.mark.parametrize("size", [48, 64, 128, 192, 512])
def test_defaults_of_any_size_are_valid(size):
    for name in views.VIEWS:
        views.check((name,), views.default_options(name, size))


def offsets(made, most):
    """Where in A each B begins, found by comparing; one answer an image."""
    found = []
    for a, b in zip(np.asarray(made["view_a"]), np.asarray(made["view_b"])):
        side = len(a)
        (place,) = [
            (dy, dx)
            for dy in range(most + 1)
            for dx in range(most + 1)
            if np.allclose(a[dy:, dx:], b[: side - dy, : side - dx], atol=1e-6)
        ]
        found.append(place)
    return np.array(found)


def test_target_is_the_base_view_at_an_offset():
    made = make("online_target", batch(40), noise=0.0, max_offset=7)
    found = offsets(made, 7)
    assert found.min() == 0 and found.max() == 7
    assert (np.bincount(found.ravel(), minlength=8) > 0).all()
    assert abs(np.corrcoef(found.T)[0, 1]) < 0.5  # dy and dx are drawn apart


def test_online_view_is_the_corner_of_the_base_view_without_noise():
    data = batch()
    made = make("online_target", data, train=False)
    np.testing.assert_array_equal(made["view_a"], data["image"][:, :48, :48])


def test_noise_falls_on_half_of_the_targets_and_never_on_the_online_view():
    data = batch(4)
    data = {k: jnp.tile(v, (50,) + (1,) * (v.ndim - 1)) for k, v in data.items()}
    data["index"] = jnp.arange(200, dtype=jnp.int32)
    clean, noisy = (make("online_target", data, noise=p) for p in (0.0, 0.5))
    np.testing.assert_array_equal(clean["view_a"], noisy["view_a"])
    difference = np.asarray(noisy["view_b"] - clean["view_b"])
    strength = difference.std(axis=(1, 2, 3))
    hit = strength > 0
    assert 0.4 < hit.mean() < 0.6
    expected = np.asarray(clean["view_b"]).max(axis=(1, 2, 3)) / 10
    np.testing.assert_allclose(strength[hit], expected[hit], rtol=0.15)


def test_every_image_has_a_patch_mask_of_its_own_with_the_exact_count():
    patches = np.asarray(make("online_target", batch(40))["patches"])
    assert set(patches.sum(axis=(1, 2))) == {int(0.65 * 9)}
    assert len(np.unique(patches.reshape(40, -1), axis=0)) > 20


# --- masked


def test_an_uncropped_masked_view_is_the_image():
    data = batch()
    made = make("masked", data, flip_horizontal=0.0, area=(1.0, 1.0))
    np.testing.assert_array_equal(made["image"], data["image"])
    flipped = make("masked", data, flip_horizontal=1.0, area=(1.0, 1.0))
    np.testing.assert_array_equal(flipped["image"], data["image"][:, :, ::-1])
    cropped = make("masked", data, area=(0.3, 0.5))
    assert np.abs(cropped["image"] - data["image"]).mean() > 0.1


@pytest.mark.parametrize("ratio", [0.5, 0.6])
def test_masked_patches_are_the_images_own_and_exactly_as_many(ratio):
    patches = np.asarray(make("masked", batch(40), patch_ratio=ratio)["patches"])
    assert set(patches.sum(axis=(1, 2))) == {int(ratio * 16)}
    assert len(np.unique(patches.reshape(40, -1), axis=0)) > 30


# --- genesis

QUIET = dict(flip=0.0, shuffle=0.0, intensity=0.0, paint=0.0)


def test_without_transforms_image_and_target_are_the_image():
    data = batch()
    made = make("genesis", data, **QUIET)
    np.testing.assert_array_equal(made["image"], data["image"])
    np.testing.assert_array_equal(made["target"], data["image"])


def test_flips_move_image_and_target_alike():
    data = batch()
    made = make("genesis", data, **(QUIET | {"flip": 1.0, "flips": 1}))
    np.testing.assert_array_equal(made["image"], made["target"])
    source = np.asarray(data["image"])
    for image, before in zip(np.asarray(made["target"]), source):
        assert any(np.array_equal(image, before[flip]) for flip in (np.s_[::-1], np.s_[:, ::-1]))


@pytest.mark.parametrize("preset", ["paper", "fixed"])
def test_noise_is_painted_in_the_range_of_the_preset(preset):
    data = batch()
    made = make("genesis", data, preset=preset, **(QUIET | {"paint": 1.0, "inpaint": 0.0}))
    image, target = np.asarray(made["image"]), np.asarray(made["target"])
    for noisy, clean in zip(image, target):
        noise = noisy[noisy != clean]
        low, high = (0, 1) if preset == "paper" else (clean.min(), clean.max())
        assert low <= noise.min() and noise.max() <= high
        assert np.ptp(noise) > 0.9 * (high - low)


@pytest.mark.parametrize("name", ["shuffle", "intensity", "paint"])
def test_each_transform_changes_the_image_and_not_the_target(name):
    data = batch()
    made = make("genesis", data, **(QUIET | {name: 1.0}))
    np.testing.assert_array_equal(made["target"], data["image"])
    assert (np.abs(made["image"] - made["target"]).mean((1, 2, 3)) > 1e-3).mean() > 0.8


# --- refusals


@pytest.mark.parametrize(
    "name,changes,word",
    [
        ("online_target", {"crop": 40}, "crop=40"),
        ("online_target", {"max_offset": 40}, "max_offset=40"),
        ("online_target", {"patch_ratio": 0.01}, "patch_ratio=0.01"),
        ("online_target", {"patch_ratio": 1.0}, "hides none or all"),
        ("online_target", {"area": (0.2, 1.5)}, "area"),
        ("online_target", {"area": (0.0, 1.0)}, "area"),
        ("online_target", {"noise": 1.5}, "noise=1.5"),
        ("supervised", {"blur": -0.1}, "blur=-0.1"),
        ("supervised", {"scale": (1.2, 0.8)}, "scale"),
        ("supervised", {"downscale_factor": (0.5, 2.0)}, "downscale_factor"),
        ("supervised", {"size": 40}, "size=40"),
        ("masked", {"size": 40}, "size=40"),
        ("masked", {"patch_ratio": 0.01}, "patch_ratio=0.01"),
        ("masked", {"area": (0.2, 1.5)}, "area"),
        ("genesis", {"size": 16}, "size=16"),
        ("genesis", {"paint": 1.5}, "paint=1.5"),
        ("genesis", {"shuffle_side": 0}, "shuffle_side=0"),
        ("genesis", {"paint_noise": "grey"}, "paint_noise='grey'"),
    ],
)
def test_unusable_options_name_the_key(name, changes, word):
    with pytest.raises(UserError) as error:
        make(name, **changes)
    assert f"config.views.{word}" in str(error.value) or word in str(error.value)


def test_unknown_views_and_missing_options_are_named():
    with pytest.raises(UserError, match="'moco' is unknown"):
        views.default_options("moco", 64)
    with pytest.raises(UserError, match=r"config\.views\.flip_horizontal is missing"):
        views.check(("supervised",), {"size": 64})
