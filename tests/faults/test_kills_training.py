"""Training killed at random: what was saved stays, and the end is that of an undisturbed run."""

import functools
import json

import pytest

from cmunet_jax.train import checkpoint, store
from tests.faults import kills

pytestmark = pytest.mark.faults

STEPS, EVERY = 160, 4
FIRST = 1  # kill before anything new was saved


def command(dataset, workdir):
    return [
        "-m", "cmunet_jax.main", "--config", "configs/pretrain.py:size=tiny",
        f"--config.data.dir={dataset.directory.parents[2]}", "--config.data.workers=1",
        f"--config.train_for={STEPS} steps", f"--config.checkpoint.every={EVERY} steps",
        "--config.pictures_every=0 steps", f"--config.log_every={EVERY} steps",
        f"--workdir={workdir}",
    ]  # fmt: skip


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]


def test_a_killed_training_ends_as_an_undisturbed_one(tiny_dataset, tmp_path):
    rng = kills.generator("training")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert kills.start(command(tiny_dataset, whole)).wait() == 0
    folder, reached = broken / "checkpoints", 0

    def newest(above=0):
        return max((step for step in store.step_folders(folder) if step > above), default=0)

    for number in range(kills.KILLS["training"]):
        process = kills.start(command(tiny_dataset, broken))
        if number < FIRST:
            kills.kill(process, after=rng.uniform(1, 6))
        else:
            kills.wait_until(functools.partial(newest, reached), process, 120)
            kills.kill(process, after=rng.uniform(0, 0.5))
        found = newest()
        assert found >= reached, "a checkpoint was lost"
        if found:
            assert checkpoint.load(broken).step == found, "what has its name is whole"
        reached = found
    assert 0 < reached < STEPS
    assert kills.start(command(tiny_dataset, broken)).wait() == 0
    assert checkpoint.load(broken).step == STEPS
    assert checkpoint.load(broken).digest == checkpoint.load(whole).digest
    assert losses(broken) == losses(whole), "each step is reported once, with the same loss"
    assert not list(folder.glob("*tmp*"))


def test_there_are_fifty_kills():
    assert sum(kills.KILLS.values()) == 50
