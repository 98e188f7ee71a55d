"""U-Net: logits in both modes, running statistics, gradient norms, three Adam losses."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cmunet_jax import losses
from cmunet_jax.interop import torch_names
from cmunet_jax.interop.torch_names import Entry
from cmunet_jax.models.initialise import shapes_of
from cmunet_jax.models.unet import UNet
from tests.golden.case import Case, Check, absolute, formula_weights, relative, width_of

PATTERN = "*_unet_w*"
LOGITS, STATISTICS, TRAINING = 1e-4, 1e-4, 2e-3
_GRADIENTS = {
    "down_conv1": "encoder/down1/conv1/kernel",
    "up_conv4.up_sample": "decoder/upsample4/kernel",
    "conv_last": "decoder/head/kernel",
}


def check(case: Case, stem: str) -> list[Check]:
    """Compares one case. The network has the width of the name and weights from the seed."""
    width, seed = width_of(stem), int(case["seed"])
    entries = torch_names.unet_entries()
    image = jax.ShapeDtypeStruct((*case["x"].shape, 1), np.float32)
    shapes = shapes_of(UNet(width), image)
    weights = formula_weights(entries, shapes["params"], shapes["batch_stats"], seed)
    checks = _forward(case, width, entries, *jax.tree.map(jnp.asarray, weights))
    # Rounding that flips a rectifier or a maximum moves a gradient by 5e-4, so gradients are
    # compared in float64, where only the rounding of the case itself is left.
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), weights)
        return checks + _training(case, width, *wide)


def _forward(case: Case, width: int, entries: list[Entry], params: Any, stats: Any) -> list[Check]:
    """Logits in evaluation and training mode, and the running statistics after the latter."""
    network, x = UNet(width), jnp.asarray(case["x"])[..., None]

    @functools.partial(jax.jit, static_argnames="train")
    def forward(params, stats, *, train):
        variables = {"params": params, "batch_stats": stats}
        return network.apply(variables, x, train=train, mutable=["batch_stats"])

    logits_eval, _ = forward(params, stats, train=False)
    logits_train, updated = forward(params, stats, train=True)
    checks = [
        absolute("logits_eval", np.moveaxis(logits_eval, -1, 1), case["logits_eval"], LOGITS),
        absolute("logits_train", np.moveaxis(logits_train, -1, 1), case["logits_train"], LOGITS),
    ]
    state_dict = torch_names.to_torch(params, updated["batch_stats"], entries)
    for key in case:
        group, _, name = key.partition("/")
        if group == "after_one_train_forward":
            checks.append(relative(key, state_dict[name], case[key], STATISTICS))
    return checks


def _training(case: Case, width: int, params: Any, stats: Any) -> list[Check]:
    """Gradient norms, and the losses of some steps of Adam in training mode."""
    network, adam = UNet(width, dtype=jnp.float64), optax.adam(1e-3)
    x = jnp.asarray(case["x"], jnp.float64)[..., None]
    y = jnp.asarray(case["y"]).astype(jnp.int32)

    @jax.jit
    def step(params, stats, opt_state):
        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            logits, updated = network.apply(variables, x, train=True, mutable=["batch_stats"])
            return losses.cross_entropy(logits, y), updated["batch_stats"]

        (value, new_stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = adam.update(grads, opt_state, params)
        return value, grads, optax.apply_updates(params, updates), new_stats, opt_state

    checks, values = [], []
    opt_state = adam.init(params)
    for i in range(len(case["adam_losses"])):
        value, grads, params, stats, opt_state = step(params, stats, opt_state)
        values.append(float(value))
        if i == 0:
            for name, path in _GRADIENTS.items():
                norm = jnp.linalg.norm(torch_names.get(grads, path).ravel())
                checks.append(
                    relative(f"grad0_l2/{name}", norm, case[f"grad0_l2/{name}"], TRAINING)
                )
    return [*checks, relative("adam_losses", values, case["adam_losses"], TRAINING)]
