"""From a pool to features: order, padding, what cannot be read, what is not finite."""

import numpy as np
import pytest

from cmunet_jax.data import preprocessing
from cmunet_jax.selection import features
from cmunet_jax.selection.pool import Item, Picture, Pool, Unreadable
from tests.data.fakes import angiogram
from tfds_angio.errors import UserError

CHAIN = preprocessing.create({"name": "fixed", "size": 32})


def pool(count, bad=()):
    def read(position):
        if position in bad:
            raise Unreadable("it is bad")
        return Picture(angiogram(40, 48, position), f"digest{position}")

    return Pool(tuple(Item(f"i{at}", "", "", False) for at in range(count)), read, {})


def encode(images):
    """Two maps: (mean, 1), and quadrant means of the image, shifted to be positive."""
    assert images.shape == (4, 32, 32, 1) and images.dtype == np.float32
    quadrants = images.reshape(4, 2, 16, 2, 16).mean((2, 4)).reshape(4, 4) + 3
    return [np.stack([images.mean((1, 2, 3)), np.ones(4)], axis=1), quadrants]


def embed(source, levels="bottleneck", encoder=encode):
    return features.embed(
        encoder, source, CHAIN, levels=levels, batch_size=4, workers=2, progress=False
    )


def test_rows_are_those_of_the_images_and_have_length_one():
    made = embed(pool(10))
    assert made.features.shape == (10, 4)
    np.testing.assert_allclose(np.linalg.norm(made.features, axis=1), 1)
    for at in (0, 5, 9):  # 9 is in a batch with padding
        image = CHAIN.apply(angiogram(40, 48, at)).float()
        expected = encode(np.repeat(image[None, ..., None], 4, axis=0))[1][0]
        np.testing.assert_allclose(made.features[at], expected / np.linalg.norm(expected))
    assert made.sha256[9] == "digest9" and not made.failed


def test_all_levels_count_the_same():
    got = features.unit([np.array([[3.0, 4.0]]), np.array([[0.0, 20.0]])], levels="all")
    np.testing.assert_allclose(got, np.array([[0.6, 0.8, 0, 1]]) / np.sqrt(2))
    assert embed(pool(2), "all").features.shape == (2, 6)


def test_an_image_that_cannot_be_read_is_named_and_left_out():
    whole, made = embed(pool(10)), embed(pool(10, bad=(0, 4, 5, 6, 7)))
    assert [i.id for i in made.pool.items] == ["i1", "i2", "i3", "i8", "i9"]
    assert made.failed == tuple((f"i{at}", "it is bad") for at in (0, 4, 5, 6, 7))
    np.testing.assert_array_equal(made.features, whole.features[[1, 2, 3, 8, 9]])
    np.testing.assert_array_equal(made.pool.read(3).image, angiogram(40, 48, 8))
    nothing = embed(pool(3, bad=(0, 1, 2)))
    assert not nothing.pool.items and len(nothing.failed) == 3


def test_a_network_that_has_diverged():
    with pytest.raises(UserError, match="NaN or infinity.*config.step"):
        embed(pool(3), encoder=lambda images: [np.full((4, 2), np.nan)])


def test_features_of_zeros_have_no_direction():
    assert features.unit([np.zeros((1, 3))], levels="bottleneck").tolist() == [[0, 0, 0]]
