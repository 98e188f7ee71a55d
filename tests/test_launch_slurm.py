"""Two tasks of a real Slurm are one run: they meet by its environment, save, requeue, resume."""

from __future__ import annotations

import os
import re
import subprocess
import time

import pytest

from cmunet_jax.train import checkpoint
from tests.conftest import ROOT
from tests.processes import finetune, losses
from tests.sweep.runners import slurm_cluster

SCRIPT = "launch/slurm/train_nodes.sbatch"
# One node, which has no GPU, stands for two.
OPTIONS = ("--nodes=1", "--ntasks=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--mem=4G")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_tasks_are_one_run(tiny_dataset, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "job.log"
    with slurm_cluster.cluster(tmp_path) as slurm:
        environment = os.environ | slurm
        flags = finetune(tiny_dataset, workdir, "--config.train_for=40 steps")
        job = subprocess.run(
            ["sbatch", "--parsable", *OPTIONS, "--gpus-per-node=0", "--time=20"]
            + [f"--output={log}", SCRIPT, *flags],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert job.returncode == 0, job.stderr
        until = time.monotonic() + 500
        while not ((workdir / "metrics.jsonl").exists() and losses(workdir)):
            assert time.monotonic() < until and slurm_cluster.queue(slurm), log.read_text()
            time.sleep(0.2)
        # Without --full this reaches the tasks and not the batch shell, as a near time limit does.
        subprocess.run(
            ["scancel", "--signal=TERM", job.stdout.strip()], env=environment, check=True
        )
        slurm_cluster.wait_until_empty(slurm, seconds=600)
    text = log.read_text()
    assert "restart 0" in text and "restart 1" in text and "requeued" in text, text
    assert text.count("on 2 x cpu") == 2, text  # the first task alone says so, in each start
    assert re.search(r"Stopped by SIGTERM at step (\d+): saved", text), text
    assert checkpoint.load(workdir).step == 40
    assert list(losses(workdir)) == list(range(2, 41, 2))
