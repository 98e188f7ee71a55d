"""U-Net: logits in both modes, running statistics, gradient norms, three Adam losses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cmunet_jax import losses
from cmunet_jax.interop import torch_names
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
    network = UNet(width_of(stem))
    x, y = jnp.asarray(case["x"])[..., None], jnp.asarray(case["y"]).astype(jnp.int32)
    shapes = jax.eval_shape(lambda k: network.init(k, x, train=True), jax.random.key(0))
    entries = torch_names.unet_entries()
    params, stats = formula_weights(
        entries, shapes["params"], shapes["batch_stats"], int(case["seed"])
    )
    params, stats = jax.tree.map(jnp.asarray, (params, stats))

    def forward(params, stats, train):
        return network.apply(
            {"params": params, "batch_stats": stats}, x, train=train, mutable=["batch_stats"]
        )

    forward = jax.jit(forward, static_argnums=2)
    logits_eval, _ = forward(params, stats, False)
    logits_train, updated = forward(params, stats, True)
    checks = [
        absolute("logits_eval", np.moveaxis(logits_eval, -1, 1), case["logits_eval"], LOGITS),
        absolute("logits_train", np.moveaxis(logits_train, -1, 1), case["logits_train"], LOGITS),
    ]
    state_dict = torch_names.to_torch(params, updated["batch_stats"], entries)
    for key in case:
        group, _, name = key.partition("/")
        if group == "after_one_train_forward":
            checks.append(relative(key, state_dict[name], case[key], STATISTICS))
    return checks + _training(case, forward, params, stats, y)


def _training(case: Case, forward: Any, params: Any, stats: Any, y: jax.Array) -> list[Check]:
    """Three steps of Adam in training mode."""
    adam = optax.adam(1e-3)

    @jax.jit
    def step(params, stats, opt_state):
        def loss(params):
            logits, updated = forward(params, stats, True)
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
