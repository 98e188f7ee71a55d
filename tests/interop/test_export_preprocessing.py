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
def test_real_angiograms(shared):
    folder = shared("data", "arcade", "syntax", "val", "images")
    frames = np.stack([cv2.imread(str(p), 0) for p in sorted(folder.glob("*.jpg"))[:24]])
    chain = preprocessing.create({"name": "fixed", "size": 128})
    assert_one_level_apart(*both(chain, frames))
    paper = preprocessing.create({"name": "paper", "size": 128})
    ours, theirs = both(paper, frames[:12])
    apart = np.abs(ours - theirs)
    assert np.median(apart.max((1, 2))) < 1e-2  # most have no dark corners
    assert apart.mean() < 1e-2 and apart.max() < 1


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


def test_dark_corners_are_filled_much_as_opencv_fills_them():
    image = angiogram(100, 100).copy()
    image[:18, :18] = image[-12:, -15:] = 10
    region = cv2.dilate((image <= released.DARK).astype(np.uint8), np.ones((5, 5))) > 0
    theirs = cv2.inpaint(image, region.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    filled = np.asarray(
        jax.jit(export_inpaint.inpaint)(image.astype(np.float32), region, np.int32(100))
    )
    np.testing.assert_array_equal(filled[~region], image[~region])
    apart = np.abs(filled - theirs)[region]
    assert apart.mean() < 4 and apart.max() < 60
    assert filled[region].min() > 60  # nothing of the dark is left
