"""What predict measures: the contour that the probability draws through the mask's border."""

import json

import cv2
import numpy as np
import pytest

from cmunet_jax import qca
from cmunet_jax.imaging import inputs
from cmunet_jax.predict import outputs, record
from cmunet_jax.predict import run as run_lib
from cmunet_jax.predict.masks import Rules
from cmunet_jax.predict.network import How, Network
from tests.predict.fakes import chain
from tests.qca import vessels

SHAPE = (64, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image and a run of two frames: a dark vessel along the rows, between their pixels."""
    made = tmp_path_factory.mktemp("vessels")
    images = []
    for width in (6.3, 6.7):
        t = vessels.tube(angle=0.0, length=56, diameter=width, middle=(31.6, 32))
        images.append(np.rint(200 - 150 * vessels.coverage(t, shape=SHAPE)).astype(np.uint8))
    assert cv2.imwrite(str(made / "image.png"), images[0])
    np.save(made / "run.npy", np.stack(images))
    return made


def covered(images):
    """Logits of the share of a pixel that is dark: 0 halfway between darkest and brightest."""
    low, high = (f(images, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    share = np.clip((high - images) / (high - low), 1e-3, 1 - 1e-3)
    margin = np.log(share / (1 - share)).astype(np.float32)
    return np.concatenate([np.zeros_like(margin), margin], -1)


def predict(folder, out, **options):
    """(mask, probability, qca JSON) of each frame, by two networks and mirrored views."""
    networks = [Network(covered, chain(size=64))] * 2
    how = How(batch_size=2, tta="flips")
    chosen = run_lib.Options(how=how, probability="npz", qca=True, **options)
    with outputs.stage(out, overwrite=False) as staging:
        outcome = run_lib.run(
            inputs.find(str(folder)), networks, chosen, staging, workers=1, progress=False
        )
        return [
            (
                record.read_mask(staging.partial / frame["mask"]),
                record.read_probability(staging.partial / frame["probability"]),
                json.loads((staging.partial / frame["qca"]).read_text()),
            )
            for case in outcome.cases
            for frame in case["frames"]
        ]


def median(content):
    return np.median([d for s in content["segments"] for d in s["diameter_px"] if d is not None])


@pytest.mark.parametrize(("frames", "count"), [("all", 3), ("best", 2)])
def test_the_contour_that_is_measured_is_that_of_the_probability(folder, tmp_path, frames, count):
    found = predict(folder, tmp_path / "out", frames=frames, rules=Rules(threshold=0.4))
    assert len(found) == count
    for mask, probability, content in found:
        assert content["format"] == 1 and content["contour"] == "probability"
        exact = qca.analyse(mask, spacing=None, probability=probability, threshold=0.4)
        assert content == qca.to_json(exact)


def test_vessels_of_one_mask_are_told_apart(folder, tmp_path):
    _, *run = predict(folder, tmp_path / "out")
    for mask, _, _ in run:
        bare = qca.to_json(qca.analyse(mask, spacing=None))
        assert bare["contour"] == "mask" and abs(median(bare) - 6) < 0.01
    narrow, wide = (median(content) for _, _, content in run)
    assert abs(narrow - 6.3) < 0.2 and abs(wide - 6.7) < 0.2 and wide > narrow + 0.2


def test_a_threshold_without_a_contour_between_pixels_measures_the_mask(folder, tmp_path):
    (mask, _, content), *_ = predict(folder, tmp_path / "out", rules=Rules(threshold=1.0))
    assert not mask.any() and content["contour"] == "mask"
