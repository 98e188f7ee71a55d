"""A training that is ready to be timed, and steps of it as tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import optax

from cmunet_jax.benchmark import cost as cost_lib
from cmunet_jax.benchmark.cost import Cost
from cmunet_jax.benchmark.timing import Task
from cmunet_jax.objectives.base import Objective
from cmunet_jax.train import estimate, sharding
from cmunet_jax.train import step as step_lib
from cmunet_jax.train.state import TrainState
from cmunet_jax.train.step import TrainStep


@dataclasses.dataclass(frozen=True)
class Training:
    """What a training stage has in hand before its first step.

    Attributes:
      config: of the stage.
      objective: of it.
      plain: the same objective with the textbook layers, whose arithmetic is counted.
      tx: the optimiser.
      rate: step -> learning rate.
      state: fresh; steps donate copies of it.
      batches: opens what each step takes, as a context.
      size: examples in the data set.
      mesh: of all devices.
    """

    config: ml_collections.ConfigDict
    objective: Objective
    plain: Objective
    tx: optax.GradientTransformation
    rate: optax.Schedule
    state: TrainState
    batches: Callable[[], Any]
    size: int
    mesh: jax.sharding.Mesh

    @property
    def spec(self) -> step_lib.Spec:
        """What the step is compiled for."""
        return step_lib.spec_of(self.config, size=self.size)

    def fresh_state(self) -> TrainState:
        """A copy of the state that may be donated."""
        return jax.tree.map(lambda x: x.copy(), self.state)

    def step(self, objective: Objective | None = None) -> TrainStep:
        """The step of the training loop, of this objective or another."""
        return TrainStep(objective or self.objective, self.tx, self.spec, self.mesh)


Make = Callable[[str], Training]
"""Name of a training, 'finetune' or an objective -> what is ready; UserError where it cannot be."""


@dataclasses.dataclass
class Stepping:
    """Steps one after another: holds the state that each takes and leaves."""

    step: Callable[..., tuple[Any, Any]]
    state: Any
    extra: tuple[Any, ...]
    totals: Any = None

    def call(self) -> None:
        """One step; returns when it is queued."""
        given = self.extra if self.totals is None else (self.totals, *self.extra)
        self.state, made = self.step(self.state, *given)
        if self.totals is not None:
            self.totals = made

    def wait(self) -> None:
        """Returns when the state is there."""
        jax.block_until_ready(self.state)

    @property
    def task(self) -> Task:
        """To be timed."""
        return Task(self.call, self.wait)


def loop_step(training: Training, batch: Any) -> tuple[Stepping, Any, Cost]:
    """The step as the training loop runs it: gather, augment, loss, update.

    Returns:
      Steps, the compiled program, and its work.

    Raises:
      UserError: if it does not fit into memory.
    """
    step, dtype = training.step(), training.config.model.dtype
    state = training.fresh_state()
    totals = step.zero_metrics(state, batch)
    compiled = step.jitted.lower(state, totals, batch).compile()
    estimate.check_memory(
        compiled, batch_size=training.config.batch_size, stage=training.config.stage
    )
    textbook = training.step(training.plain).jitted.lower(state, totals, batch)
    work = cost_lib.count(compiled, textbook=textbook, dtype=dtype)
    return Stepping(compiled, state, (batch,), totals), compiled, work


def views_task(training: Training, batch: Any) -> tuple[Callable[[], Any], Task]:
    """The views of one step alone: a function that returns them, and the task of making them."""
    spec, rows = training.spec, sharding.by_example(training.mesh)
    names = training.objective.views
    # The step number is an argument: as a constant it would let XLA compute the views beforehand.
    make = jax.jit(lambda data, step: step_lib.views_at(names, data, step, spec, rows))
    step = training.state.step
    last: dict[str, Any] = {}

    def call() -> None:
        last["views"] = make(batch, step)

    return lambda: make(batch, step), Task(call, lambda: jax.block_until_ready(last))


def core_step(
    training: Training, views: Any, tx: optax.GradientTransformation
) -> tuple[Stepping, Cost]:
    """Forward, backward and optimiser on given views: what PyTorch is compared with."""

    def program(objective: Objective) -> Any:
        def run(state: TrainState, views: Any) -> tuple[TrainState, Any]:
            layout = sharding.Layout(training.mesh)
            return step_lib.apply(objective, tx, training.spec, state, views, layout)

        options = step_lib.compiler_options(objective, training.mesh)
        return jax.jit(run, donate_argnums=0, compiler_options=options).lower(state, views)

    start = training.fresh_state()
    # Without averaged weights, which the other side does not keep either.
    state = dataclasses.replace(
        start, opt_state=tx.init(start.params), ema_params=None, ema_batch_stats=None
    )
    compiled = program(training.objective).compile()
    work = cost_lib.count(
        compiled, textbook=program(training.plain), dtype=training.config.model.dtype
    )
    return Stepping(compiled, state, (views,)), work
