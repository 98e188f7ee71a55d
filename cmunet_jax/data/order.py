"""Which examples make up a batch: a function of (seed, step) alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cmunet_jax.data.keys import stream_key
from tfds_angio.errors import UserError

Array = jax.Array


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Whole batches in one pass over ``size`` examples.

    Raises:
      UserError: if there is not even one.
    """
    if batch_size < 1:
        raise UserError(f"config.batch_size={batch_size} must be at least 1")
    if size < batch_size:
        raise UserError(
            f"config.batch_size={batch_size} is larger than the set of {size} images: "
            f"use {size} or less"
        )
    return size // batch_size


def epoch_order(seed: int | Array, epoch: int | Array, size: int) -> Array:
    """The permutation of one epoch, int32 [size]."""
    key = jax.random.fold_in(stream_key(seed, "order"), epoch)
    return jax.random.permutation(key, jnp.arange(size, dtype=jnp.int32))


def batch_indices(seed: int | Array, step: int | Array, *, size: int, batch_size: int) -> Array:
    """The examples of one step.

    Every epoch is a new permutation, of which the last ``size % batch_size`` examples are left
    out: within an epoch no example comes twice, and no batch straddles two epochs. jit-able in
    ``seed`` and ``step``; the same numbers on every device and on the host.

    Args:
      seed: of the run.
      step: optimiser step, from 0.
      size: examples in the set.
      batch_size: examples of the (global) batch, at most ``size``.

    Returns:
      int32 [batch_size].

    Raises:
      UserError: if the batch is larger than the set.
    """
    per_epoch = steps_per_epoch(size, batch_size)
    epoch, within = jnp.divmod(jnp.asarray(step, jnp.int32), per_epoch)
    order = epoch_order(seed, epoch, size)
    return jax.lax.dynamic_slice_in_dim(order, within * batch_size, batch_size)


def host_epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """``epoch_order`` computed on the CPU, for a loader that should not touch the accelerator.

    Where the user hid the CPU from JAX (``JAX_PLATFORMS=cuda``) the accelerator computes it; the
    numbers are the same.
    """
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        device = jax.local_devices()[0]
    with jax.default_device(device):
        return np.asarray(epoch_order(seed, epoch, size))
