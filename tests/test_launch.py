"""The files in launch/ are well formed, and do what they can be made to do without a cluster."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cmunet_jax import main
from cmunet_jax.train import loop
from tests.conftest import ROOT

LAUNCH = ROOT / "launch"
JOBSETS = sorted(LAUNCH.glob("kubernetes/jobset-*.yaml"))
MANIFESTS = [p for p in sorted(LAUNCH.glob("kubernetes/*.yaml")) if p not in JOBSETS]
SCRIPTS = [*sorted(LAUNCH.glob("*/*.sh")), *sorted(LAUNCH.glob("*/*.sbatch")), ROOT / ".ci" / "run"]
TPU = LAUNCH / "tpu_vm" / "queued_resource.sh"
SBATCH = LAUNCH / "slurm" / "train.sbatch"


def _documents(path: pathlib.Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_manifest_is_valid_kubernetes(path):
    for document in _documents(path):
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_an_invalid_manifest_is_noticed():
    (document,) = _documents(LAUNCH / "kubernetes" / "job-gpu.yaml")
    document["spec"]["backofLimit"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.31", strict=True)


def _check_jobset(jobset: dict) -> None:
    """JobSet is no part of Kubernetes: its own fields by its CRD, the Job in it as a Job."""
    schema = json.loads((ROOT / "tests" / "jobset_schema.json").read_text())["spec"]
    jsonschema.validate(jobset["spec"], schema)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    for replicated in jobset["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": replicated["name"]}}
        kubernetes_validate.validate(job | replicated["template"], "1.31", strict=True)


@pytest.mark.parametrize("path", JOBSETS, ids=lambda p: p.name)
def test_jobset_is_valid(path):
    (jobset,) = _documents(path)
    _check_jobset(jobset)
    for spoil in (
        lambda spec: spec.update(restarts=3),
        lambda spec: spec["failurePolicy"]["rules"][0].update(action="Restart"),
        lambda spec: spec["replicatedJobs"][0]["template"]["spec"].update(paralelism=2),
    ):
        (broken,) = _documents(path)
        spoil(broken["spec"])
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            _check_jobset(broken)


@pytest.mark.parametrize("path", JOBSETS, ids=lambda p: p.name)
def test_the_pods_of_a_jobset_are_one_run(path):
    (jobset,) = _documents(path)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["parallelism"] == job["completions"] > 1 and job["completionMode"] == "Indexed"
    rules = {r["action"]: r["onExitCodes"]["values"] for r in job["podFailurePolicy"]["rules"]}
    assert rules == {"FailJob": [main.EXIT_USER_ERROR], "Ignore": [loop.EXIT_PREEMPTED]}
    # A lost process is a failed Job, and so a restart of all.
    assert job["backoffLimit"] == 0 and jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    (container,) = job["template"]["spec"]["containers"]
    assert "--config.distributed=auto" in container["args"]
    env = {item["name"]: item["value"] for item in container["env"]}
    if "gpu" in path.name:
        name = jobset["metadata"]["name"]
        address = f"{name}-{replicated['name']}-0-0.{name}"
        ports = [port["containerPort"] for port in container["ports"]]
        assert env["JAX_COORDINATOR_ADDRESS"] == f"{address}:{ports[0]}"
        assert env["JAX_NUM_PROCESSES"] == str(job["parallelism"])


@pytest.mark.parametrize("name", ["job-gpu.yaml", "job-tpu.yaml"])
def test_jobs_act_on_the_exit_codes_of_main(name):
    (job,) = _documents(LAUNCH / "kubernetes" / name)
    rules = job["spec"]["podFailurePolicy"]["rules"]
    actions = {r["action"]: r["onExitCodes"]["values"] for r in rules if "onExitCodes" in r}
    assert actions == {"FailJob": [main.EXIT_USER_ERROR], "Ignore": [loop.EXIT_PREEMPTED]}
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a pod failure policy needs it
    mounts = {m["name"] for c in pod["containers"] for m in c["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    config = next(a for a in pod["containers"][0]["args"] if a.startswith("--config="))
    assert (ROOT / config.removeprefix("--config=")).is_file()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_script_parses(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_script_passes_shellcheck(path):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# srun without its own options runs what follows them.
STEP = 'while [[ $1 == -* ]]; do shift; done; exec "$@"'


def _fake(folder: pathlib.Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{folder}/calls"\n{body}\n')
    path.chmod(0o755)


def _run(folder: pathlib.Path, *command, cwd=ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | env
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def checkout(tmp_path) -> pathlib.Path:
    """A folder that the batch script takes for a checkout; its Python exits with $STATUS."""
    (tmp_path / "cmunet_jax").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    _fake(tmp_path / "bin", "scontrol", "")
    _fake(tmp_path / "bin", "srun", STEP)
    _fake(tmp_path / ".venv" / "bin", "python", 'exit "${STATUS}"')
    return tmp_path


@pytest.mark.parametrize("status, requeued", [(0, False), (2, False), (75, True)])
def test_batch_script_requeues_only_what_was_preempted(checkout, status, requeued):
    job = {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_ID": "7", "STATUS": str(status)}
    done = _run(checkout / "bin", SBATCH, "--config", "configs/x y.py", **job)
    assert done.returncode == status
    assert "-m cmunet_jax.main --config configs/x y.py" in (
        checkout / ".venv" / "bin" / "calls"
    ).read_text(encoding="utf-8")
    assert ("scontrol requeue 7" in (checkout / "bin" / "calls").read_text()) == requeued


def test_batch_script_leaves_a_cancelled_job_alone(checkout):
    # scancel signals the batch shell as well as the step.
    _fake(checkout / "bin", "srun", 'kill -TERM "${PPID}"; ' + STEP)
    job = {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_ID": "7", "STATUS": "75"}
    assert _run(checkout / "bin", SBATCH, **job).returncode == 75
    assert "requeue" not in (checkout / "bin" / "calls").read_text()


def test_batch_script_of_several_nodes_joins_them(checkout):
    (checkout / "launch" / "slurm").mkdir(parents=True)
    shutil.copy(SBATCH, checkout / "launch" / "slurm")
    script = LAUNCH / "slurm" / "train_nodes.sbatch"
    job = {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_ID": "7", "STATUS": "75"}
    assert _run(checkout / "bin", script, "--config", "configs/x.py", **job).returncode == 75
    said = (checkout / ".venv" / "bin" / "calls").read_text()
    assert "-m cmunet_jax.main --config configs/x.py --config.distributed=auto" in said
    assert "scontrol requeue 7" in (checkout / "bin" / "calls").read_text()


def test_batch_script_names_a_folder_that_is_no_checkout(tmp_path):
    done = _run(tmp_path, SBATCH, SLURM_SUBMIT_DIR=str(tmp_path), SLURM_JOB_ID="7")
    assert done.returncode == 1 and "is not a checkout" in done.stderr


def test_tpu_script_needs_a_name_and_a_zone(tmp_path):
    done = _run(tmp_path, TPU, "create", NAME="", ZONE="z")
    assert done.returncode == 2 and "set NAME" in done.stderr
    assert _run(tmp_path, TPU, "dance", NAME="n", ZONE="z").returncode == 2


def test_tpu_script_asks_for_what_was_said(tmp_path):
    _fake(tmp_path / "bin", "gcloud", "")
    done = _run(tmp_path / "bin", TPU, "create", NAME="n", ZONE="z", TYPE="v6e-1", SPOT="1")
    assert done.returncode == 0, done.stderr
    call = (tmp_path / "bin" / "calls").read_text()
    assert "queued-resources create n --node-id n --accelerator-type v6e-1" in call
    assert "--spot" in call and "--zone z" in call


@pytest.mark.parametrize("share", ["", "10.0.0.2:/share"])
def test_tpu_script_runs_on_every_host_of_a_slice(tmp_path, share):
    _fake(tmp_path / "bin", "gcloud", "")
    flags = ("--config", "configs/x.py", "--workdir", "shared/x")
    done = _run(tmp_path / "bin", TPU, "run", *flags, NAME="n", ZONE="z", SHARE=share)
    assert done.returncode == 0, done.stderr
    call = (tmp_path / "bin" / "calls").read_text()
    assert "tpu-vm ssh n --worker all" in call and "--workdir shared/x" in call
    assert ("--config.distributed=auto" in call) == bool(share)
    done = _run(tmp_path / "bin", TPU, "install", NAME="n", ZONE="z", SHARE=share)
    assert done.returncode == 0, done.stderr
    call = (tmp_path / "bin" / "calls").read_text()
    assert ("mount -t nfs 10.0.0.2:/share shared" in call) == bool(share)


@pytest.mark.parametrize("state, status", [("ACTIVE", 0), ("FAILED", 1), ("SUSPENDED", 1)])
def test_tpu_script_waits_until_the_request_is_decided(tmp_path, state, status):
    first = f"[[ -e {tmp_path}/asked ]] && echo {state} || echo WAITING_FOR_RESOURCES"
    _fake(tmp_path / "bin", "gcloud", f"{first}\ntouch {tmp_path}/asked")
    done = _run(tmp_path / "bin", TPU, "wait", NAME="n", ZONE="z", POLL_SECONDS="0")
    assert done.returncode == status
    assert done.stdout.splitlines() == ["n: WAITING_FOR_RESOURCES", f"n: {state}"]
