"""Everything that training changes, in one pytree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cmunet_jax.objectives.base import Variables

Tree = Any


@flax.struct.dataclass
class TrainState:
    """The complete state of a run; the data stream follows from `step` alone.

    Attributes:
      step: int32 scalar, optimiser steps done.
      params: what the optimiser updates, float32.
      batch_stats: running statistics of the trained networks.
      extra: what the objective updates otherwise (momentum weights, queues).
      opt_state: the optimiser's state.
      ema_params, ema_batch_stats: exponential moving averages of the weights, or None.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    extra: Tree
    opt_state: Tree
    ema_params: Tree
    ema_batch_stats: Tree

    @property
    def variables(self) -> Variables:
        """The objective's view of the state."""
        return Variables(params=self.params, batch_stats=self.batch_stats, extra=self.extra)


def create(variables: Variables, tx: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """Makes the state before the first step."""
    copy = lambda tree: jax.tree.map(jnp.array, tree)  # noqa: E731 (donation needs own buffers)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables.params,
        batch_stats=variables.batch_stats,
        extra=variables.extra,
        opt_state=tx.init(variables.params),
        ema_params=copy(variables.params) if ema else None,
        ema_batch_stats=copy(variables.batch_stats) if ema else None,
    )


def update_ema(old: Tree, new: Tree, *, decay: float, step: jax.Array) -> Tree:
    """Moves an average towards `new`; the decay starts low so that early averages are not stale.

    Args:
      old: the average so far, a pytree.
      new: what it moves towards, of the same structure.
      decay: asymptotic decay in [0, 1).
      step: int32 scalar, steps done before this one.

    Returns:
      decay_t * old + (1 - decay_t) * new with decay_t = min(decay, (1 + step) / (10 + step)).
    """
    t = step.astype(jnp.float32)
    rate = jnp.minimum(decay, (1.0 + t) / (10.0 + t))
    return jax.tree.map(lambda a, b: (rate * a + (1.0 - rate) * b).astype(a.dtype), old, new)
