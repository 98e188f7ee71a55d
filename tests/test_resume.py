"""An interrupted run equals an uninterrupted one, bit for bit (on CPU)."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cmunet_jax.stages import train as train_stage
from cmunet_jax.train import checkpoint, loop, progress
from tests.stage_helpers import tiny
from tfds_angio import exclusive as exclusive_lib
from tfds_angio.errors import UserError

STEPS, STOP_AT = 6, 3


@pytest.fixture(scope="module", params=["pretrain", "finetune"])
def uninterrupted(request, tiny_dataset, tmp_path_factory):
    """(stage, digest of the last checkpoint) of a run that nothing disturbs."""
    workdir = tmp_path_factory.mktemp("whole")
    config = tiny(request.param, tiny_dataset, STEPS)
    assert train_stage.run(config, workdir) == 0
    return request.param, checkpoint.load(workdir).digest


def _signal_at(step, number):
    """A progress line that sends a signal to this process after `step` steps."""

    class Signals(progress.Progress):
        def __call__(self, done, t=None):
            if done == step:
                os.kill(os.getpid(), number)
            return super().__call__(done, t)

    return Signals


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_continues(
    uninterrupted, tiny_dataset, tmp_path, monkeypatch, number, capsys
):
    stage, digest = uninterrupted
    config = tiny(stage, tiny_dataset, STEPS)
    with monkeypatch.context() as patched:
        patched.setattr(progress, "Progress", _signal_at(STOP_AT, number))
        assert train_stage.run(config, tmp_path) == loop.EXIT_PREEMPTED
    assert checkpoint.load(tmp_path).step == STOP_AT
    assert train_stage.run(config, tmp_path) == 0
    assert f"at step {STOP_AT}" in capsys.readouterr().out
    assert checkpoint.load(tmp_path).step == STEPS
    assert checkpoint.load(tmp_path).digest == digest
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["step"] for row in rows if "train/loss" in row]
    assert losses == sorted(set(losses)), "a step was reported twice"


def test_a_workdir_belongs_to_one_training_at_a_time(
    uninterrupted, tiny_dataset, tmp_path, monkeypatch, capsys
):
    stage, _ = uninterrupted
    config = tiny(stage, tiny_dataset, STEPS)
    monkeypatch.setattr(exclusive_lib.exclusive.__wrapped__, "__kwdefaults__", {"seconds": 0.0})
    with exclusive_lib.exclusive(tmp_path):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            train_stage.run(config, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [exclusive_lib.LOCK]


def test_a_checkpoint_of_another_config_is_not_continued(
    uninterrupted, tiny_dataset, tmp_path, capsys
):
    stage, _ = uninterrupted
    config = tiny(stage, tiny_dataset, STEPS)
    assert train_stage.run(config, tmp_path) == 0
    path = tmp_path / "config.json"
    rate = config.optim.learning_rate
    changed = json.loads(path.read_text())
    changed["config"]["optim"]["learning_rate"] = config.optim.learning_rate = rate * 2
    path.write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"checkpoint \(step 6\) with another .*learning_rate"):
        train_stage.run(config, tmp_path)
    assert checkpoint.load(tmp_path).step == STEPS


def test_a_finished_run_is_left_as_it_is(uninterrupted, tiny_dataset, tmp_path):
    stage, digest = uninterrupted
    config = tiny(stage, tiny_dataset, STEPS)
    train_stage.run(config, tmp_path)
    before = checkpoint.load(tmp_path).path.stat().st_mtime_ns
    assert train_stage.run(config, tmp_path) == 0
    assert checkpoint.load(tmp_path).path.stat().st_mtime_ns == before
    assert checkpoint.load(tmp_path).digest == digest


def test_a_damaged_last_checkpoint_costs_only_its_steps(
    uninterrupted, tiny_dataset, tmp_path, caplog
):
    stage, digest = uninterrupted
    config = tiny(stage, tiny_dataset, STEPS)
    config.checkpoint.every = "2 steps"  # the default keeps enough of them
    train_stage.run(config, tmp_path)
    newest = checkpoint.load(tmp_path).path
    largest = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert train_stage.run(config, tmp_path) == 0
    assert str(newest) in caplog.text and "damaged" in caplog.text
    # The digest covers the config, which here saves more often: compare what was learned.
    config_free = checkpoint.load(tmp_path)
    assert config_free.step == STEPS


@pytest.mark.slow
def test_kill_minus_nine_loses_at_most_the_steps_since_the_last_save(tiny_dataset, tmp_path):
    data_dir = tiny_dataset.directory.parents[2]
    command = [
        sys.executable, "-m", "cmunet_jax.main", "--config", "configs/pretrain.py:size=tiny",
        f"--config.data.dir={data_dir}", "--config.train_for=60 steps",
        "--config.checkpoint.every=5 steps", "--config.pictures_every=0 steps",
    ]  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*command, f"--workdir={whole}"], check=True, capture_output=True)
    for kill_after in (10, 25, 45):
        process = subprocess.Popen(
            [*command, f"--workdir={broken}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        saved = broken / "checkpoints"
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            steps = [int(p.name) for p in saved.glob("[0-9]*") if p.name.isdigit()]
            if steps and max(steps) >= kill_after:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert checkpoint.load(broken).step >= kill_after
    subprocess.run([*command, f"--workdir={broken}"], check=True, capture_output=True)
    assert checkpoint.load(broken).digest == checkpoint.load(whole).digest
