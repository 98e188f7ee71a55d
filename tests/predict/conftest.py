"""A tiny fine-tuned checkpoint, made once a session; the weights say nothing of arteries."""

import pytest

from cmunet_jax.stages import train
from tests.stage_helpers import tiny


@pytest.fixture(scope="session")
def checkpoint(tiny_dataset, tmp_path_factory):
    """Workdir of two steps of fine-tuning."""
    folder = tmp_path_factory.mktemp("predict") / "finetune"
    assert train.run(tiny("finetune", tiny_dataset, 2), folder) == 0
    return folder
