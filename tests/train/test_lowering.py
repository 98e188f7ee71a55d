"""The real train step of every objective lowers for every platform; nothing is compiled or run."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import optax
import pytest

from cmunet_jax import objectives
from cmunet_jax.train import optim, sharding
from cmunet_jax.train import state as state_lib
from cmunet_jax.train.step import TrainStep
from tests.objectives import tiny
from tests.train.test_step import BATCH, SIZE, arrays, spec

PLATFORMS = ("cpu", "cuda", "tpu")
OPTIM = ml_collections.ConfigDict(
    {"name": "adamw", "b1": 0.9, "b2": 0.999, "weight_decay": 0.05, "clip_norm": 1.0}
)


def export(objective, **changes):
    """(exported step, shapes of its state, shapes of its metrics), as the loop jits it."""
    mesh = sharding.create_mesh()
    tx = optim.create(OPTIM, optax.cosine_decay_schedule(1e-3, 100))
    options = spec(objective, **changes)
    step = TrainStep(objective, tx, options, mesh)

    def start(key):
        variables = objective.init(key, (SIZE, SIZE, 1))
        return state_lib.create(variables, tx, ema=True)

    data = arrays("supervised" in objective.views)
    if not options.resident:
        data = {name: rows[:BATCH] for name, rows in data.items()} | {"index": jnp.arange(BATCH)}
    state, data = jax.eval_shape(start, jax.random.key(0)), jax.eval_shape(lambda x: x, data)
    metrics = jax.eval_shape(lambda *a: step.zero_metrics(*a), state, data)
    exported = jax.export.export(step.jitted, platforms=PLATFORMS)(state, metrics, data)
    return exported, state, metrics


def check(exported, state, metrics):
    """The step takes and gives the same state and metrics, and is there for all platforms."""
    assert exported.platforms == PLATFORMS
    new_state, new_metrics = exported.out_tree.unflatten(exported.out_avals)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shapes(new_state) == shapes(state)
    assert shapes(new_metrics) == shapes(metrics) and "loss" in new_metrics


def test_no_objective_is_left_out():
    assert {type(o) for o in tiny.OBJECTIVES.values()} == set(objectives.OBJECTIVES.values())


@pytest.mark.parametrize("name", list(tiny.OBJECTIVES))
def test_train_step_lowers(name):
    check(*export(tiny.OBJECTIVES[name]))


@pytest.mark.parametrize(
    "changes", [{"accumulation": 2}, {"resident": False}], ids=["accumulated", "streamed"]
)
@pytest.mark.parametrize("name", ["scratch-fixed", "cmunet-fixed"])
def test_train_step_lowers_however_the_batch_comes(name, changes):
    objective = dataclasses.replace(tiny.OBJECTIVES[name], dtype="bfloat16")
    check(*export(objective, **changes))
