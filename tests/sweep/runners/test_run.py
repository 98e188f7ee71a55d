"""What starting workers elsewhere does here: files in the right place, and the next command."""

from __future__ import annotations

import json
import shlex
import sys

import ml_collections
import pytest
import yaml

from cmunet_jax.sweep import runners
from cmunet_jax.sweep.runners import kubernetes, slurm, tpu_vm
from cmunet_jax.sweep.store import open_store
from tests.sweep import stand_in
from tfds_angio.errors import UserError

PLAN = [stand_in.trial("a"), stand_in.trial("b"), stand_in.trial("c")]


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Returns a function that runs a runner as the command line would, in an empty checkout."""
    monkeypatch.chdir(tmp_path)

    def run(runner, place, /, *argv, retry_failed=False, **options):
        modules = {"slurm": slurm, "kubernetes": kubernetes, "tpu_vm": tpu_vm}
        defaults = modules[runner].default_options()
        config = ml_collections.ConfigDict({runner: defaults | options})
        config.data = ml_collections.ConfigDict({"dir": "data", "name": stand_in.DATA["name"]})
        config.fingerprint = stand_in.DATA["fingerprint"]
        config.retry_failed = retry_failed
        command = ["--config=configs/sweep.py", f"--workdir={place}", *argv]
        command += [f"--config.runner={runner}", "--config.retry_failed=True"]
        monkeypatch.setattr(sys, "argv", ["main.py", *command])
        return runners.RUNNERS[runner](PLAN, config, place)

    return run


def _finish(workdir, key, status="done"):
    result = {"version": 1, "key": key, "status": status, "data": stand_in.DATA}
    open_store(workdir).write(f"trials/{key}/result.json", json.dumps(result).encode())


def test_slurm_writes_into_the_sweep_and_tells_the_command(started, tmp_path, capsys):
    workdir = tmp_path / "my sweep"
    _finish(workdir, "a")
    assert started("slurm", workdir, "--config.seeds=(0,)", submit=False) == 0
    path = workdir / "slurm" / "workers.sbatch"
    text, said = path.read_text(), capsys.readouterr().out
    assert "2 trials are left for 2 workers" in said and shlex.quote(str(path)) in said
    assert "--array=0-1" in text and f"cd {tmp_path}" in text
    command = shlex.split(text[text.index("srun ") :].splitlines()[0])[2:]
    assert command == [
        *(sys.executable, "-m", "cmunet_jax.main", "--config=configs/sweep.py"),
        *("--config.seeds=(0,)", f"--workdir={workdir}", "--config.runner=worker"),
    ]


def test_kubernetes_writes_a_manifest_for_the_place_of_the_pods(started, tmp_path, capsys):
    places = {"claim": "disk", "workdir": "/storage/s", "data_dir": "/storage/data"}
    data = "--config.data.dir=/mine"
    assert started("kubernetes", tmp_path / "s", data, image="r/i:1", **places) == 0
    path = tmp_path / "s" / "kubernetes" / "job.yaml"
    assert f"kubectl apply -f {path}" in capsys.readouterr().out
    job = yaml.safe_load(path.read_text())
    assert job["spec"]["completions"] == len(PLAN)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == [
        *("--config=configs/sweep.py", "--config.data.dir=/storage/data"),
        *("--workdir=/storage/s", "--config.runner=worker"),
    ]


def test_for_a_bucket_scripts_are_written_here(started, monkeypatch, tmp_path, capsys):
    # A bucket that is a folder of this process's memory: its URL is what matters.
    monkeypatch.setattr(tpu_vm, "open_store", lambda place: open_store("memory://tpu/sweep"))
    monkeypatch.setattr(
        tpu_vm.command, "open_store", lambda place: open_store("memory://tpu/sweep")
    )
    assert started("tpu_vm", "gs://b/sweep", zone="z-1", max_workers=2) == 0
    folder = tmp_path / "runs" / "sweep" / "tpu_vm"
    said = capsys.readouterr().out
    assert [line.split()[-1] for line in said.splitlines()[1:]] == [
        *("upload", "create", "status", "delete")
    ]
    control = (folder / "queued_resources.sh").read_text()
    assert "NAMES=(cmunet-sweep-0 cmunet-sweep-1)" in control
    assert f"DATA={tmp_path}/data" in control
    startup = (folder / "startup.sh").read_text()
    assert "--config.data.dir=data --workdir=gs://b/sweep --config.runner=worker" in startup
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o111


def test_nothing_is_started_where_all_has_ended(started, tmp_path, capsys):
    for key, status in (("a", "done"), ("b", "done"), ("c", "failed")):
        _finish(tmp_path / "s", key, status)
    assert started("slurm", tmp_path / "s") == 0
    said = capsys.readouterr().out
    assert "nothing to start" in said and "1 failed" in said
    assert not (tmp_path / "s" / "slurm").exists()


def test_failed_trials_are_given_their_chance_once_and_not_by_each_worker(started, tmp_path):
    for key, status in (("a", "done"), ("b", "done"), ("c", "failed")):
        _finish(tmp_path / "s", key, status)
    started("slurm", tmp_path / "s", retry_failed=True, submit=False)
    text = (tmp_path / "s" / "slurm" / "workers.sbatch").read_text()
    assert "--array=0-0" in text and "retry_failed" not in text
    assert not (tmp_path / "s" / "trials" / "c" / "result.json").exists()


def test_results_that_only_pods_see_cannot_be_retried_from_here(started, tmp_path):
    options = {"image": "i", "claim": "c", "workdir": "/storage/s"}
    with pytest.raises(UserError, match="only seen by pods"):
        started("kubernetes", tmp_path, retry_failed=True, **options)


def test_a_mistake_writes_nothing(started, tmp_path):
    with pytest.raises(UserError, match="image is empty"):
        started("kubernetes", tmp_path / "s", claim="c", workdir="/storage/s")
    assert not (tmp_path / "s").exists()
