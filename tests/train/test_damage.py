"""Damaged files, full disks and killed processes: no wrong state, no lost save."""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cmunet_jax.train import store
from cmunet_jax.train.checkpoint import load
from tests.train.states import assert_same, make_state, open_run, saved, steps_in
from tfds_angio.errors import UserError

# --- damage -----------------------------------------------------------------------------------


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


# --- disks ------------------------------------------------------------------------------------


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


def test_an_error_that_is_not_of_the_disk_is_named_without_a_word_on_space(tmp_path, monkeypatch):
    def fail(*unused, **options):
        raise TypeError("can't subtract")

    with open_run(tmp_path) as checkpointer:
        checkpointer.save(1, make_state())
        checkpointer.wait()
        with monkeypatch.context() as patched:
            patched.setattr(ocp.CheckpointManager, "_finalize_checkpoint", fail)
            with pytest.raises(UserError, match="step 2 .* TypeError: can't subtract") as error:
                checkpointer.save(2, make_state(2))
                checkpointer.wait()
        assert "space" not in str(error.value) and "latest: step 1" in str(error.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (ValueError("UNAVAILABLE: Error writing: Disk quota exceeded"), True),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), False),
        (TypeError("can't subtract"), False),
    ],
)
def test_errors_of_the_disk_are_told_from_others(error, expected):
    assert store.of_the_disk(error) is expected
    outer = RuntimeError("the save failed")
    outer.__cause__ = error
    assert store.of_the_disk(outer) is expected


def test_unwritable_folders_are_user_errors(tmp_path):
    (tmp_path / "file").write_text("")
    with open_run(tmp_path / "file" / "checkpoints") as checkpointer:
        with pytest.raises(UserError, match="cannot write checkpoints"):
            checkpointer.save(1, make_state())


# --- kill -9 ----------------------------------------------------------------------------------

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
