"""Optimisers and schedules, all from optax, chosen by `config.optim`."""

from typing import Any

import jax
import ml_collections
import optax

from cmunet_jax.config import choose

OPTIMISERS = ("adamw", "adam", "sgd", "lamb")
SCHEDULES = ("constant", "cosine", "step")


def decay_mask(params: Any) -> Any:
    """True for kernels, False for biases and norm scales (method.md §3: no decay on those)."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def peak_learning_rate(options: ml_collections.ConfigDict, batch_size: int) -> float:
    """The peak rate: scaled by batch_size / reference_batch where a reference is set."""
    scale = batch_size / options.reference_batch if options.reference_batch else 1.0
    return float(options.learning_rate) * scale


def schedule(
    options: ml_collections.ConfigDict, *, batch_size: int, total_steps: int, warmup_steps: int
) -> optax.Schedule:
    """Returns step -> learning rate.

    `cosine` warms up linearly from `warmup_from` of the peak, then falls to 0; `step` halves every
    `halve_every` of the run (a fraction); `constant` stays at the peak after the warm-up.
    """
    peak = peak_learning_rate(options, batch_size)
    name = choose("config.optim.schedule", options.schedule, SCHEDULES)
    after = max(total_steps - warmup_steps, 1)
    if name == "cosine":
        rest = optax.cosine_decay_schedule(peak, after)
    elif name == "step":
        every = max(round(options.halve_every * total_steps), 1)
        rest = optax.exponential_decay(peak, every, 0.5, staircase=True)
    else:
        rest = optax.constant_schedule(peak)
    if not warmup_steps:
        return rest
    warmup = optax.linear_schedule(peak * options.warmup_from, peak, warmup_steps)
    return optax.join_schedules([warmup, rest], [warmup_steps])


def create(
    options: ml_collections.ConfigDict, rate: optax.Schedule
) -> optax.GradientTransformation:
    """Returns the gradient transformation: clipping by global norm, then the optimiser."""
    name = choose("config.optim.name", options.name, OPTIMISERS)
    wd = options.weight_decay
    if name == "adamw":
        tx = optax.adamw(rate, b1=options.b1, b2=options.b2, weight_decay=wd, mask=decay_mask)
    elif name == "adam":
        tx = optax.adam(rate, b1=options.b1, b2=options.b2)
    elif name == "lamb":
        tx = optax.lamb(rate, b1=options.b1, b2=options.b2, weight_decay=wd, mask=decay_mask)
    else:
        tx = optax.sgd(rate, momentum=options.momentum)
    if wd and name in ("adam", "sgd"):
        # PyTorch's coupled L2, which is what the released fine-tuning and MoCo use.
        tx = optax.chain(optax.add_decayed_weights(wd, mask=decay_mask), tx)
    if options.clip_norm:
        tx = optax.chain(optax.clip_by_global_norm(options.clip_norm), tx)
    return tx
