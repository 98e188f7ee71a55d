"""The exported preprocessing gives what the chain on the host gives, for both presets."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cmunet_jax.data import field_of_view, preprocessing, released
from cmunet_jax.interop import export_field, export_inpaint, export_preprocessing
from tests.data.fakes import angiogram

SIZE = 64
# Version 4 fills the first row and column otherwise; the exported program follows version 5.
opencv_5 = pytest.mark.skipif(int(cv2.__version__.split(".")[0]) < 5, reason="OpenCV 4 is here")


@functools.cache
def exported(chain):
    options = chain.to_dict()
    return jax.jit(lambda x, eight: export_preprocessing.network_input(x, eight, options))


def both(chain, frames):
    """(host's, exported's) network inputs of frames [B, H, W]."""
    ours = np.stack([chain.apply(frame).float() for frame in frames])
    eight = np.bool_(frames.dtype == np.uint8)
    return ours, np.asarray(exported(chain)(frames.astype(np.float32), eight))


def framed(image, border, level=8):
    open_ = np.zeros(image.shape, np.float32)
    open_[border:, border:-border] = 1
    open_ = cv2.GaussianBlur(open_, (0, 0), 1.5)
    return (level + (image - level) * open_).astype(image.dtype)


def assert_one_level_apart(ours, theirs):
    """`fixed` codes 8 bits: a rounding error may move a pixel by one level, and few of them."""
    apart = np.abs(ours - theirs)
    assert apart.max() < 0.05
    assert (apart > 1e-4).mean() < 2e-3


def test_versions_are_those_of_the_host():
    assert export_preprocessing.VERSIONS == preprocessing.VERSIONS


def test_fixed_equals_the_host_with_a_collimator_and_padding():
    chain = preprocessing.create({"name": "fixed", "size": SIZE})
    frames = np.stack([angiogram(130, 97, seed=1), framed(angiogram(130, 97, seed=2), 7)])
    ours, theirs = both(chain, frames)
    assert_one_level_apart(ours, theirs)
    assert (ours[1] == 0).mean() > (ours[0] == 0).mean() + 0.05  # the collimator was found
    scaled = both(chain, frames.astype(np.uint16) * 16)[1]
    assert_one_level_apart(theirs, scaled)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(512, 512), (40, 50), (64, 64), (700, 900), (64, 48)])
def test_fixed_equals_the_host_at_any_size(shape):
    chain = preprocessing.create({"name": "fixed", "size": SIZE})
    assert_one_level_apart(*both(chain, framed(angiogram(*shape), 5)[None]))
    assert_one_level_apart(*both(chain, np.full((1, *shape), 7, np.uint8)))


@pytest.mark.parametrize(
    "shape,crop",
    [((120, 110), 96), pytest.param((80, 200), 96, marks=pytest.mark.slow)],
)
def test_paper_equals_the_host_up_to_its_code(shape, crop):
    chain = preprocessing.create({"name": "paper", "size": SIZE, "centre_crop": crop})
    frames = np.stack([angiogram(*shape), np.full(shape, 90, np.uint8)])
    ours, theirs = both(chain, frames)
    np.testing.assert_allclose(theirs, ours, atol=4e-4)  # a step of the 16-bit code and rounding


@pytest.mark.slow
@opencv_5
def test_real_angiograms(shared):
    folder = shared("data", "arcade", "syntax", "val", "images")
    frames = np.stack([cv2.imread(str(p), 0) for p in sorted(folder.glob("*.jpg"))[:24]])
    chain = preprocessing.create({"name": "fixed", "size": 128})
    assert_one_level_apart(*both(chain, frames))
    paper = preprocessing.create({"name": "paper", "size": 128})
    ours, theirs = both(paper, frames[:12])
    np.testing.assert_allclose(theirs, ours, atol=4e-4)
    low_bits = np.random.default_rng(0).integers(0, 16, frames.shape).astype(np.uint16)
    ours, theirs = both(paper, (frames.astype(np.uint16) * 16 + low_bits)[:12])
    np.testing.assert_allclose(theirs, ours, atol=4e-4)


def test_hulls_medians_and_connected_parts_are_those_of_opencv():
    rng = np.random.default_rng(0)
    hull, largest = jax.jit(export_field.convex_hull), jax.jit(export_field.largest_component)
    touching = jax.jit(export_field._connected_to_edge)
    for _ in range(40):
        points = rng.integers(0, 256, (rng.integers(1, 30), 2))
        region = np.zeros((256, 256), bool)
        region[points[:, 0], points[:, 1]] = True
        drawn = np.zeros(region.shape, np.uint8)
        found = cv2.findNonZero(region.astype(np.uint8))
        cv2.fillConvexPoly(drawn, cv2.convexHull(found), 1)
        np.testing.assert_array_equal(hull(region), drawn > 0)
        noise = ndimage.gaussian_filter(rng.normal(size=(256, 256)), rng.uniform(0.5, 6))
        region = noise > np.quantile(noise, rng.uniform(0.3, 0.7))
        np.testing.assert_array_equal(largest(region), field_of_view._largest_component(region))
        np.testing.assert_array_equal(touching(region), field_of_view._connected_to_edge(region))
    image = noise.astype(np.float32)
    median = jax.jit(export_field.median_5x5)
    np.testing.assert_array_equal(median(image), cv2.medianBlur(image, 5))


def test_the_way_back_is_the_hosts():
    margins = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)
    for name, shape in (("fixed", (50, 40)), ("fixed", (90, 130)), ("paper", (130, 90))):
        options = {"centre_crop": 80} if name == "paper" else {}
        chain = preprocessing.create({"name": name, "size": SIZE, **options})
        ours = chain.restore(margins[..., None], chain.geometry(*shape), fill=np.nan)[..., 0]
        frames = jnp.zeros((1, *shape))
        native, seen = export_preprocessing.restore(margins[None], frames, chain.to_dict())
        np.testing.assert_array_equal(seen, ~np.isnan(ours))
        np.testing.assert_allclose(native[0][seen], ours[seen], atol=1e-5)


def corners(image, *, level=8):
    """The image [N, N] behind a round shutter, whose edge is ragged."""
    away = np.hypot(*(np.mgrid[: len(image), : len(image)] - len(image) / 2 + 0.5)) / len(image)
    ragged = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=image.shape), 2)
    return np.where(away + 0.2 * ragged < 0.55, image, level).astype(image.dtype)


def dark_corners():
    image = angiogram(100, 100)
    inner = image.copy()
    inner[2:20, 3:25] = inner[80:96, 70:97] = 10
    yield corners(image)
    yield corners(np.full_like(image, 91))  # rounding alone decides between two levels
    yield corners(image, level=30)[::-1, ::-1].copy()
    yield inner
    yield (corners(image) // 16).astype(np.uint8)  # whole corners are dark


@opencv_5
def test_dark_corners_are_filled_as_opencv_fills_them():
    fill = jax.jit(export_preprocessing._inpaint_corners)
    for image in dark_corners():
        ours = released.inpaint_corners(image)
        assert (ours != image).any()
        inside = np.ones(image.shape, bool)
        theirs = fill(image.astype(np.float32), inside, np.int32(len(image)))
        np.testing.assert_array_equal(theirs, ours)


@opencv_5
def test_a_region_of_any_form_is_filled_as_opencv_fills_it():
    image, side = angiogram(40, 40), 33
    fill = jax.jit(export_inpaint.inpaint)
    rng = np.random.default_rng(1)
    for limit in (0.9, 0.6, 0.3, 0):  # the last: nothing is known
        region = np.zeros(image.shape, bool)
        noise = ndimage.gaussian_filter(rng.normal(size=(side, side)), 1.5)
        region[:side, :side] = noise >= np.quantile(noise, limit)
        crop, mask = image[:side, :side].copy(), region[:side, :side].astype(np.uint8)
        ours = cv2.inpaint(crop, mask, export_inpaint.RADIUS, cv2.INPAINT_TELEA)
        padded = np.pad(crop, (0, len(image) - side)).astype(np.float32)
        theirs = fill(padded, region, np.int32(side))
        np.testing.assert_array_equal(np.asarray(theirs)[:side, :side], ours)


@opencv_5
def test_paper_equals_the_host_with_dark_corners():
    chain = preprocessing.create({"name": "paper", "size": SIZE, "centre_crop": 96})
    low_bits = np.random.default_rng(0).integers(0, 16, (100, 100))
    frames = np.stack([corners(angiogram(100, 100)), angiogram(100, 100, seed=1)])
    for some in (frames, frames.astype(np.uint16) * 16 + low_bits.astype(np.uint16)):
        assert released.to_uint8(some[0])[2:4, 2:4].max() <= released.DARK
        ours, theirs = both(chain, some)
        np.testing.assert_allclose(theirs, ours, atol=4e-4)


@pytest.mark.parametrize("span", [510, 2550, 1190, 65025])
def test_levels_half_way_between_two_are_rounded_as_on_the_host(span):
    frame = np.arange(span + 1, dtype=np.uint16)[None] + 300
    theirs = jax.jit(export_preprocessing._to_8bit)(frame.astype(np.float32), np.bool_(False))
    np.testing.assert_array_equal(theirs, released.to_uint8(frame))
