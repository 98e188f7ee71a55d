"""On angiograms of patients, a short pre-training learns something: its loss falls."""

import shutil

import numpy as np
import pytest

from cmunet_jax.stages import train
from cmunet_jax.train import metrics_file
from tests.stage_helpers import tiny
from tfds_angio.base import build

IMAGES, FEW = 32, 10
CONTRAST = {"batch_size": 16, "optim.learning_rate": 3e-3}  # More images to be told apart.
# A momentum that forgets within the run, as 0.999 does in one of thousands of steps.
MOCO = CONTRAST | {"objective.momentum": 0.9}
# Metric -> its last values are below this share of its first.
FALLS = {
    "genesis": {"loss": 0.7},
    "mae": {"loss": 0.8},
    "spark": {"loss": 0.9},
    "cmunet": {"loss": 0.85, "loss_contrast": 0.8, "loss_reconstruction": 0.95},
}


@pytest.fixture(scope="module")
def angiograms(shared, tmp_path_factory):
    """A few images of ARCADE, without labels, as a data set."""
    found = sorted(shared("data", "arcade", "syntax", "train", "images").glob("*.jpg"))
    folder = tmp_path_factory.mktemp("angiograms")
    (folder / "source" / "imgs").mkdir(parents=True)
    for path in found[:IMAGES]:
        shutil.copy(path, folder / "source" / "imgs")
    dataset = build(
        "angio_folder/few", data_dir=folder / "data", source=folder / "source", workers=1,
        progress=False,
    )  # fmt: skip
    assert dataset.sizes["unlabelled"] == IMAGES
    return dataset


def _metrics(name, dataset, workdir, steps, **changes):
    """Metric -> its value at every step."""
    config = tiny("pretrain", dataset, steps, objective=name, log_every="1 steps", **changes)
    assert train.run(config, workdir) == 0
    rows = [row for row in metrics_file.read_metrics(workdir) if "train/loss" in row]
    assert len(rows) == steps
    return {key.removeprefix("train/"): np.array([r[key] for r in rows]) for key in rows[0]}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FALLS))
def test_the_loss_falls_on_real_angiograms(name, angiograms, tmp_path):
    steps, changes = (160, CONTRAST) if name == "cmunet" else (80, {})
    found = _metrics(name, angiograms, tmp_path, steps, **changes)
    for metric, share in FALLS[name].items():
        assert found[metric][-FEW:].mean() < share * found[metric][:FEW].mean(), metric


@pytest.mark.slow
def test_moco_learns_to_tell_real_angiograms_apart(angiograms, tmp_path):
    """Its loss first rises: a queue of random keys is easy to tell apart, one of images is not."""
    found = _metrics("moco", angiograms, tmp_path, 240, **MOCO)
    smooth = np.convolve(found["loss"], np.full(FEW, 1 / FEW), "valid")
    assert smooth[-1] < 0.9 * smooth.max()
    accuracy = found["batch_accuracy"]
    assert accuracy[-FEW:].mean() > accuracy[:FEW].mean() + 0.1
