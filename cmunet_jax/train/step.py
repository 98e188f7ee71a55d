"""The one train step: gather, views, loss, update; jitted as a whole, state donated."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from cmunet_jax.data import keys, source, views
from cmunet_jax.objectives.base import SHARED_CONTEXT, Objective
from cmunet_jax.train import optim, sharding
from cmunet_jax.train import state as state_lib
from cmunet_jax.train.state import TrainState

Array = jax.Array
Metrics = dict[str, tuple[Array, Array]]
# In the accumulator: (number of the first step that was not finite, how many there were).
NOT_FINITE = "not_finite"


@flax.struct.dataclass
class Spec:
    """What the step is compiled for; all static."""

    seed: int = flax.struct.field(pytree_node=False)
    batch_size: int = flax.struct.field(pytree_node=False)
    accumulation: int = flax.struct.field(pytree_node=False)
    ema_decay: float = flax.struct.field(pytree_node=False)
    views: Mapping[str, Any] = flax.struct.field(pytree_node=False)
    size: int = flax.struct.field(pytree_node=False)
    resident: bool = flax.struct.field(pytree_node=False)
    layout: str = flax.struct.field(pytree_node=False, default="data")
    skip_not_finite: bool = flax.struct.field(pytree_node=False, default=False)


def spec_of(config: ml_collections.ConfigDict, *, size: int) -> Spec:
    """Takes what the step needs from a training config; `size` is the number of examples."""
    return Spec(
        seed=config.seed,
        batch_size=config.batch_size,
        accumulation=config.accumulation,
        ema_decay=config.ema_decay,
        views=config.views,
        size=size,
        resident=not config.data.streaming,
        layout=config.get("sharding", "data"),
        skip_not_finite=optim.skips(config.optim),
    )


def _split(tree: Any, parts: int) -> Any:
    """[B, ...] -> [parts, B / parts, ...], interleaved so that no example changes its device."""
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0), tree
    )


def _merge(x: Array) -> Array:
    """The inverse of `_split` for one array."""
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def _prepare(objective: Objective, state: TrainState, parts: Any, key: Array) -> Any:
    """Runs `objective.prepare` on each microbatch; returns stacked contexts and the new state.

    Entries that belong to the whole batch (contrastive keys) are merged over the microbatches, so
    accumulating gradients leaves the negatives what they are without it.
    """
    count = jax.tree.leaves(parts)[0].shape[0]

    def one(carry, xs):
        part, index = xs
        variables = dataclasses.replace(state.variables, **carry)
        context, carry = objective.prepare(variables, part, key, train=True)
        if "position" in context:
            context["position"] = context["position"] * count + index
        return carry, context

    start = state.variables.state
    new_state, contexts = jax.lax.scan(one, start, (parts, jnp.arange(count)))
    shared = {k: _merge(v) for k, v in contexts.items() if k in SHARED_CONTEXT}
    rows = {k: v for k, v in contexts.items() if k not in SHARED_CONTEXT}
    return rows, shared, new_state


def gradients(
    objective: Objective, state: TrainState, batch_views: Any, key: Array, *, accumulation: int
) -> tuple[Any, dict[str, Any], Metrics]:
    """Returns the mean gradient over the batch, the new objective state and additive metrics.

    With `accumulation` > 1 the batch passes in that many interleaved microbatches; the result
    differs from one pass only through the batch normalisation, which then sees a microbatch at a
    time (as each device of the released multi-GPU run does).
    """
    grad_fn = jax.value_and_grad(objective.loss, has_aux=True)
    batch_views = objective.arrange(batch_views, key)

    def one(params, obj_state, part, context):
        (loss, out), grads = grad_fn(params, obj_state, part, context, key, train=True)
        metrics = {**out.metrics, "loss": (loss, jnp.ones((), jnp.float32))}
        return grads, out.state, metrics

    if accumulation == 1:
        context, obj_state = objective.prepare(state.variables, batch_views, key, train=True)
        return one(state.params, obj_state, batch_views, context)

    parts = _split(batch_views, accumulation)
    rows, shared, obj_state = _prepare(objective, state, parts, key)

    def body(carry, xs):
        grads, obj_state, metrics = carry
        part, row = xs
        g, obj_state, m = one(state.params, obj_state, part, {**row, **shared})
        add = lambda a, b: jax.tree.map(jnp.add, a, b)  # noqa: E731
        return (add(grads, g), obj_state, add(metrics, m)), None

    first = jax.tree.map(lambda x: x[0], (parts, rows))
    shapes = jax.eval_shape(one, state.params, obj_state, first[0], {**first[1], **shared})
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[2]))
    (grads, obj_state, metrics), _ = jax.lax.scan(
        body, (zeros[0], obj_state, zeros[1]), (parts, rows)
    )
    return jax.tree.map(lambda g: g / accumulation, grads), obj_state, metrics


def remat_of(objective: Objective) -> str:
    """What the objective's network computes again for its gradient: a key of `unet.REMAT`."""
    return getattr(objective, "remat", "none")


def compiler_options(objective: Objective, mesh: Mesh) -> dict[str, str]:
    """Options of XLA for programs that take this objective's gradient on the devices of `mesh`.

    A rematerialised network keeps its second computation apart from its first by optimisation
    barriers. XLA takes them away early on CPUs (pass `cse_barrier_expander`), finds both equal and
    stores the first after all: without that pass U-Net-64 at 256², batch 2, takes 46 % of the
    temporary memory with `norms` and 36 % with `blocks`; with it, as much as `none`.
    """
    if remat_of(objective) == "none" or mesh.devices.flat[0].platform != "cpu":
        return {}
    return {"xla_disable_hlo_passes": "cse_barrier_expander"}


class TrainStep:
    """One compiled optimiser step.

    `data` is the resident data set (arrays of all examples), from which the step gathers its own
    batch, or, when streaming, the raw batch itself.
    """

    def __init__(
        self, objective: Objective, tx: optax.GradientTransformation, spec: Spec, mesh: Mesh
    ):
        """Builds the function; nothing is compiled before `compile` or the first call."""
        whole, rows = sharding.replicated(mesh), sharding.by_example(mesh)
        layout = sharding.Layout(mesh, spec.layout)
        # The layout of a sharded state is that of its arrays, leaf by leaf; `apply` keeps it.
        of_state = whole if spec.layout == "data" else None

        def update(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
            batch_views = views_at(objective.views, data, state.step, spec, rows)
            return apply(objective, tx, spec, state, batch_views, layout)

        def step(state: TrainState, totals: Metrics, data: Any) -> tuple[TrainState, Metrics]:
            state, metrics = update(state, data)
            first, count = metrics[NOT_FINITE]
            # Sums are all that the accumulator knows: only the first such step adds its number.
            metrics[NOT_FINITE] = (jnp.where(totals[NOT_FINITE][1] > 0, 0, first), count)
            return state, jax.tree.map(jnp.add, totals, metrics)

        self.spec, self.remat = spec, remat_of(objective)
        self._update = update
        self._whole = whole
        self._shapes: Any = None
        self.jitted = jax.jit(
            step,
            in_shardings=(of_state, whole, whole if spec.resident else rows),
            out_shardings=(of_state, whole),
            donate_argnums=(0, 1),
            compiler_options=compiler_options(objective, mesh),
        )

    def zero_metrics(self, state: TrainState, data: Any) -> Metrics:
        """Returns an empty accumulator on the devices."""
        if self._shapes is None:
            _, self._shapes = jax.eval_shape(self._update, state, data)
        # Made on the host: jnp.zeros would be a program each, between two steps.
        zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), self._shapes)
        return sharding.place(zeros, self._whole)

    def __call__(self, state: TrainState, totals: Metrics, data: Any) -> tuple[TrainState, Metrics]:
        """Returns the next state and `totals` plus this step's metrics; both inputs are donated."""
        return self.jitted(state, totals, data)


def apply(
    objective: Objective,
    tx: optax.GradientTransformation,
    spec: Spec,
    state: TrainState,
    batch_views: Any,
    layout: sharding.Layout,
) -> tuple[TrainState, Metrics]:
    """Returns the state after one optimiser step on the given views, and the step's metrics.

    Under a sharded layout the networks are made whole for the passes over the batch, once a step
    whatever the accumulation, and each device updates its part with its part of the gradient.

    A step whose loss or gradient is not finite is counted under NOT_FINITE. Where the spec says so
    it changes nothing but the step's number, and its other metrics count for nothing.
    """
    key = jax.random.fold_in(keys.stream_key(spec.seed, "loss"), state.step)
    networks = layout.gather((state.params, state.batch_stats, state.extra))
    names = ("params", "batch_stats", "extra")
    grads, obj_state, metrics = gradients(
        objective,
        dataclasses.replace(state, **dict(zip(names, networks))),
        batch_views,
        key,
        accumulation=spec.accumulation,
    )
    grads, obj_state = layout.spread((grads, obj_state))
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        batch_stats=obj_state["batch_stats"],
        extra=objective.post_update(params, obj_state["extra"], state.step),
        opt_state=opt_state,
    )
    if state.ema_params is not None:
        follow = functools.partial(state_lib.update_ema, decay=spec.ema_decay, step=state.step)
        new = dataclasses.replace(
            new,
            ema_params=follow(state.ema_params, params),
            ema_batch_stats=follow(state.ema_batch_stats, new.batch_stats),
        )
    norm = optax.global_norm(grads)
    metrics["gradient_norm"] = (norm, jnp.ones((), jnp.float32))
    bad = ~(jnp.isfinite(metrics["loss"][0]) & jnp.isfinite(norm))
    if spec.skip_not_finite:
        kept = dataclasses.replace(state, step=new.step)
        new = jax.tree.map(lambda old, made: jnp.where(bad, old, made), kept, new)
        metrics = jax.tree.map(lambda x: jnp.where(bad, jnp.zeros_like(x), x), metrics)
    metrics[NOT_FINITE] = (jnp.where(bad, state.step, 0), bad.astype(jnp.int32))
    return layout.spread(new), metrics


def views_at(names: Any, data: Any, step: Array, spec: Spec, rows: Any) -> dict[str, Array]:
    """Returns the training views of one step: a function of (seed, step) and the data alone."""
    if spec.resident:
        indices = source.batch_indices(spec.seed, step, size=spec.size, batch_size=spec.batch_size)
        data = source.gather(data, indices)
    batch = sharding.constrain(source.decode(data), rows)
    made = views.make_views(names, batch, seed=spec.seed, step=step, config=spec.views, train=True)
    return sharding.constrain(made, rows)


def picture_maker(
    objective: Objective, train_step: TrainStep, mesh: Mesh
) -> Callable[[TrainState, Any], dict[str, np.ndarray]]:
    """Pictures of the first images of the batch at hand, in evaluation mode."""
    spec = train_step.spec

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def draw(state: TrainState, data: Any) -> dict[str, jax.Array]:
        made = views_at(objective.views, data, state.step, spec, sharding.by_example(mesh))
        few = jax.tree.map(lambda x: x[:4], made)
        key = keys.stream_key(spec.seed, "pictures")
        context, _ = objective.prepare(state.variables, few, key, train=False)
        return objective.pictures(state.params, state.variables.state, few, context, key)

    return lambda state, data: jax.device_get(draw(state, data))
