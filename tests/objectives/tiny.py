"""Tiny variables and views for the tests of the objectives."""

import jax
import jax.numpy as jnp
import numpy as np

from cmunet_jax.objectives.cmunet import CMUNet
from cmunet_jax.objectives.genesis import Genesis
from cmunet_jax.objectives.mae import MAE
from cmunet_jax.objectives.moco import MoCo
from cmunet_jax.objectives.scratch import Scratch
from cmunet_jax.objectives.spark import SparK

KEY = jax.random.key(7)


def supervised(batch=4, size=32, seed=0):
    """Images with a bright bar, and the bar as mask."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((batch, size, size), np.int32)
    for i, start in enumerate(rng.integers(2, size - 6, batch)):
        mask[i, :, start : start + 4] = 1
    image = mask[..., None] + 0.3 * rng.standard_normal((batch, size, size, 1))
    return {"image": jnp.asarray(image, jnp.float32), "mask": jnp.asarray(mask)}


def online_target(batch=4, size=32, seed=0):
    """Two noisy views of smooth images; half of the patches masked, others in each image."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / size
    phase = rng.uniform(0, 6, (batch, 2, 1, 1))
    image = np.sin(6 * rows + phase[:, 0]) + np.cos(9 * columns + phase[:, 1])
    noise = 0.1 * rng.standard_normal((2, *image.shape))
    side = size // 16
    patches = np.argsort(rng.random((batch, side * side)), 1) < side * side // 2
    return {
        "view_a": jnp.asarray((image + noise[0])[..., None], jnp.float32),
        "view_b": jnp.asarray((image + noise[1])[..., None], jnp.float32),
        "patches": jnp.asarray(patches.reshape(batch, side, side)),
    }


def masked(batch=4, size=32, seed=0):
    """The first of those views, and which patches of it are masked."""
    views = online_target(batch, size, seed)
    return {"image": views["view_a"], "patches": views["patches"]}


def two_views(batch=4, size=32, seed=0):
    """The two of those views, unmasked."""
    views = online_target(batch, size, seed)
    return {"view_q": views["view_a"], "view_k": views["view_b"]}


def genesis(batch=4, size=32, seed=0):
    """The first of those views with a part painted over, and the view itself."""
    target = online_target(batch, size, seed)["view_a"]
    return {"image": target.at[:, 4:20, 8:24].set(0.5), "target": target}


VIEWS = {
    "supervised": supervised,
    "online_target": online_target,
    "masked": masked,
    "two_views": two_views,
    "genesis": genesis,
}
"""Name in `Objective.views` -> tiny batch, whose first entry is an image."""


def case(objective, **kwargs):
    """(variables, views) for an objective at 32×32, initialised and slightly disturbed."""
    views = VIEWS[objective.views[0]](**kwargs)
    image = next(iter(views.values()))
    variables = jax.jit(objective.init, static_argnums=1)(jax.random.key(0), image.shape[1:])
    return variables, views


def full_loss(objective, variables, views, *, train=True, key=KEY):
    """Loss and Out of one pass over the batch, the target branch included."""
    views = objective.arrange(views, key) if train else views
    context, state = objective.prepare(variables, views, key, train=train)
    return objective.loss(variables.params, state, views, context, key, train=train)


def step_function(objective, tx):
    """One jitted optimiser step: (variables, opt_state, views, key) -> the same, and Out."""

    @jax.jit
    def step(variables, opt_state, views, key):
        def loss(params):
            return full_loss(objective, variables.replace(params=params), views, key=key)

        (value, out), gradients = jax.value_and_grad(loss, has_aux=True)(variables.params)
        updates, opt_state = tx.update(gradients, opt_state, variables.params)
        params = jax.tree.map(jnp.add, variables.params, updates)
        extra = objective.post_update(params, out.state["extra"], 0)
        new = variables.replace(params=params, batch_stats=out.state["batch_stats"], extra=extra)
        return new, opt_state, value, out

    return step


OBJECTIVES = {
    "scratch-fixed": Scratch(width=2),
    "scratch-paper": Scratch(width=2, soft_dice=False),
    "cmunet-fixed": CMUNet(width=2),
    "cmunet-paper": CMUNet(
        width=2, mask_per_sample=False, adapter="fresh", reconstruction_target="row"
    ),
    "cmunet-learned": CMUNet(width=2, adapter="learned"),
    "cmunet-ema": CMUNet(width=2, adapter="ema"),
    "moco-fixed": MoCo(width=2, queue=16),
    "moco-paper": MoCo(width=2, queue=16, key_norm="shuffled", bn_group=2),
    "spark": SparK(width=2),
    "mae-fixed": MAE(width=2),
    "mae-paper": MAE(
        width=2, loss_over="all", reconstruction_target="pixels", mask_per_sample=False
    ),
    "genesis": Genesis(width=2),
}
