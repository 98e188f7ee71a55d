"""MoCo over steps: it learns; passes, devices and interruptions change nothing."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cmunet_jax.train import checkpoint, sharding
from cmunet_jax.train import state as state_lib
from cmunet_jax.train.step import Spec, apply, gradients
from tests.objectives import tiny
from tests.objectives.test_moco import BATCH, BOTH, FIXED, PAPER, _close, _prepare, _unit


def _updates(objective, variables, views, steps, *, tx=None):
    """The state after some real optimiser steps on the same views, and their metrics."""
    tx = tx or optax.sgd(0.05, momentum=0.9)
    spec = Spec(seed=3, batch_size=BATCH, accumulation=1, ema_decay=0.0, views={},
                size=BATCH, resident=True)  # fmt: skip
    layout = sharding.Layout(sharding.create_mesh())
    step = jax.jit(lambda state, views: apply(objective, tx, spec, state, views, layout))
    state, metrics = variables, []
    if not isinstance(state, state_lib.TrainState):
        state = state_lib.create(variables, tx, ema=False)
    for _ in range(steps):
        state, made = step(state, views)
        metrics.append({name: float(total / count) for name, (total, count) in made.items()})
    return state, metrics


def test_keys_are_normalised_by_statistics_of_earlier_steps():
    variables, views = tiny.case(FIXED, batch=BATCH)
    state, _ = _updates(FIXED, variables, views, 1)
    running = state.extra["target_batch_stats"]
    _, expected = FIXED._features(
        variables.extra["target"], variables.batch_stats, views["view_k"], train=True
    )
    _close(running, expected, rtol=1e-4, atol=1e-5)
    _, context, _ = _prepare(FIXED, state.variables, views)
    keys, _ = FIXED._features(state.extra["target"], running, views["view_k"], train=False)
    np.testing.assert_allclose(context["keys"], _unit(keys), atol=1e-5)


@BOTH
def test_one_batch_is_overfitted(objective):
    """Half of log(K + 1) must go, though each image has two older keys in the queue.

    The loss starts near 0 against the random queue and rises when that holds real keys.
    """
    objective = dataclasses.replace(objective, width=4, momentum=0.9)
    if objective.bn_group:
        objective = dataclasses.replace(objective, bn_group=4)  # pairs say much of each other
    variables, views = tiny.case(objective, batch=BATCH)
    _, metrics = _updates(objective, variables, views, 100, tx=optax.adam(3e-3))
    losses = [m["loss"] for m in metrics]
    assert losses[0] < 0.1 and max(losses[2:20]) > 1.4
    assert np.median(losses[-20:]) < 0.5 * np.log(objective.queue + 1)
    assert metrics[-1]["batch_accuracy"] == 1
    assert metrics[-1]["key_spread"] > 0.3


def _pass(objective, variables, views, accumulation):
    state = state_lib.create(variables, optax.sgd(1.0), ema=False)
    run = jax.jit(lambda s, v: gradients(objective, s, v, tiny.KEY, accumulation=accumulation))
    return run(state, views)


def test_accumulation_with_groups_is_exact_also_in_training():
    """Groups, shuffling and queue do not depend on how a batch passes."""
    variables, views = tiny.case(PAPER, batch=BATCH)
    whole, parts = (_pass(PAPER, variables, views, n) for n in (1, 4))
    _close(parts[0], whole[0], rtol=2e-3, atol=2e-5)
    for name in ("loss", "contrast_accuracy", "batch_accuracy", "positive_cosine"):
        (a, count), (b, once) = parts[2][name], whole[2][name]
        assert (count, once) == (4, 1)
        np.testing.assert_allclose(a / count, b, rtol=1e-3)
    for name in ("queue", "pointer"):
        np.testing.assert_allclose(
            parts[1]["extra"][name], whole[1]["extra"][name], rtol=1e-4, atol=1e-5
        )


def test_accumulation_fills_the_queue_once_with_the_same_keys():
    variables, views = tiny.case(FIXED, batch=BATCH)
    whole, parts = (_pass(FIXED, variables, views, n)[1]["extra"] for n in (1, 2))
    np.testing.assert_allclose(parts["queue"], whole["queue"], atol=1e-6)
    assert parts["pointer"] == whole["pointer"] == BATCH


_DEVICES = """
import dataclasses, json
import jax
from cmunet_jax.train import sharding
from tests.objectives import tiny
from tests.objectives.test_moco import BATCH
from tests.objectives.test_moco_steps import _updates
mesh, made = sharding.create_mesh(), {}
for name in ("moco-fixed", "moco-paper"):
    objective = dataclasses.replace(tiny.OBJECTIVES[name], dtype="float64")
    variables, views = jax.tree.map(
        lambda x: x.astype("float64") if x.dtype == "float32" else x,
        tiny.case(objective, batch=BATCH),
    )
    views = jax.device_put(views, sharding.by_example(mesh))
    variables = jax.device_put(variables, sharding.replicated(mesh))
    state, metrics = _updates(objective, variables, views, 3)
    queue = jax.device_get(state.extra["queue"])
    made[name] = [*[m["loss"] for m in metrics], *queue.ravel().tolist()]
print(json.dumps({"devices": jax.device_count(), "made": made}))
"""


@pytest.mark.slow
def test_eight_devices_do_what_one_does(run_python):
    """In float64: losses of three steps and the queue, which has wrapped by then."""
    one, eight = (
        json.loads(run_python("-c", _DEVICES, devices=n, JAX_ENABLE_X64="1").stdout) for n in (1, 8)
    )
    assert (one["devices"], eight["devices"]) == (1, 8)
    for name, values in one["made"].items():
        assert len(set(values[:3])) == 3
        np.testing.assert_allclose(eight["made"][name], values, rtol=1e-9, atol=1e-12)


@BOTH
def test_a_resumed_run_is_the_same_run(objective, tmp_path):
    """Stopped between two batches of the queue, restored and continued: bit for bit."""
    variables, views = tiny.case(objective, batch=BATCH)
    half, _ = _updates(objective, variables, views, 1)
    whole, _ = _updates(objective, half, views, 2)
    with checkpoint.Checkpointer(
        tmp_path, config={"stage": "pretrain"}, preprocessing={"name": "fixed"}
    ) as checkpointer:
        checkpointer.save(1, half)
        restored = checkpointer.restore(jax.eval_shape(lambda: half)).state
    assert restored.extra["pointer"] == BATCH
    again, _ = _updates(objective, restored, views, 2)
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_bfloat16_computes_and_the_queue_stays_wide():
    objective = dataclasses.replace(FIXED, dtype="bfloat16")
    variables, views = tiny.case(objective, batch=BATCH)
    state, metrics = _updates(objective, variables, views, 2)
    assert state.extra["queue"].dtype == jnp.float32
    assert all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves(state))
    _, exact = _updates(FIXED, variables, views, 1)
    np.testing.assert_allclose(metrics[0]["loss"], exact[0]["loss"], atol=0.1)
