"""Weights for tests without compiling an initialisation."""

import jax
import jax.numpy as jnp
import numpy as np


def random_weights(module, x, *, dtype=np.float32, seed=3, **kwargs):
    """Variables of a module: positive noise around 0 (1 for scales and variances)."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda k: module.init(k, x, **kwargs), jax.random.key(0))

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape)
        if path[-1].key == "kernel":
            return jnp.asarray(noise * (2 / np.prod(leaf.shape[:-1])) ** 0.5, dtype)
        around = 1 if path[-1].key in ("scale", "var") else 0
        return jnp.asarray(around + 0.3 * np.abs(noise), dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
