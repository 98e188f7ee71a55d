"""Optimisers and schedules, all from optax, chosen by `config.optim`."""

from typing import Any

import jax
import ml_collections
import optax

from cmunet_jax.config import choose

OPTIMISERS = ("adamw", "adam", "sgd", "lamb")
SCHEDULES = ("constant", "cosine", "step")
ON_NAN = ("stop", "skip")


def skips(options: ml_collections.ConfigDict) -> bool:
    """Whether a step that is not finite is left out (`on_nan='skip'`); otherwise the run stops.

    Raises:
      UserError: if `on_nan` is neither.
    """
    # Checkpoints that are older than the key stopped.
    return choose("config.optim.on_nan", options.get("on_nan", "stop"), ON_NAN) == "skip"


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


def weight_decay(
    options: ml_collections.ConfigDict, total_steps: int | None = None
) -> float | optax.Schedule:
    """The weight decay: a constant, or a function of the step where `weight_decay_end` is set.

    The latter follows half a cosine from `weight_decay` to `weight_decay_end` over the whole run,
    warm-up included (SparK, Tian et al., 2023; DINO, Caron et al., 2021).

    Raises:
      ValueError: if a schedule is asked for without the number of steps.
    """
    start, end = float(options.weight_decay), float(options.get("weight_decay_end", -1.0))
    if end < 0 or end == start:
        return start
    if not total_steps:
        raise ValueError("a schedule of the weight decay needs total_steps")
    fall = optax.cosine_decay_schedule(1.0, total_steps)
    return lambda step: end + (start - end) * fall(step)


def create(
    options: ml_collections.ConfigDict, rate: optax.Schedule, *, total_steps: int | None = None
) -> optax.GradientTransformation:
    """Returns the gradient transformation: clipping by global norm, then the optimiser.

    Args:
      options: `config.optim`.
      rate: step -> learning rate.
      total_steps: of the run; only a changing weight decay asks for it.
    """
    name = choose("config.optim.name", options.name, OPTIMISERS)
    wd = weight_decay(options, total_steps)
    if name == "adamw":
        tx = optax.adamw(rate, b1=options.b1, b2=options.b2, weight_decay=wd, mask=decay_mask)
    elif name == "adam":
        tx = optax.adam(rate, b1=options.b1, b2=options.b2)
    elif name == "lamb":
        tx = _lamb(rate, options, wd)
    else:
        tx = optax.sgd(rate, momentum=options.momentum)
    if wd and name in ("adam", "sgd"):
        # PyTorch's coupled L2, which is what the released fine-tuning and MoCo use.
        tx = optax.chain(optax.add_decayed_weights(wd, mask=decay_mask), tx)
    if options.clip_norm:
        tx = optax.chain(optax.clip_by_global_norm(options.clip_norm), tx)
    return tx


def _lamb(
    rate: optax.Schedule, options: ml_collections.ConfigDict, wd: float | optax.Schedule
) -> optax.GradientTransformation:
    """LAMB (You et al., 2020) that adapts kernels only, as SparK's does.

    `optax.lamb` would scale the steps of biases, norm shifts and mask tokens to their own length
    too, which is near zero in the beginning: they would hardly leave it.
    """
    return optax.chain(
        optax.scale_by_adam(b1=options.b1, b2=options.b2, eps=1e-6),
        optax.add_decayed_weights(wd, mask=decay_mask),
        optax.masked(optax.scale_by_trust_ratio(), decay_mask),
        optax.scale_by_learning_rate(rate),
    )
