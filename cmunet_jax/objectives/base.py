"""The protocol between a training objective and the one training loop.

An objective owns its networks, its loss and what it remembers between steps. The loop owns the
optimiser, the data, the devices and the order of calls, which for one optimiser step is

    views = objective.arrange(views, key)                                   # global batch, once
    context, state = objective.prepare(variables, views, key, train=True)   # global batch, once
    for every microbatch (one, unless gradients are accumulated; the last row is in the last):
        loss, out = objective.loss(params, state, views_m, context_m, key, train=True)
    params = optimiser(mean gradient)
    extra = objective.post_update(params, extra, step)

Everything is pure and may be jitted; arrays are sharded over the leading (example) axis, so "the
batch" is always the global batch, whatever the number of devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from cmunet_jax import losses
from cmunet_jax.config import choose
from tfds_angio.errors import UserError

Array = jax.Array
Tree = Any
"""A pytree of arrays made of plain dicts."""
State = dict[str, Tree]
"""{'batch_stats': Tree, 'extra': Tree}: what a forward pass may change."""
Metrics = dict[str, tuple[Array, Array]]
"""{name: (sum, count)}, float32 scalars; adding both over microbatches stays exact."""

SHARED_CONTEXT = ("keys",)
"""Entries of a context that belong to the whole batch; all others are rows, one an example."""


@flax.struct.dataclass
class Variables:
    """All arrays of an objective.

    Attributes:
      params: what the optimiser updates, float32.
      batch_stats: running statistics of the trained networks.
      extra: what is updated otherwise (momentum weights and their statistics, queues).
    """

    params: Tree
    batch_stats: Tree
    extra: Tree

    @property
    def state(self) -> State:
        """The part that `Objective.loss` takes and returns as `state`."""
        return {"batch_stats": self.batch_stats, "extra": self.extra}


@flax.struct.dataclass
class Out:
    """What a loss returns beside its value: the new state and additive metrics."""

    state: State
    metrics: Metrics


@dataclasses.dataclass(frozen=True)
class Transfer:
    """How the weights of a run of this objective initialise a segmentation network.

    Attributes:
      mapping: source path prefix -> target path prefix, '/'-separated, in params and batch_stats.
      reinit: target prefixes that keep their fresh initialisation although a source exists.
    """

    mapping: Mapping[str, str]
    reinit: tuple[str, ...] = ()


@runtime_checkable
class Objective(Protocol):
    """One training method. Implementations are frozen dataclasses of hyper-parameters.

    `views` names the entry of `cmunet_jax.data.views.VIEWS` that makes the batch;
    `transfer` is verified before the first step of the run that loads the weights.
    """

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the entries of `data.views.VIEWS` that this objective trains on."""

    @property
    def transfer(self) -> Transfer:
        """What a segmentation network takes from this objective's checkpoint."""

    def init(self, key: Array, image_shape: tuple[int, int, int]) -> Variables:
        """Makes fresh variables for images of shape [H, W, 1]; UserError if 16 divides not H, W."""

    def check_batch(self, batch_size: int, *, accumulation: int) -> None:
        """Raises UserError if a batch of `batch_size` in `accumulation` passes cannot be had."""

    def arrange(self, views: Mapping[str, Array], key: Array) -> dict[str, Array]:
        """Returns the training views of the global batch in the order in which they are to pass.

        What belongs to one example may be moved to the row of another, and so to another pass
        (MoCo's shuffled keys). `prepare` and `loss` also take views that were not arranged.
        """

    def prepare(
        self, variables: Variables, views: Mapping[str, Array], key: Array, *, train: bool
    ) -> tuple[dict[str, Array], State]:
        """Computes, without gradient, what the loss needs of the whole batch.

        Returns a context and the new state. Context rows have the batch as leading axis and are cut
        with the microbatches, except the entries of SHARED_CONTEXT, which stay whole.
        """

    def loss(
        self,
        params: Tree,
        state: State,
        views: Mapping[str, Array],
        context: Mapping[str, Array],
        key: Array,
        *,
        train: bool,
    ) -> tuple[Array, Out]:
        """Returns the mean loss of the examples given (float32 scalar) and an Out."""

    def post_update(self, params: Tree, extra: Tree, step: Array) -> Tree:
        """Returns `extra` after an optimiser step (momentum updates)."""

    def pictures(
        self,
        params: Tree,
        state: State,
        views: Mapping[str, Array],
        context: Mapping[str, Array],
        key: Array,
    ) -> dict[str, Array]:
        """Returns named pictures, float32 [B, H, W, 1 or 3] in [0, 1], in evaluation mode."""


class AnyBatch:
    """The defaults: every batch will do, in the order in which it comes."""

    def check_batch(self, batch_size: int, *, accumulation: int) -> None:
        """Accepts every batch."""

    def arrange(self, views: Mapping[str, Array], key: Array) -> dict[str, Array]:
        """Returns the views as they are."""
        return dict(views)


class WithoutContext(AnyBatch):
    """The defaults: nothing to prepare, nothing to update after a step."""

    def prepare(
        self, variables: Variables, views: Mapping[str, Array], key: Array, *, train: bool
    ) -> tuple[dict[str, Array], State]:
        """Returns an empty context and the state as it is."""
        return {}, variables.state

    def post_update(self, params: Tree, extra: Tree, step: Array) -> Tree:
        """Returns `extra` as it is."""
        return extra


def preset(presets: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """Returns a copy of the options of a preset; UserError if there is none of that name."""
    if name not in presets:
        raise UserError(
            f"preset {name!r} is not known; set config.objective.preset to one of: "
            f"{', '.join(presets)}"
        )
    return dict(presets[name])


def check_choice(key: str, value: Any, choices: tuple[str, ...], *, section: str = "objective"):
    """Raises UserError, naming `config.{section}.{key}`, unless `value` is one of `choices`."""
    choose(f"config.{section}.{key}", value, choices)


def means(**values: Array) -> Metrics:
    """Turns means over the examples at hand into additive (sum, count) metrics."""
    one = jnp.ones((), jnp.float32)
    return {name: (lax.stop_gradient(v).astype(jnp.float32), one) for name, v in values.items()}


def run(network: Any, params: Tree, stats: Tree, *inputs: Any, train: bool) -> tuple[Any, Tree]:
    """Applies a network and returns its output and new running statistics."""
    outputs, updated = network.apply(
        {"params": params, "batch_stats": stats}, *inputs, train=train, mutable=["batch_stats"]
    )
    return outputs, updated["batch_stats"]


def follow(average: Tree, new: Tree, momentum: float | Array) -> Tree:
    """One step of an exponential moving average: momentum · average + (1 - momentum) · new."""
    return jax.tree.map(
        lambda a, b: (momentum * a + (1 - momentum) * b).astype(a.dtype), average, new
    )


def copy(tree: Tree) -> Tree:
    """Own buffers with the same values: what is donated must not be shared."""
    return jax.tree.map(jnp.array, tree)


def mask(image: Array, patches: Array) -> Array:
    """Sets masked 16×16 patches of images [B, H, W, 1] to zero; `patches` bool [B, H/16, W/16]."""
    return jnp.where(losses.upsample_patches(patches)[..., None], 0, image)


def to_unit(image: Array, *, like: Array | None = None) -> Array:
    """Maps images [B, H, W, C] of any range to [0, 1] for looking at, clipping extremes.

    The window of each image is mean ± 2.5 standard deviations, so that a few extreme pixels do not
    grey out the rest. `like` [B, H, W, C'] gives the window instead, to compare pictures.
    """
    reference = (image if like is None else like).astype(jnp.float32)
    mean = reference.mean((1, 2, 3), keepdims=True)
    half = jnp.maximum(2.5 * reference.std((1, 2, 3), keepdims=True), 1e-6)
    return jnp.clip(0.5 + (image.astype(jnp.float32) - mean) / (2 * half), 0, 1)


def inpainted(image: Array, made: Array, patches: Array) -> dict[str, Array]:
    """Pictures of a reconstruction of masked patches.

    Args:
      image: [B, H, W, 1], the view.
      made: [B, H, W, 1], its reconstruction in the same units.
      patches: bool [B, H/16, W/16], True = masked.

    Returns:
      `view`, `masked` (grey where hidden), `reconstruction` (pasted into the view where hidden) and
      `error`, float32 [B, H, W, 1] in [0, 1]. Grey values share the window of the view; the error
      is absolute, white at half that window, and zero where the view is visible.
    """
    hidden = losses.upsample_patches(patches)[..., None]
    unit = to_unit(image)
    pasted = to_unit(jnp.where(hidden, made, image), like=image)
    return {
        "view": unit,
        "masked": jnp.where(hidden, 0.5, unit),
        "reconstruction": pasted,
        "error": jnp.clip(2 * jnp.abs(pasted - unit), 0, 1),
    }
