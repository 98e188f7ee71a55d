"""State, step, loop, optimiser, checkpoints."""

from cmunet_jax.train import clu_without_tensorflow as clu_without_tensorflow
