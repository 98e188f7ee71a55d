"""The command line: bad input gets one line, a non-zero exit and nothing half-written."""

import os
import pathlib
import subprocess
import sys

import pytest

from cmunet_jax import main
from cmunet_jax.stages import STAGES
from tfds_angio.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
PRETRAIN = ["--config", str(ROOT / "configs" / "pretrain.py:size=tiny")]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["--config is missing", "quickstart"]),
        (["--config"], ["--config"]),
        (["--config", "configs/pretrian.py"], ["pretrian.py", "did you mean 'pretrain.py'"]),
        (["--config", "configs/common.py"], ["configs/common.py", "get_config"]),
        (["--config", "README.md"], ["README.md", "not a config"]),
        (["--config", "configs/pretrain.py:sise=tiny"], ["'sise'", "did you mean 'size'"]),
        ([*PRETRAIN, "--config.optim.learning_rat=1"], ["optim.learning_rat", "learning_rate"]),
        ([*PRETRAIN, "--config.nothing.like.it=1"], ["config.nothing.like.it"]),
    ],
)
def test_mistakes_are_named_before_anything_is_parsed(argv, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error:
        path, arg = main._split_path(argv)
        main._check_overrides(argv, path, arg)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("spelling", ["--dry-run", "--dry_run"])
@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        (PRETRAIN, 2, "config.dry_run is not a key of"),
        (["--config", str(ROOT / "configs/sweep.py:size=tiny"), "--config.labels=()"], 2, "labels"),
    ],
)
def test_dry_run_is_short_for_the_key_of_a_sweep(spelling, command, status, words, tmp_path):
    argv = [sys.executable, "-m", "cmunet_jax.main", *command, spelling]
    ended = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == status and words in ended.stderr


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--config.seed=abc"], ["config.seed", "abc"]),
        (["--config.model=3"], ["config.model"]),
        (["--workdri=x"], ["workdri", "workdir"]),
        (["surplus"], ["'surplus'"]),
        (["--config.preprocessing.size=100"], ["size=100", "96 or 112"]),
        (["--config.data.split=nothing"], ["nothing"]),
        (["--config.batch_size=4000"], ["batch_size=4000", "Use at most"]),
        (["--config.data.name=arcade"], ["arcade", "tfds_angio.build"]),
        (["--config.data.source=/does/not/exist"], ["/does/not/exist"]),
        (["--config.train_for=often"], ["train_for", "epochs"]),
        (["--config.model.dtype=float8"], ["model.dtype", "bfloat16"]),
        (["--config.model.remat=all"], ["model.remat", "blocks"]),
        (["--config.objective.adapter=none"], ["adapter", "fresh"]),
        (["--config.views.patch_ratio=2.0"], ["views.patch_ratio"]),
        (["--config.checkpoint.keep=0"], ["checkpoint.keep=0", "at least 1"]),
        (["--config.stage=finetune"], ["config.labels is missing", "configs/finetune.py"]),
    ],
)
def test_one_line_and_a_status(argv, words, tiny_dataset, tmp_path):
    workdir = tmp_path / "run"
    done = subprocess.run(
        [
            sys.executable, "-m", "cmunet_jax.main", *PRETRAIN, f"--workdir={workdir}",
            f"--config.data.dir={tiny_dataset.directory.parents[2]}", *argv,
        ],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ, check=False,
    )  # fmt: skip
    assert done.returncode == main.EXIT_USER_ERROR, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr
    assert all(word in lines[0] for word in words), lines[0]
    assert not workdir.exists()


def test_a_workdir_is_absolute_and_a_url_stays(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for stage in STAGES:
        assert main._workdir("../runs/t", stage) == tmp_path / "runs" / "t"
    assert main._workdir("gs://bucket/sweep", "sweep") == "gs://bucket/sweep"


def test_a_second_config_is_not_mixed_into_a_workdir(tiny_dataset, tmp_path):
    from cmunet_jax.stages import record
    from tests.stage_helpers import tiny

    config = tiny("pretrain", tiny_dataset, 2)
    record.write(tmp_path, config, {})
    record.check_workdir(tmp_path, config)
    config.log_every = "5 steps"
    record.check_workdir(tmp_path, config)  # changes no result
    config.optim.learning_rate = 0.5
    with pytest.raises(UserError, match=r"optim.learning_rate: 0.001 -> 0.5.*--workdir"):
        record.check_workdir(tmp_path, config)


def test_a_read_only_workdir_is_named(tiny_dataset, tmp_path):
    from cmunet_jax.stages import record
    from tests.stage_helpers import tiny

    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(UserError, match="is a file"):
        record.check_workdir(taken, tiny("pretrain", tiny_dataset, 2))
