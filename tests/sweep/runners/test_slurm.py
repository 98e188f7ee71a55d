"""The Slurm runner: its script, and what a real Slurm makes of it."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import time

import pytest

from cmunet_jax.sweep.runners import slurm
from tests.sweep.runners import slurm_cluster
from tfds_angio.errors import UserError

ARGUMENTS = ["--config=configs/sweep.py:size=tiny", "--workdir=/s/w", "--config.runner=worker"]


def _options(**changes):
    return slurm.default_options() | changes


def _script(folder: pathlib.Path, *, workers: int = 2, arguments=ARGUMENTS, **changes) -> str:
    return slurm.script(_options(**changes), workers=workers, arguments=arguments, checkout=folder)


def _directives(text: str) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)


def _executable(path: pathlib.Path, body: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return path


def test_the_script_asks_for_what_the_config_says(tmp_path):
    text = _script(
        tmp_path, workers=7, partition="gpu", account="heart", options="--constraint=a|b -x"
    )
    directives = _directives(text)
    assert {"--array=0-6", "--partition=gpu", "--account=heart", "--gres=gpu:1"} <= {*directives}
    assert {"--constraint=a|b", "-x", "--requeue", "--signal=TERM@180"} <= {*directives}
    assert not [line for line in directives if line.startswith("--qos")]
    assert "--gres" not in _script(tmp_path, gres="")


def test_every_directive_comes_before_the_first_command(tmp_path):
    """Slurm stops to read them there."""
    lines = _script(tmp_path).splitlines()
    last = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[: last + 1])


@pytest.mark.parametrize(
    "changes",
    [
        {"partition": "gpu --uid=0"},
        {"account": "a\n#SBATCH --uid=0"},
        {"options": "--comment='two words'"},
        {"options": "rm"},
        {"options": "'"},
    ],
)
def test_an_option_that_is_not_one_word_is_refused(tmp_path, changes):
    with pytest.raises(UserError, match=rf"config\.slurm\.{next(iter(changes))}"):
        _script(tmp_path, **changes)


def _run_script(tmp_path, status, *, signalled=False, arguments=ARGUMENTS, folder="check out"):
    """Runs the batch script with stand-ins for srun, scontrol and Python."""
    checkout = tmp_path / folder
    checkout.mkdir()
    python = _executable(
        tmp_path / "py thon", f'printf "%s\\n" "$PWD" "$@" > "{tmp_path}/seen"; exit {status}'
    )
    kill = 'kill -TERM "${PPID}"; ' if signalled else ""
    _executable(tmp_path / "bin" / "srun", f'{kill}shift; exec "$@"')
    _executable(tmp_path / "bin" / "scontrol", f'echo "$@" >> "{tmp_path}/scontrol"')
    text = _script(checkout, arguments=arguments, python=str(python), setup="export MODULE=cuda")
    path = _executable(tmp_path / "job", text)
    path.write_text(text)
    done = subprocess.run(
        [path],
        env=os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    calls = tmp_path / "scontrol"
    return done, (tmp_path / "seen").read_text().splitlines(), calls.exists() and calls.read_text()


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (2, False), (75, "requeue 7\n")])
def test_only_what_was_preempted_goes_back_into_the_queue(tmp_path, status, requeued):
    done, _, calls = _run_script(tmp_path, status)
    assert (done.returncode, calls) == (status, requeued), done.stderr


def test_a_cancelled_worker_stays_cancelled(tmp_path):
    done, _, calls = _run_script(tmp_path, 75, signalled=True)
    assert (done.returncode, calls) == (75, False)


def test_hostile_names_reach_the_worker_as_they_are(tmp_path):
    """Nothing in a path or a value is taken for shell."""
    nasty = "a b'c\"$(touch pwned)`touch pwned`;&|*\\ {x}"
    arguments = [f"--workdir=/tmp/{nasty}", "--config.title=" + nasty]
    _, seen, _ = _run_script(tmp_path, 0, arguments=arguments, folder=nasty.replace("/", "_"))
    assert seen == [str(tmp_path / nasty), "-m", "cmunet_jax.main", *arguments]
    assert not list(tmp_path.rglob("pwned"))


def test_the_script_passes_shellcheck(tmp_path):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    path = tmp_path / "job.sh"
    path.write_text(_script(tmp_path / "it's here", arguments=["--config.title=$x"]))
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_without_sbatch_the_command_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=f"no sbatch here.*{shlex.quote(str(tmp_path / 'job'))}"):
        slurm.submit(tmp_path / "job")


def test_what_sbatch_says_is_passed_on(tmp_path, monkeypatch):
    _executable(tmp_path / "sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match="refused .*: invalid partition"):
        slurm.submit(tmp_path / "job")


@pytest.fixture(scope="module")
def real_slurm(tmp_path_factory):
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


# Takes a free trial by the exclusive creation of a file; half of its work fits into one time limit.
_STAND_IN = """
cd "{folder}" || exit 1
stop=false
trap 'stop=true' TERM
for trial in a b c d e; do
  while true; do
    (set -o noclobber; echo "$$" > "$trial.claim") 2>/dev/null || break
    for ((step = $(cat "$trial.step" 2>/dev/null || echo 0); step < {steps}; step++)); do
      echo "$step" > "$trial.step"
      sleep 0.5
      if "$stop"; then rm "$trial.claim"; echo "$trial" >> stopped; exit 75; fi
    done
    echo "$trial" >> finished
    break
  done
done
"""


def _submit(environment, monkeypatch, folder, steps, **changes):
    for name in [n for n in os.environ if n.startswith(("SLURM", "SBATCH"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", environment["SLURM_CONF"])
    (folder / slurm.FOLDER).mkdir()
    python = _executable(folder / "worker.sh", _STAND_IN.format(folder=folder, steps=steps))
    path = folder / slurm.FOLDER / "workers.sbatch"
    small = {"gres": "", "cpus": 1, "memory": "100M", "python": str(python)}
    path.write_text(_script(folder, **small | changes))
    return slurm.submit(path)


@pytest.mark.slow
def test_a_job_array_shares_the_trials(real_slurm, monkeypatch, tmp_path):
    job = _submit(real_slurm, monkeypatch, tmp_path, steps=3, time="10")
    slurm_cluster.wait_until_empty(real_slurm, seconds=60)
    assert sorted((tmp_path / "finished").read_text().split()) == [*"abcde"]
    logs = sorted(p.name for p in (tmp_path / "slurm").glob("*.log"))
    assert logs == [f"worker_{job}_0.log", f"worker_{job}_1.log"]
    states = subprocess.run(
        ["scontrol", "show", "job", job], env=real_slurm, capture_output=True, text=True, check=True
    )
    assert re.findall(r"JobState=(\S+)", states.stdout) == ["COMPLETED", "COMPLETED"]


@pytest.mark.slow
def test_near_the_time_limit_a_worker_stops_and_comes_back(real_slurm, monkeypatch, tmp_path):
    """Each trial takes longer than what is left of a minute after the signal's 50 seconds."""
    _submit(real_slurm, monkeypatch, tmp_path, steps=24, workers=1, time="1", grace_seconds=50)
    slurm_cluster.wait_until_empty(real_slurm, seconds=400)
    assert sorted((tmp_path / "finished").read_text().split()) == [*"abcde"]
    assert (tmp_path / "stopped").exists()
    log = next((tmp_path / "slurm").glob("*.log")).read_text()
    assert "restart 0" in log and "restart 1" in log and "back into the queue" in log


@pytest.mark.slow
def test_scancel_ends_a_worker(real_slurm, monkeypatch, tmp_path):
    job = _submit(real_slurm, monkeypatch, tmp_path, steps=100, time="10")
    until = time.monotonic() + 30
    while len(list(tmp_path.glob("*.claim"))) < 2 and time.monotonic() < until:
        time.sleep(0.2)
    subprocess.run(["scancel", job], env=real_slurm, check=True)
    slurm_cluster.wait_until_empty(real_slurm, seconds=60)
    assert not (tmp_path / "finished").exists()


def _sweep(tiny_dataset, workdir, *more):
    """The command of the smallest study: one pre-training, and what it is compared with."""
    return [
        *("-m", "cmunet_jax.main", "--config=configs/sweep.py:size=tiny", f"--workdir={workdir}"),
        f"--config.data.dir={tiny_dataset.directory.parents[2]}",
        *("--config.methods=scratch,mae", "--config.labels=8", "--config.draws=(0,)"),
        *("--config.learning_rates=(1e-3,)", "--config.lease_seconds=20", *more),
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_is_done_to_its_end(real_slurm, run_python, tiny_dataset, tmp_path):
    """Two workers; one is told that its time is up and goes on after it was queued again."""
    small = ["gres=", "cpus=1", "memory=4G", "time=10", "max_workers=2"]
    options = ["--config.runner=slurm", *(f"--config.slurm.{o}" for o in small)]
    command = _sweep(tiny_dataset, tmp_path, *options)
    said = run_python(*command, SLURM_CONF=real_slurm["SLURM_CONF"]).stdout
    job = re.search(r"Submitted job (\d+)", said)[1]
    until = time.monotonic() + 120
    while not list(tmp_path.glob("trials/*/run/config.json")) and time.monotonic() < until:
        time.sleep(0.5)
    # Without --full this reaches the step and not the batch shell, as a near time limit does.
    subprocess.run(["scancel", "--signal=TERM", job], env=real_slurm, check=True)
    slurm_cluster.wait_until_empty(real_slurm, seconds=500)
    logs = "".join(p.read_text() for p in (tmp_path / "slurm").glob("*.log"))
    assert "back into the queue" in logs and "restart 1" in logs
    keys = [t["key"] for t in json.loads((tmp_path / "plan.json").read_text())["trials"]]
    assert len(keys) == 3
    for key in keys:
        result = json.loads((tmp_path / "trials" / key / "result.json").read_text())
        assert (result["status"], result["error"]) == ("done", None), logs
    assert logs.count(": done in") == 3, logs  # each by one worker, once
    again = run_python(*command, SLURM_CONF=real_slurm["SLURM_CONF"]).stdout
    assert "nothing to start" in again and "Submitted" not in again
