"""MoCo: InfoNCE against the queue, and the queue after the batch's keys were enqueued."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cmunet_jax import losses
from cmunet_jax.objectives.moco import enqueue, preset_options
from tests.golden.case import Case, Check, absolute, relative

PATTERN = "*_moco*"
LOSS, QUEUE = 1e-4, 1e-6


def check(case: Case, stem: str) -> list[Check]:
    """Compares one case; `queue` [C, K] holds columns that are normalised before use."""
    queue = losses.l2_normalise(jnp.asarray(case["queue"]).T)
    queries, keys = jnp.asarray(case["q"]), jnp.asarray(case["k"])
    temperature = preset_options("paper")["temperature"]
    loss, _ = jax.jit(losses.queue_nce)(queries, keys, queue, temperature=temperature)
    after, pointer = jax.jit(enqueue)(queue, jnp.asarray(case["ptr"], jnp.int32), keys)
    return [
        relative("loss", loss, case["loss"], LOSS),
        absolute("queue_after", after.T, case["queue_after"], QUEUE),
        absolute("ptr_after", pointer, case["ptr_after"], 0),
    ]
