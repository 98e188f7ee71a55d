"""How long a step of a training takes on this machine, after compilation."""

import time
from typing import Any

import jax
import ml_collections

from cmunet_jax import objectives
from cmunet_jax.data import views
from cmunet_jax.stages import record, train
from cmunet_jax.train import loop, sharding
from cmunet_jax.train.step import TrainStep, spec_of

STEPS = 3


def run(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Compiles the step of a training and times a few, writing nothing.

    Args:
      config: of a training stage; `init_from` is left out, since weights do not change the time.

    Returns:
      {'seconds_per_step', 'start_seconds': from here to the end of the first step, 'versions'}.

    Raises:
      UserError: if the training could not start.
    """
    began = time.perf_counter()
    config = config.copy_and_resolve_references()
    config.init_from = ""
    objective = objectives.create(config)
    views.check(objective.views, config.views)
    mesh = sharding.create_mesh()
    inputs = train.prepare(config, train.choose_images(config), None)
    steps = train.durations(config, len(inputs.rows))
    state, tx, _ = train.initial_state(config, objective, None, steps, mesh)
    train_step = TrainStep(objective, tx, spec_of(config, size=len(inputs.rows)), mesh)
    with train.open_batches(config, inputs, 0, mesh) as batches:
        batch = next(batches)
        compiled = loop.compile_step(train_step, state, batch, steps=STEPS, stage=config.stage)
        totals = compiled.zero_metrics()
        state, totals = compiled.step(state, totals, batch)
        jax.block_until_ready(totals)
        first = time.perf_counter()
        for _ in range(STEPS):
            state, totals = compiled.step(state, totals, next(batches))
        jax.block_until_ready((state, totals))
        per_step = (time.perf_counter() - first) / STEPS
    return {
        "seconds_per_step": per_step,
        "start_seconds": first - began,
        "versions": record.versions(),
    }
