"""States to save in tests, with every kind of leaf that a run has."""

from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cmunet_jax.train import store
from cmunet_jax.train.checkpoint import Checkpointer
from cmunet_jax.train.manifest import leaves_by_path

CONFIG = {"stage": "finetune", "optim": {"betas": (0.9, 0.95), "clip": None}}
PREPROCESSING = {"name": "fixed", "size": 32, "version": 1}


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    batch_stats: dict
    extra: dict
    opt_state: object
    ema_params: object
    ema_batch_stats: object


def make_state(step=1, *, ema=True, seed=0):
    """Every kind of leaf that a run has: bfloat16, integers, bool, NaN, -0.0, empty, None."""
    rng = np.random.default_rng((seed, step))
    params = {
        "encoder": {
            "kernel": jnp.asarray(rng.normal(size=(3, 3, 1, 8)), jnp.float32),
            "bias": jnp.zeros(8),
        },
        "head": {"kernel": jnp.asarray(rng.normal(size=(5, 2)), jnp.bfloat16)},
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))
    return State(
        step=jnp.int32(step),
        params=params,
        batch_stats={"bn": {"mean": jnp.array([jnp.nan, -0.0, jnp.inf])}},
        extra={
            "queue": jnp.asarray(rng.integers(0, 255, (4, 2)), jnp.uint8),
            "full": jnp.array(True),
            "none_yet": jnp.zeros((0, 7)),
            "odd.name/with %": jnp.float32(1),
        },
        opt_state=tx.init(params),
        ema_params=jax.tree.map(lambda x: x + 1, params) if ema else None,
        ema_batch_stats={} if ema else None,
    )


def open_run(directory, **options):
    options = {"config": CONFIG, "preprocessing": PREPROCESSING} | options
    return Checkpointer(directory, **options)


def saved(directory, steps, **options):
    with open_run(directory, **options) as checkpointer:
        for step in steps:
            assert checkpointer.save(step, make_state(step))
    return directory


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for path, x in leaves_by_path(a).items():
        y = leaves_by_path(b)[path]
        assert (x.dtype, x.shape) == (y.dtype, y.shape), path
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


def steps_in(directory):
    return list(store.step_folders(Path(directory)))
