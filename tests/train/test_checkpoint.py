"""Checkpoints: what comes back is what was saved, or it does not come back."""

import json
import logging
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from cmunet_jax.train import store
from cmunet_jax.train.checkpoint import Checkpointer, load
from cmunet_jax.train.manifest import as_json, leaves_by_path, nest
from tfds_angio.errors import UserError

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


# --- round trip ---------------------------------------------------------------------------------


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


# --- what is kept -------------------------------------------------------------------------------


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


# --- damage -------------------------------------------------------------------------------------


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(data, rng):
    bit = rng.randrange(8 * len(data))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


DAMAGES = {
    "flipped bit": flip,
    "truncated": lambda data, rng: data[: rng.randrange(len(data))],
    "emptied": lambda data, rng: b"",
    "zeroed": lambda data, rng: bytes(len(data)),
    "missing": None,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("good"), [1, 2])


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_is_ever_loaded(tmp_path, good, damage, caplog):
    """Any file damaged: either the content is still right, or the step before is restored."""
    fell_back = 0
    for number, original in enumerate(files_of(good / "2")):
        run = tmp_path / str(number)
        shutil.copytree(good, run)
        target = run / original.relative_to(good)
        if damage == "missing":
            target.unlink()
        else:
            rng = random.Random(f"{damage} {number}")
            target.write_bytes(DAMAGES[damage](original.read_bytes(), rng))
        caplog.clear()
        with open_run(run) as checkpointer:
            restored = checkpointer.restore(make_state(1))
        assert_same(restored.state, make_state(restored.step))
        warnings = [r.getMessage() for r in caplog.records]
        if restored.step == 1:
            fell_back += 1
            assert len(warnings) == 1 and "\n" not in warnings[0]
            assert str(run / "2") in warnings[0] and "damaged" in warnings[0]
            assert steps_in(run) == [1] and (run / "damaged-2").is_dir()
        else:
            assert warnings == []
    assert fell_back >= 3  # The manifest, the tree and the data at least.


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_flips_that_orbax_restores_silently_are_caught(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)  # Incompressible.
    with open_run(tmp_path) as checkpointer:
        checkpointer.save(1, {"params": {"noise": noise}})
    data = max(files_of(tmp_path / "1" / "state"), key=lambda path: path.stat().st_size)
    original, rng, silent = data.read_bytes(), random.Random(0), 0
    for _ in range(5):
        data.write_bytes(flip(original, rng))
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            wrong = reader.restore(tmp_path / "1" / "state")["params"]["noise"]
        silent += not np.array_equal(wrong, noise)
        with pytest.raises(UserError, match="params/noise does not match its checksum"):
            load(tmp_path)
    assert silent == 5


@pytest.mark.slow
def test_no_flipped_bit_is_ever_loaded(tmp_path, good):
    rng = random.Random(0)
    for _ in range(300):
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(good, run)
        target = rng.choice(files_of(run / "2" / "state"))
        target.write_bytes(flip(target.read_bytes(), rng))
        with open_run(run) as checkpointer:
            restored = checkpointer.restore(make_state(1))
        assert_same(restored.state, make_state(restored.step))


def test_after_a_fall_back_the_step_can_be_saved_again(tmp_path, good):
    run = tmp_path / "run"
    shutil.copytree(good, run)
    (run / "2" / "manifest" / "metadata").write_text("{}")
    with open_run(run) as checkpointer:
        assert checkpointer.restore(make_state()).step == 1
        assert checkpointer.save(2, make_state(2))
        assert checkpointer.restore(make_state()).step == 2
        (run / "2" / "state" / "manifest.ocdbt").unlink()  # Again, in the same process.
        assert checkpointer.restore(make_state()).step == 1
        assert checkpointer.save(2, make_state(2))
    assert {p.name for p in run.iterdir()} == {"1", "2", "damaged-2", "damaged-2-2"}


def test_saving_without_restoring_clears_damaged_steps_too(tmp_path):
    saved(tmp_path, [1])
    (tmp_path / "5").mkdir()
    with open_run(tmp_path) as checkpointer:
        assert checkpointer.save(3, make_state(3))
        assert checkpointer.save(5, make_state(5))
    assert load(tmp_path).step == 5


def test_all_damaged_says_what_to_do(tmp_path):
    saved(tmp_path, [1, 2])
    for step in (1, 2):
        (tmp_path / str(step) / "manifest" / "metadata").unlink()
    with open_run(tmp_path) as checkpointer, pytest.raises(UserError) as error:
        checkpointer.restore(make_state())
    message = str(error.value)
    assert str(tmp_path) in message and "manifest is missing" in message and "backup" in message
    assert steps_in(tmp_path) == [1, 2]  # Nothing was moved: they may still be rescued.


def test_empty_step_folders_are_no_checkpoints(tmp_path, caplog):
    (tmp_path / "9").mkdir()
    with open_run(tmp_path) as checkpointer:
        assert checkpointer.restore(make_state()) is None
        assert "it is empty" in caplog.text
        checkpointer.save(9, make_state(9))
        assert checkpointer.restore(make_state()).step == 9


def test_leftovers_of_an_interrupted_save_are_ignored_and_removed(tmp_path):
    saved(tmp_path, [1])
    leftover = tmp_path / "2.orbax-checkpoint-tmp-123"
    shutil.copytree(tmp_path / "1", leftover)
    assert load(tmp_path).step == 1
    with open_run(tmp_path) as checkpointer:
        assert checkpointer.restore(make_state()).step == 1
        checkpointer.save(2, make_state(2))
    assert not leftover.exists() and steps_in(tmp_path) == [1, 2]


def test_interrupts_are_not_taken_for_damage(tmp_path, good, monkeypatch):
    for interrupt in (KeyboardInterrupt, SystemExit, MemoryError):

        def read(*unused, interrupt=interrupt, **options):
            raise interrupt

        monkeypatch.setattr(store.ts, "open", read)
        with open_run(good) as checkpointer, pytest.raises(interrupt):
            checkpointer.restore(make_state())
    assert steps_in(good) == [1, 2]


# --- another model ------------------------------------------------------------------------------


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


# --- disks --------------------------------------------------------------------------------------


def test_a_full_disk_costs_nothing_but_the_save(tmp_path, capfd):
    """A limit on file sizes stands for the full disk: the write fails half-way."""
    big = {"params": {"a": jax.random.normal(jax.random.key(0), (300, 300))}}
    with open_run(tmp_path) as checkpointer:
        checkpointer.save(1, big)
        checkpointer.wait()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(UserError, match="step 2 could not be written.*File too large"):
                checkpointer.save(2, big)
                checkpointer.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [p.name for p in tmp_path.iterdir()] == ["1"]  # No half of step 2.
        assert_same(checkpointer.restore(big).state, big)
        assert checkpointer.save(2, big)
    assert steps_in(tmp_path) == [1, 2]
    assert "Traceback" not in capfd.readouterr().err


def test_unwritable_folders_are_user_errors(tmp_path):
    (tmp_path / "file").write_text("")
    with open_run(tmp_path / "file" / "checkpoints") as checkpointer:
        with pytest.raises(UserError, match="cannot write checkpoints"):
            checkpointer.save(1, make_state())


# --- kill -9 ------------------------------------------------------------------------------------

CHILD = """
import sys, jax.numpy as jnp
from cmunet_jax.train.checkpoint import Checkpointer
with Checkpointer(sys.argv[1], config={}, preprocessing={"name": "x"}) as checkpointer:
    restored = checkpointer.restore({"params": {"a": jnp.zeros((512, 256)), "step": jnp.int32(0)}})
    step = restored.step if restored else 0
    while True:
        step += 1
        state = {"params": {"a": jnp.full((512, 256), float(step)), "step": jnp.int32(step)}}
        checkpointer.save(step, state)
        if step % 2:
            checkpointer.wait()
            print(step, flush=True)
"""


def kill_while_saving(directory, rng, saves):
    """Kills a saving process after `saves` completed saves and a bit; returns the last of them."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
    )
    done = 0
    for _ in range(saves):
        done = int(child.stdout.readline() or 0)
        assert done, "the child failed"
    try:
        child.wait(timeout=rng.uniform(0, 0.1))
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
    child.wait()
    rest = child.stdout.read().split()
    return int(rest[-1]) if rest else done


def check_kills(directory, kills):
    rng = random.Random(kills)
    for _ in range(kills):
        done = kill_while_saving(directory, rng, saves=rng.randint(1, 4))
        loaded = load(directory)  # What a consumer sees at once, without any clean-up.
        assert loaded.step >= done
        assert (loaded.params["a"] == loaded.step).all()


def test_kill_9_loses_no_completed_save(tmp_path, caplog):
    check_kills(tmp_path, 2)
    assert caplog.records == []


@pytest.mark.slow
def test_kill_9_many_times(tmp_path):
    check_kills(tmp_path, 25)


# --- consumers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("workdir")
    with open_run(path / "checkpoints", keep_latest=3, best_metric="dice") as checkpointer:
        for step, dice in ((10, 0.2), (20, 0.9), (30, 0.4)):
            checkpointer.save(step, make_state(step), metrics={"dice": dice})
    return path


@pytest.mark.parametrize(
    "part, step, expected",
    [
        ("", None, 30),
        ("", "latest", 30),
        ("", "best", 20),
        ("", 10, 10),
        ("", "10", 10),
        ("checkpoints", None, 30),
        ("checkpoints/20", None, 20),
        ("checkpoints/20", 20, 20),
    ],
)
def test_load_finds_the_checkpoint(workdir, part, step, expected):
    loaded = load(workdir / part, step=step)
    state = make_state(expected)
    assert loaded.step == expected and loaded.path == workdir / "checkpoints" / str(expected)
    assert_same(loaded.params, state.params)
    assert_same(loaded.ema_params, state.ema_params)
    assert_same(loaded.batch_stats, state.batch_stats)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded.params))
    assert loaded.preprocessing == PREPROCESSING and loaded.config["stage"] == "finetune"
    assert loaded.extra is None
    assert loaded.weights()[0] is loaded.ema_params
    assert loaded.weights(ema=False)[0] is loaded.params


def test_load_extra_on_demand(workdir):
    assert_same(load(workdir, extra=True).extra, make_state(30).extra)


def test_load_without_moving_averages(tmp_path):
    with open_run(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(1, ema=False))
    loaded = load(tmp_path)
    assert loaded.ema_params is None and loaded.ema_batch_stats is None
    assert loaded.weights()[0] is loaded.params


@pytest.mark.parametrize(
    "part, step, words",
    [
        ("nowhere", None, "does not exist"),
        ("checkpoints/30/state", None, "no step folder"),
        ("", 15, "no step 15"),
        ("", "newest", "'latest', 'best' or a step number"),
        ("checkpoints/20", 30, "leave step=30 out"),
    ],
)
def test_load_says_in_one_line_what_is_wrong(workdir, part, step, words):
    with pytest.raises(UserError, match=words) as error:
        load(workdir / part, step=step)
    assert "\n" not in str(error.value)


def test_weights_without_preprocessing_cannot_be_loaded(tmp_path):
    saved(tmp_path, [1], preprocessing={})
    with pytest.raises(UserError, match="without preprocessing cannot be loaded"):
        load(tmp_path)


def test_no_metric_means_no_best(tmp_path):
    saved(tmp_path, [1])
    with pytest.raises(UserError, match="latest"):
        load(tmp_path, step="best")


def test_consumers_fall_back_only_where_no_step_was_named(tmp_path, workdir, caplog):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    for step in (20, 30):
        (run / f"checkpoints/{step}/state/manifest.ocdbt").unlink()
    assert load(run).step == 10
    assert caplog.text.count("is damaged") == 2
    assert load(run, step="best").step == 10
    for path, step in ((run, 30), (run / "checkpoints" / "30", None)):
        with pytest.raises(UserError, match="damaged"):
            load(path, step=step)
    assert steps_in(run / "checkpoints") == [10, 20, 30]  # Consumers move nothing.


def test_edited_metadata_is_damage(tmp_path):
    """A manifest edited by hand (say, another preprocessing) does not pass for the saved one."""
    saved(tmp_path, [1])
    path = tmp_path / "1" / "manifest" / "metadata"
    data = json.loads(path.read_text())
    data["preprocessing"]["size"] = 64
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="does not match its checksum"):
        load(tmp_path)


def test_orbax_stays_silent(tmp_path, capfd):
    logging.getLogger("absl").setLevel(logging.INFO)
    try:
        saved(tmp_path, [1, 2])
        load(tmp_path)
    finally:
        logging.getLogger("absl").setLevel(logging.WARNING)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""
