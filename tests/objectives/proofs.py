"""Proofs that the tests of several objectives share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cmunet_jax.models.unet import UNet
from cmunet_jax.train import state as state_lib
from cmunet_jax.train import transfer
from cmunet_jax.train.step import gradients
from tests.models.random_weights import random_weights
from tests.objectives import tiny


def check_accumulation_is_exact(objective):
    """Two passes over the same images, each normalised by its own statistics, are one pass."""
    variables, views = tiny.case(objective)
    state = state_lib.create(variables, optax.sgd(0.1), ema=False)

    def compute(parts):
        # Passes take every other row, so both get all images.
        batch = jax.tree.map(lambda x: jnp.repeat(x, parts, axis=0), views)
        run = jax.jit(lambda s, v: gradients(objective, s, v, tiny.KEY, accumulation=parts))
        return run(state, batch)

    (one, _, once), (two, _, twice) = compute(1), compute(2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), two, one)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(one)) > 1e-3
    np.testing.assert_allclose(twice["loss"], (2 * once["loss"][0], 2), rtol=1e-5)


def check_transfer_of_all_but_the_head(objective):
    """A segmentation network takes encoder, decoder and their statistics, and keeps its head."""
    variables, views = tiny.case(objective)
    fresh = random_weights(UNet(objective.width), views["image"], train=True)
    params, stats, report = transfer.transfer(
        fresh["params"],
        fresh["batch_stats"],
        variables.params,
        variables.batch_stats,
        objective.transfer,
    )
    decoder = variables.params["decoder"] | {"head": fresh["params"]["decoder"]["head"]}
    expected = {"encoder": variables.params["encoder"], "decoder": decoder}
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    jax.tree.map(np.testing.assert_array_equal, stats, variables.batch_stats)
    assert report.left and all("head" in path for path in report.left)
