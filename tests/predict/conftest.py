"""Checkpoints made once a session without a training; the weights say nothing of arteries."""

import importlib

import jax
import numpy as np
import pytest

from cmunet_jax import config as config_lib
from cmunet_jax import objectives
from cmunet_jax.train.checkpoint import Checkpointer


def save(folder, config, state, step=2):
    """Writes a checkpoint of a training config."""
    stored = {
        "config": config_lib.to_dict(config),
        "preprocessing": config_lib.to_dict(config.preprocessing),
    }
    with Checkpointer(folder / "checkpoints", **stored) as checkpointer:
        assert checkpointer.save(step, state)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Workdir of a fine-tuning whose network is as it was drawn."""
    config = importlib.import_module("configs.finetune").get_config("size=tiny,init=scratch")
    side = config.preprocessing.size
    made = objectives.create(config).init(jax.random.key(0), (side, side, 1))
    state = {"params": made.params, "batch_stats": made.batch_stats}
    return save(tmp_path_factory.mktemp("predict") / "finetune", config, state)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """Workdir of a pre-training."""
    config = importlib.import_module("configs.pretrain").get_config("size=tiny")
    state = {"params": {"kernel": np.zeros(3, np.float32)}, "batch_stats": {}}
    return save(tmp_path_factory.mktemp("predict") / "pretrain", config, state)
