"""A worker's command line is the sweep's, without what starts workers."""

from __future__ import annotations

import pytest

from cmunet_jax.sweep.runners import command
from tfds_angio.errors import UserError


def _worker(*argv, **options):
    return command.worker_arguments(argv, workdir="/w", **options)


def test_a_worker_gets_what_the_sweep_got():
    argv = ["--config=configs/sweep.py:size=tiny", "--workdir=/old", "--config.labels=(18,)"]
    assert _worker(*argv, "--config.runner=slurm", "--config.slurm.time=1:00:00") == [
        "--config=configs/sweep.py:size=tiny",
        "--config.labels=(18,)",
        "--workdir=/w",
        "--config.runner=worker",
    ]


def test_both_ways_to_write_a_flag_are_understood():
    spaced = ["-config", "configs/sweep.py", "--workdir", "/old", "--config.runner", "slurm"]
    spaced += ["--config.title", "a b", "--noconfig.slurm.submit", "--config.tpu_vm.spot"]
    assert _worker(*spaced) == _worker("--config=configs/sweep.py", "--config.title=a b")


def test_a_key_that_only_looks_like_a_runner_is_kept():
    assert "--config.slurmish=1" in _worker("--config=c.py", "--config.slurmish=1")


def test_values_of_the_workers_place_win_and_empty_ones_do_not():
    argv = ["--config=c.py", "--config.data.dir=/mine", "--config.seed=1"]
    values = {"data.dir": "/storage/data", "seed": ""}
    assert _worker(*argv, values=values) == [
        "--config=c.py",
        "--config.seed=1",
        "--config.data.dir=/storage/data",
        "--workdir=/w",
        "--config.runner=worker",
    ]


@pytest.mark.parametrize("argv", [[], ["--workdir=/w"], ["x", "--config=c.py"]])
def test_a_command_without_a_config_is_refused(argv):
    with pytest.raises(UserError):
        _worker(*argv)


def test_the_config_is_found_from_the_checkout(tmp_path):
    arguments = [f"--config={tmp_path}/configs/sweep.py:a=1", "--x=1"]
    assert command.of_checkout(arguments, tmp_path) == ["--config=configs/sweep.py:a=1", "--x=1"]
    with pytest.raises(UserError, match="lies outside"):
        command.of_checkout(["--config=../mine.py"], tmp_path)


@pytest.mark.parametrize(("trials", "most", "expected"), [(9, 4, 4), (2, 4, 2), (0, 4, 1)])
def test_no_more_workers_than_trials(trials, most, expected):
    assert command.count_workers("slurm.max_workers", trials, most) == expected


def test_a_number_of_workers_that_is_not_positive_is_refused():
    with pytest.raises(UserError, match=r"config\.slurm\.max_workers=0"):
        command.count_workers("slurm.max_workers", 3, 0)
