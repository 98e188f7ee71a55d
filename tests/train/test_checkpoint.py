"""Checkpoints: what comes back is what was saved, and what is kept."""

import math
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from cmunet_jax.train.checkpoint import load
from cmunet_jax.train.manifest import as_json, leaves_by_path, nest
from tests.train.states import (
    CONFIG,
    PREPROCESSING,
    assert_same,
    make_state,
    open_run,
    saved,
    steps_in,
)
from tfds_angio.errors import UserError

# --- round trip -------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [True, False])
def test_state_comes_back_bit_for_bit(tmp_path, ema):
    state = make_state(7, ema=ema)
    with open_run(tmp_path) as checkpointer:
        assert checkpointer.restore(state) is None
        checkpointer.save(7, state, metrics={"val/dice": 0.5})
        restored = checkpointer.restore(jax.eval_shape(lambda: state))
    assert restored.step == 7
    assert_same(restored.state, state)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored.state))
    assert restored.meta.preprocessing == PREPROCESSING
    assert restored.meta.config == {
        "stage": "finetune",
        "optim": {"betas": [0.9, 0.95], "clip": None},
    }
    assert restored.meta.metrics == {"val/dice": 0.5}
    assert restored.meta.versions["jax"] == jax.__version__
    assert restored.meta.versions["python"].startswith(f"3.{sys.version_info.minor}.")


def test_python_and_numpy_leaves_keep_their_type(tmp_path):
    state = {"params": {"a": np.arange(3, dtype=np.int16), "n": 3, "x": 0.1, "flag": True}}
    with open_run(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        state["params"]["a"][:] = 9  # The caller may go on at once.
        restored = checkpointer.restore(state).state["params"]
    np.testing.assert_array_equal(restored["a"], np.arange(3, dtype=np.int16))
    assert (restored["n"], restored["x"], restored["flag"]) == (3, 0.1, True)
    assert type(restored["n"]) is int and type(restored["flag"]) is bool


def test_donating_the_state_while_it_is_written_is_safe(tmp_path):
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = {"params": [jnp.zeros((300, 300)) for _ in range(8)], "step": jnp.int32(0)}
    with open_run(tmp_path, keep_latest=10) as checkpointer:
        for step in range(3):
            checkpointer.save(step, state)
            for _ in range(3):
                state = update(state)
    for step in range(3):
        loaded = load(tmp_path, step=step)
        assert all((value == 3 * step).all() for value in loaded.params.values())


def test_restores_onto_the_given_shardings(tmp_path):
    count = 8 if jax.device_count() >= 8 else 1
    mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    state = {"params": {"a": jnp.arange(8.0)}}
    abstract = {"params": {"a": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=rows)}}
    with open_run(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        restored = checkpointer.restore(abstract).state
    assert restored["params"]["a"].sharding == rows
    np.testing.assert_array_equal(restored["params"]["a"], np.arange(8.0))


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_orbax_alone_can_read_our_checkpoints(tmp_path):
    saved(tmp_path, [3])
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.restore(tmp_path / "3" / "state")
    expected = make_state(3).params["encoder"]["kernel"]
    np.testing.assert_array_equal(tree["params"]["encoder"]["kernel"], expected)


def test_digest_names_the_content(tmp_path):
    def digest(name, step=1, seed=0, **options):
        with open_run(tmp_path / name, **options) as checkpointer:
            checkpointer.save(step, make_state(step, seed=seed))
        return load(tmp_path / name).digest

    first = digest("a")
    assert len(first) == 64 and digest("b") == first
    others = {
        digest("c", seed=1),
        digest("d", config=CONFIG | {"stage": "pretrain"}),
        digest("e", preprocessing=PREPROCESSING | {"size": 64}),
        digest("f", step=2),
    }
    assert len(others | {first}) == 5
    assert load(tmp_path / "a").short_digest == first[:12]


def test_typed_keys_and_unwritable_configs_are_refused_at_once(tmp_path):
    with pytest.raises(TypeError, match="PRNG"), open_run(tmp_path) as checkpointer:
        checkpointer.save(1, {"params": {"key": jax.random.key(0)}})
    with pytest.raises(TypeError, match="config"):
        open_run(tmp_path, config={"f": lambda: 0})
    nested = ml_collections.ConfigDict({"a": {"b": (1, 2)}})
    assert as_json(nested, what="x") == {"a": {"b": [1, 2]}}


def test_paths_are_unique_and_reversible():
    tree = {"a/b": {"c.d": 1}, "a": {"b": {"c": {"d": 2}}}, "%2F": 3}
    leaves = leaves_by_path(tree)
    assert len(leaves) == 3
    assert nest(leaves, unescape=True) == tree


# --- what is kept -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scores, kept",
    [
        ([0.1, 0.9, 0.3, 0.4], [2, 3, 4]),
        ([0.1, 0.2, 0.3, 0.4], [3, 4]),
        ([0.9, 0.9, 0.3, 0.4], [1, 3, 4]),  # The earlier of equals.
        ([math.nan, None, 0.3, math.inf], [3, 4]),
        ([None, None, None, None], [3, 4]),
    ],
)
def test_keeps_the_latest_and_the_best(tmp_path, scores, kept):
    def run(steps):
        # Reopened half-way: what is best must be known from the disk.
        with open_run(tmp_path, keep_latest=2, best_metric="dice") as checkpointer:
            for step in steps:
                score = scores[step - 1]
                metrics = None if score is None else {"dice": score, "other": 1}
                assert checkpointer.save(
                    step, {"params": {"a": jnp.full(2, step)}}, metrics=metrics
                )

    run([1, 2])
    run([3, 4])
    assert steps_in(tmp_path) == kept


def test_lowest_is_best_in_min_mode(tmp_path):
    with open_run(tmp_path, keep_latest=1, best_metric="loss", best_mode="min") as checkpointer:
        for step, loss in enumerate([3.0, 1.0, 2.0]):
            checkpointer.save(step, make_state(step), metrics={"loss": loss})
    assert steps_in(tmp_path) == [1, 2]
    assert load(tmp_path, step="best").step == 1


def test_existing_steps_are_not_saved_again(tmp_path):
    with open_run(tmp_path) as checkpointer:
        assert checkpointer.save(5, make_state(5))
        assert not checkpointer.save(5, make_state(6), force=True)
        assert not checkpointer.save(4, make_state(4))
        assert checkpointer.save(4, make_state(4), force=True)
    assert_same(nest(leaves_by_path(make_state(5).params)), load(tmp_path, step=5).params)


def test_orbax_never_asks_jax_whether_to_stop(tmp_path, monkeypatch):
    """Else the one step that jax names could be asked for there, and the loop would miss it."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    saved(tmp_path, [1, 2])
    with open_run(tmp_path) as checkpointer:
        checkpointer.restore(make_state())
        assert checkpointer.save(3, make_state(3), force=True)
    assert asked == [] and steps_in(tmp_path) == [2, 3]


# --- another model ----------------------------------------------------------------------------


def test_mismatches_are_listed_and_nothing_is_moved(tmp_path):
    saved(tmp_path, [1, 2])
    other = make_state()
    other.params["encoder"]["kernel"] = jnp.zeros((3, 3, 1, 16))
    other.params["encoder"]["bias"] = jnp.zeros(8, jnp.float16)
    other.params["tail"] = jnp.zeros(2)
    del other.params["head"]
    with open_run(tmp_path) as checkpointer, pytest.raises(UserError) as error:
        checkpointer.restore(other)
    message = str(error.value)
    assert (
        "params/encoder/kernel: checkpoint float32[3, 3, 1, 8], model float32[3, 3, 1, 16]"
        in message
    )
    assert "params/encoder/bias: checkpoint float32[8], model float16[8]" in message
    assert "params/tail float32[2]" in message and "params/head/kernel bfloat16[5, 2]" in message
    assert "--workdir" in message
    assert steps_in(tmp_path) == [1, 2]


def test_long_lists_of_mismatches_are_cut(tmp_path):
    with open_run(tmp_path) as checkpointer:
        checkpointer.save(1, {"params": {str(i): jnp.zeros(1) for i in range(50)}})
        with pytest.raises(UserError, match=r"and 38 more") as error:
            checkpointer.restore({"params": {}})
    assert len(str(error.value).splitlines()) < 20
