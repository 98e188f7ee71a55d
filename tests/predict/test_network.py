"""Frames through networks: order, batches, bounded memory, views and ensembles."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cmunet_jax.evaluation import inference
from cmunet_jax.predict import network as lib
from cmunet_jax.predict.network import Frame, How, Network
from tests.data.fakes import angiogram
from tests.evaluation import fakes as evaluation_fakes
from tests.predict.fakes import Dark, chain, frames, network
from tfds_angio.errors import UserError


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as made:
        yield made


def test_frames_of_all_sizes_share_batches_and_keep_their_order(pool):
    shapes = [(15, 15), (40, 30), (20, 90), (33, 33), (200, 20)]
    images = [angiogram(*shape, seed) for seed, shape in enumerate(shapes)]
    one = network()
    found = list(lib.run([one], frames(images), How(batch_size=4, fit="whole"), pool=pool))
    assert [f.frame.index for f in found] == [0, 1, 2, 3, 4]
    assert [f.values.shape for f in found] == shapes
    assert one.forward.shapes == [(4, 32, 32, 1)] * 2, "two batches, of one shape"


def test_what_batch_a_frame_is_in_changes_nothing(pool):
    images = [angiogram(30 + 7 * n, 100 - 9 * n, n) for n in range(6)]
    by_size = [
        [f.values for f in lib.run([network()], frames(images), How(batch_size=b), pool=pool)]
        for b in (1, 4)
    ]
    for one, four in zip(*by_size):
        np.testing.assert_allclose(one, four, atol=1e-6)


def test_a_run_streams(pool):
    """Of 300 frames only those of a few batches are alive at a time."""
    alive, most = set(), []

    class Counted(np.ndarray):
        pass

    def read():
        for index in range(300):
            image = angiogram(24, 24, index % 5).view(Counted)
            alive.add(index)
            weakref.finalize(image, alive.discard, index)
            yield Frame("run", index, image)
            del image

    for count, _ in enumerate(lib.run([network()], read(), How(batch_size=4), pool=pool)):
        if count % 50 == 0:
            gc.collect()
        most.append(len(alive))
    assert len(most) == 300 and max(most) <= 4 * 4, max(most)


def test_large_frames_are_run_before_a_batch_is_full(pool, monkeypatch):
    monkeypatch.setattr(lib, "MOST_PIXELS", 3 * 64 * 64)
    started = []

    def read():
        for index in range(12):
            started.append(index)
            yield Frame("", index, angiogram(64, 64, index))

    ahead = [len(started) for _ in lib.run([network()], read(), How(batch_size=8), pool=pool)]
    assert ahead[0] <= 8, "the first result does not wait for eight frames and what is prepared"
    assert len(ahead) == 12


@pytest.mark.parametrize("tta", ["flips", "rotations", "all"])
def test_views_are_turned_back(tta, pool):
    """A network that looks at pixels alone says the same of every view."""
    images = [angiogram(40, 60)]
    plain, turned = (
        next(lib.run([network()], frames(images), How(tta=kind), pool=pool)).values
        for kind in ("none", tta)
    )
    np.testing.assert_allclose(plain, turned, atol=1e-6)


def test_views_are_averaged(pool):
    """One that says 'the left half' is undecided once it has seen the mirror image."""

    def left(images):
        side = images.shape[2]
        margin = np.broadcast_to(np.where(np.arange(side) < side // 2, 2.0, -2.0), images.shape[:3])
        return np.stack([np.zeros(images.shape[:3]), margin], -1)

    one = Network(left, chain())
    image = [angiogram(32, 32)]
    alone, flipped = (
        next(lib.run([one], frames(image), How(tta=tta), pool=pool)).values
        for tta in ("none", "flips")
    )
    assert alone[:, 0].min() > 0.8 and alone[:, -1].max() < 0.2
    np.testing.assert_allclose(flipped, 0.5, atol=1e-6)


def test_an_ensemble_averages_probabilities_each_with_its_own_preprocessing(pool):
    images = [angiogram(50, 60, n) for n in range(3)]
    networks = [network(Dark(1)), network(Dark(3), size=48), network(name="paper", centre_crop=40)]
    how = How(batch_size=2)
    together = [f.values for f in lib.run(networks, frames(images), how, pool=pool)]
    alone = [[f.values for f in lib.run([one], frames(images), how, pool=pool)] for one in networks]
    for got, *parts in zip(together, *alone):
        np.testing.assert_allclose(got, np.mean(parts, 0), atol=1e-6)


@pytest.mark.parametrize("preset", ["fixed", "paper"])
def test_whole_frames_give_the_masks_that_evaluation_measures(preset, pool):
    """The same pixels, whatever the native size: figures of a checkpoint hold for its masks."""
    made = evaluation_fakes.dataset(4, shape=(70, 90))
    crop = {"centre_crop": 60} if preset == "paper" else {}
    one = Network(Dark(-1.0), chain(preset, 64, **crop))
    reader = inference.Reader(made, "test", one.preprocessing)
    made_of = inference.predict(lambda _, x: one.forward(x), None, reader, batch_size=3, workers=1)
    expected = [prediction.mask for prediction in made_of]
    images = [made[n]["image"][..., 0] for n in range(4)]
    found = lib.run([one], frames(images), How(batch_size=3, fit="whole"), pool=pool)
    for got, mask in zip(found, expected):
        np.testing.assert_array_equal(got.values > 0.5, mask)


def test_a_frame_that_cannot_be_prepared_is_named_and_the_rest_goes_on(pool):
    bad = np.full((20, 20), np.nan, np.float32)
    networks = [network(), network(name="paper", centre_crop=16)]
    found = list(lib.run(networks, frames([angiogram(20, 20), bad]), How(), pool=pool))
    assert found[0].values is not None
    assert found[1].values is None and "NaN" in found[1].error


def test_a_diverged_network_stops_the_run(pool):
    one = network(lambda images: np.full((*images.shape[:3], 2), np.nan))
    with pytest.raises(UserError, match="diverged"):
        list(lib.run([one], frames([angiogram(20, 20)]), How(), pool=pool))
