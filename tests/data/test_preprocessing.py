"""The two chains: what they keep, what they do not depend on, and what they refuse."""

import json

import cv2
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cmunet_jax.data import geometry, released
from cmunet_jax.data.preprocessing import Preprocessing, create
from tests.data.fakes import angiogram, vessels
from tests.golden import preprocess as golden
from tfds_angio.errors import UserError

BOTH = pytest.mark.parametrize("name", ["paper", "fixed"])


def chain(name="fixed", size=128, **options) -> Preprocessing:
    return create({"name": name, "size": size, **options})


def dice(a, b):
    return 2 * np.sum((a > 0) & (b > 0)) / (np.sum(a > 0) + np.sum(b > 0))


def framed(image, border, level=12):
    """The image behind collimator blades with a soft edge."""
    open_ = np.zeros(image.shape, np.float32)
    open_[border:-border, border:-border] = 1
    open_ = cv2.GaussianBlur(open_, (0, 0), 2)
    return (level + (image - level) * open_).astype(np.uint8)


# --- released chain


def test_released_chain_equals_golden_values(shared):
    path = shared("golden", "public_preprocess.npz")  # a real image, so not in the repository
    with np.load(path) as case:
        checks = golden.check(dict(case), path.stem)
    assert {check.name for check in checks} >= {"cropped", "standardised", "code", "mask"}
    assert not [check for check in checks if not check.passed]


def released_case():
    """What the released chain makes of a synthetic image, by other code than ours."""
    raw, raw_mask = framed(angiogram(512, 512), 30), vessels(512, 512)
    cropped = raw[18:493, 18:493].copy()
    corners = np.zeros(cropped.shape, bool)
    corners[np.ix_([*range(142), *range(333, 475)], [*range(142), *range(333, 475)])] = True
    dark = ndimage.binary_dilation(corners & (cropped <= 30), np.ones((5, 5)))
    cropped = cv2.inpaint(cropped, dark.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    values = cropped.astype(np.float64)
    sharp = values + 3 * (values - ndimage.gaussian_filter(values, 60, mode="reflect"))
    standardised = (sharp - sharp.mean()) / np.sqrt(np.mean((sharp - sharp.mean()) ** 2))
    return {
        "raw": raw,
        "raw_mask": raw_mask,
        "cropped": cropped,
        "standardised": standardised.astype(np.float16),
        "mask": raw_mask[18:493, 18:493],
    }


def test_released_chain_equals_a_second_implementation():
    checks = golden.check(released_case(), "synthetic")
    assert [check.name for check in checks][:3] == ["cropped", "standardised", "code"]
    assert not [check for check in checks if not check.passed]


def test_the_golden_check_sees_one_value_off_by_two_float16_steps():
    case = released_case()
    pixel = np.unravel_index(np.abs(case["standardised"].astype(float) - 0.1).argmin(), (475, 475))
    case["standardised"][pixel] += 2 * np.spacing(case["standardised"][pixel])
    failed = {check.name for check in golden.check(case, "synthetic") if not check.passed}
    assert failed == {"standardised", "code"}


@pytest.mark.parametrize("dark,changed", [(99, False), (100, True)])
def test_inpainting_starts_at_100_dark_corner_pixels_of_all_corners_together(dark, changed):
    image = np.full((100, 100), 200, np.uint8)
    image[:10, :5] = 30  # 50 in one corner (side 30), the rest in the opposite one
    image[90:, 95:] = 30
    image[90:, 95:].flat[: 100 - dark] = 31
    image[40:60, 40:60] = 0  # the centre does not count and is not touched
    result = released.inpaint_corners(image)
    assert (result[0, 0] > 150) == changed
    assert (result[40:60, 40:60] == 0).all()


def test_standardised_image_has_zero_mean_and_unit_deviation():
    values = released.standardise(angiogram(200, 200))
    assert values.dtype == np.float32
    assert abs(values.mean()) < 1e-5 and abs(values.std() - 1) < 1e-5


def test_bicubic_agrees_with_an_independent_implementation():
    values = released.standardise(angiogram(96, 96))
    theirs = jax.image.resize(values, (64, 64), "cubic", antialias=True)
    np.testing.assert_allclose(released.resize_bicubic(values, 64), theirs, atol=2e-3)


@pytest.mark.parametrize(
    "shape,expected",
    [((512, 512), (18, 18, 475)), ((600, 475), (62, 0, 475)), ((400, 512), (0, 56, 400))],
)
def test_centre_crop_is_rounded_down_and_never_padded(shape, expected):
    window = chain("paper").geometry(*shape)
    assert (window.top, window.left, window.side) == expected


def test_contours_of_masks_are_filled_on_request_only():
    ring = np.zeros((100, 100), np.uint8)
    cv2.circle(ring, (50, 50), 30, 7, 3)
    open_, filled = (chain("paper", 64, fill_contours=fill) for fill in (False, True))
    window = open_.geometry(100, 100)
    assert open_.apply_mask(ring, window)[32, 32] == 0
    assert filled.apply_mask(ring, window)[32, 32] == 1
    assert set(np.unique(open_.apply_mask(ring, window))) == {0, 1}


# --- fixed chain


@given(
    border=st.integers(8, 50), level=st.integers(0, 30), seed=st.integers(0, 5), turns=st.booleans()
)
@settings(max_examples=15, deadline=None)
def test_collimator_becomes_neutral_and_leaves_the_inside_alone(border, level, seed, turns):
    image = angiogram(256, 256, seed)
    covered = framed(image, border, level)
    if turns:
        image, covered = image.T, covered.T
    with_, without = (chain(size=256).apply(x).float() for x in (covered, image))
    assert np.abs(with_[: border - 4]).max() == 0 and np.abs(with_[:, -border + 4 :]).max() == 0
    inner = slice(border + 16, -border - 16)
    correlation = np.corrcoef(with_[inner, inner].ravel(), without[inner, inner].ravel())[0, 1]
    assert correlation > 0.97


def test_collimator_ruins_the_released_statistics_but_not_ours():
    image = angiogram(475, 475)
    covered = framed(image, 60, 40)
    inner = slice(80, -80)
    spread = {}
    for name in ("paper", "fixed"):
        values = [chain(name, 480).apply(x).float()[inner, inner].std() for x in (image, covered)]
        spread[name] = values[1] / values[0]
    assert abs(spread["fixed"] - 1) < 0.2
    assert spread["paper"] < 0.6


def test_round_shutter_is_found():
    image = angiogram(256, 256)
    rows, columns = np.mgrid[:256, :256] - 127.5
    inside = np.hypot(rows, columns) < 120
    values = chain(size=256).apply(np.where(inside, image, 5).astype(np.uint8)).float()
    assert np.mean(values[~inside] == 0) > 0.97
    assert np.mean(values[inside] == 0) < 0.15


def test_dark_anatomy_at_the_edge_stays_in_the_field_of_view():
    image = angiogram(256, 256).astype(int)
    image[:, 150:] = image[:, 150:] * 0.45  # a spine: dark, but its vessels are darker still
    values = chain(size=256).apply(image.astype(np.uint8)).float()
    assert np.mean(values[:, 170:] == 0) < 0.1
    assert values[:, 170:].std() > 0.2


@given(seed=st.integers(0, 20))
@settings(max_examples=8, deadline=None)
def test_fixed_does_not_depend_on_the_scanner_scale(seed):
    image = framed(angiogram(128, 128, seed), 10)
    expected = chain().apply(image).code.astype(int)
    others = [
        (image.astype(np.uint16) * 150 + 3000),
        (image.astype(np.float32) - 90) / 37,
        image.astype(np.float64) * 1e-4,
    ]
    for other in others:
        difference = np.abs(chain().apply(other).code.astype(int) - expected)
        # rounding may move the outline of the field by a pixel, and nothing else
        assert np.mean(difference > 1) < 0.005


def test_aspect_is_kept_and_padding_is_neutral():
    image = np.full((200, 320), 180, np.uint8)
    image[np.hypot(*(np.mgrid[:200, :320] - np.array([100, 160])[:, None, None])) < 60] = 60
    prepared = chain(size=160).apply(image)
    dark = prepared.float() < -1
    height, width = np.ptp(np.nonzero(dark), axis=1) + 1
    assert abs(height - width) <= 1 and abs(height - 60) <= 2
    assert (prepared.float()[:29] == 0).all() and (prepared.float()[-29:] == 0).all()


# --- both


@BOTH
@given(height=st.integers(20, 140), width=st.integers(20, 140), size=st.sampled_from([16, 64, 160]))
@settings(max_examples=20, deadline=None)
def test_any_size_gives_a_code_of_the_promised_type(name, height, width, size):
    prepared = chain(name, size).apply(angiogram(height, width))
    assert prepared.code.shape == (size, size)
    assert prepared.code.dtype == (np.uint16 if name == "paper" else np.uint8)
    values = prepared.float()
    assert values.dtype == np.float32 and np.isfinite(values).all()
    assert abs(values.mean()) < 0.7 and 0.3 < values.std() < 1.7


@BOTH
def test_three_axes_with_one_channel_are_the_same_image(name):
    image = angiogram(90, 100)
    one, three = chain(name).apply(image), chain(name).apply(image[..., None])
    np.testing.assert_array_equal(one.code, three.code)


@BOTH
def test_constant_image_becomes_zero(name):
    values = chain(name).apply(np.full((60, 60), 7, np.uint16)).float()
    assert np.abs(values).max() == 0


def test_sixteen_bits_lose_less_than_a_ten_thousandth():
    image = angiogram(475, 475)
    exact = released.prepare(image, geometry.centre_crop(475, 475, 475, 240))
    assert np.abs(chain("paper", 240).apply(image).float() - exact).max() < 1e-4


@BOTH
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((8, 8), bool),
        np.full((8, 8), np.nan, np.float32),
    ],
)
def test_unusable_images_are_refused_in_words(name, image):
    with pytest.raises(UserError, match="convert|NaN"):
        chain(name).apply(image)


def test_mask_of_another_size_is_refused():
    with pytest.raises(UserError, match="size of their image"):
        chain().apply_mask(np.zeros((5, 6)), chain().geometry(6, 5))


@BOTH
@given(height=st.integers(150, 300), width=st.integers(150, 300), seed=st.integers(0, 9))
@settings(max_examples=12, deadline=None)
def test_mask_survives_the_round_trip(name, height, width, seed):
    mask = vessels(height, width, seed)
    for size, least in ((128, 0.8), (256, 0.9)):
        way = chain(name, size)
        window = way.geometry(height, width)
        small = way.apply_mask(mask, window)
        back = way.restore(small[..., None].astype(np.float32), window)[..., 0]
        assert back.shape == mask.shape
        seen = np.zeros(mask.shape, bool)
        seen[window.inner] = True
        assert dice(back > 0.5, mask * seen) > least
        assert (back[~seen] == 0).all()


@BOTH
@pytest.mark.parametrize("shape,size", [((90, 130), 64), ((130, 90), 256), ((128, 128), 128)])
def test_restoring_does_not_shift(name, shape, size):
    """A ramp keeps its values through window, resampling and back."""
    way = chain(name, size)
    window = way.geometry(*shape)
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    for ramp in (rows, columns):
        square = geometry.extract(ramp, window, fill=None)
        shrink = size < window.side
        interpolation = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        small = cv2.resize(square, (size, size), interpolation=interpolation)
        back = way.restore(small[..., None], window)[..., 0]
        inner = tuple(slice(s.start + 4, s.stop - 4) for s in window.inner)
        np.testing.assert_allclose(back[inner], ramp[inner], atol=0.1)


def test_outside_of_the_window_is_filled_by_channel():
    way = chain("paper", 64)
    window = way.geometry(600, 500)
    back = way.restore(np.ones((64, 64, 2), np.float32), window, fill=(3.0, -3.0))
    assert back.shape == (600, 500, 2)
    np.testing.assert_array_equal(back[0, 0], [3, -3])
    np.testing.assert_array_equal(back[300, 250], [1, 1])


def test_values_of_another_size_are_refused():
    with pytest.raises(ValueError, match="expected"):
        chain(size=64).restore(np.zeros((32, 32, 1), np.float32), chain(size=64).geometry(9, 9))


# --- the object


@BOTH
def test_survives_json_and_has_a_digest_of_its_own(name):
    original = chain(name, 96)
    copy = Preprocessing.from_dict(json.loads(json.dumps(original.to_dict())))
    assert copy == original and copy.digest == original.digest
    assert chain(name, 112).digest != original.digest


def test_every_option_changes_the_digest():
    values = {"flatten": 0.5, "flatten_sigma": 0.2, "darkness": 0.2, "min_field": 0.1, "fade": 0.1}
    digests = {chain(**{key: value}).digest for key, value in values.items()}
    assert len(digests | {chain().digest}) == len(values) + 1
    assert chain("paper", centre_crop=400).digest != chain("paper").digest


def test_a_number_written_as_integer_is_the_same_option():
    assert chain(percentile=1).digest == chain(percentile=1.0).digest


@pytest.mark.parametrize(
    "config,word",
    [
        ({"name": "best", "size": 64}, "paper or fixed"),
        ({"name": "fixed"}, "size=None"),
        ({"name": "fixed", "size": 100}, "multiple of 16"),
        ({"name": "fixed", "size": "64"}, "multiple of 16"),
        ({"name": "fixed", "size": 64, "blur": 1}, "blur is no option"),
        ({"name": "fixed", "size": 64, "flatten": 2}, "0.0..1.0"),
        ({"name": "fixed", "size": 64, "flatten": "much"}, "must be a float"),
        ({"name": "fixed", "size": 64, "percentile": True}, "must be a float"),
        ({"name": "paper", "size": 64, "fill_contours": 1}, "must be a bool"),
        ({"name": "paper", "size": 64, "centre_crop": 2}, "16..65536"),
        ({"name": "paper", "size": 64, "version": 99}, "version 1 here, but 99"),
    ],
)
def test_bad_configs_name_the_key(config, word):
    with pytest.raises(UserError) as error:
        create(config)
    assert word in str(error.value)


def test_field_of_view_holds_the_labelled_arteries(shared):
    """On real images: the detected field loses practically nothing of the annotations."""
    root = shared("data", "arcade", "syntax", "val")
    annotations = json.loads((root / "annotations" / "val.json").read_text())
    lost = []
    for record in annotations["images"][::8]:
        file = root / "images" / record["file_name"].replace(".png", ".jpg")
        image = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        mask = np.zeros(image.shape, np.uint8)
        for annotation in annotations["annotations"]:
            if annotation["image_id"] == record["id"]:
                for polygon in annotation["segmentation"]:
                    points = np.round(np.reshape(polygon, (-1, 1, 2))).astype(np.int32)
                    cv2.fillPoly(mask, [points], 1)
        prepared = chain(size=256).apply(image)
        small = chain(size=256).apply_mask(mask, prepared.geometry) > 0
        lost.append(np.mean(prepared.float()[small] == 0))
    assert np.mean(lost) < 0.02 and np.max(lost) < 0.1
