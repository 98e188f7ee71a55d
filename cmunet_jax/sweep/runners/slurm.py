"""Slurm: a job array whose elements are workers of the sweep.

`config.runner=slurm` writes slurm/workers.sbatch into the sweep's folder, which the login node and
the compute nodes share, and hands it to sbatch. An element claims trials until none is left. Before
its time is up it gets SIGTERM, saves, and puts itself back into the queue; the same happens when a
node fails. So an element may be run many times and a trial is still done once.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from cmunet_jax.sweep.plan import Trial
from cmunet_jax.sweep.runners import command
from cmunet_jax.sweep.store import open_store
from tfds_angio.errors import UserError

FOLDER = "slurm"
# What one option of sbatch may look like: one word, which needs no quotes in a batch script.
_WORD = r"[\w.,:=/+@%\[\]*&|()-]*"

# Only the step gets the signal of a time limit that comes near; scancel signals this shell as well.
_BODY = """\
set -uo pipefail

readonly PREEMPTED=75 # the state is saved: run the same command again
cd {checkout} || exit 1
{setup}
cancelled=false
trap 'cancelled=true' TERM

# Since Slurm 22.05 a step no longer takes the number of cores from its job.
export SRUN_CPUS_PER_TASK="${{SLURM_CPUS_PER_TASK:-1}}"
echo "worker ${{SLURM_ARRAY_TASK_ID:-0}} of job ${{SLURM_ARRAY_JOB_ID:-${{SLURM_JOB_ID}}}}" \\
  "on $(hostname), restart ${{SLURM_RESTART_COUNT:-0}}"
# shellcheck disable=SC2016 # quoted so that nothing in it is expanded
srun --kill-on-bad-exit=1 {worker}
status=$?
if [[ ${{status}} == "${{PREEMPTED}}" && ${{cancelled}} == false ]]; then
  echo "time is nearly up and the state is saved: back into the queue"
  scontrol requeue "${{SLURM_JOB_ID}}"
fi
exit "${{status}}"
"""


def default_options() -> dict[str, Any]:
    """Returns the default of `config.slurm`."""
    return {
        "max_workers": 4,  # elements of the job array, each with devices of its own
        "partition": "",  # empty: the cluster's default, here and below
        "account": "",
        "qos": "",
        "gres": "gpu:1",  # of one worker; empty: none, the CPU
        "cpus": 8,
        "memory": "32G",
        "time": "24:00:00",  # of one worker before it saves and queues again
        "grace_seconds": 180,  # between SIGTERM and the time limit; to save a checkpoint
        "options": "",  # more options of sbatch: '--constraint=a100 --exclude=node7'
        "setup": "",  # shell commands before the worker: 'module load cuda'
        "python": "",  # empty: the Python that runs this
        "submit": True,  # False: only write the script
    }


def run(plan: Sequence[Trial], config: ml_collections.ConfigDict, workdir: Path | str) -> int:
    """Writes the batch script into the sweep's folder and submits it; see the module."""
    options = config.slurm.to_dict()
    left = command.trials_left(plan, config, open_store(workdir))
    if not left:
        return 0
    folder = command.launch_folder(workdir, FOLDER)
    path = folder / "workers.sbatch"
    workers = command.count_workers("slurm.max_workers", left, options["max_workers"])
    text = script(
        options,
        workers=workers,
        arguments=command.worker_arguments(sys.argv[1:], workdir=str(workdir)),
        checkout=Path.cwd(),
    )
    command.write_text(path, text, executable=True)
    print(f"{left} trials are left for {workers} workers: {path}")
    if not options["submit"]:
        print(f"Submit it with: {shlex.join(_sbatch(path))}")
        return 0
    job = submit(path)
    print(f"Submitted job {job}. Watch it: squeue --job={job}; stop it: scancel {job}")
    print(f"What the workers say: {folder}/worker_{job}_*.log")
    return 0


def script(
    options: Mapping[str, Any],
    *,
    workers: int,
    arguments: Sequence[str],
    checkout: Path,
) -> str:
    """Returns the batch script of a job array.

    Args:
      options: as in `default_options`.
      workers: elements of the array.
      arguments: of `python -m cmunet_jax.main` for a worker.
      checkout: the folder in which a worker is started.

    Raises:
      UserError: on an option that would not stay one word.
    """
    lines = [
        "#!/usr/bin/env bash",
        "# Written by config.runner=slurm; the next run of it writes it anew.",
        *(f"#SBATCH {line}" for line in _directives(options, workers)),
    ]
    worker = [options["python"] or sys.executable, "-m", "cmunet_jax.main", *arguments]
    body = _BODY.format(
        checkout=shlex.quote(str(checkout)),
        setup=options["setup"].strip(),
        worker=shlex.join(worker),
    )
    return "\n".join(lines) + "\n" + body


def _directives(options: Mapping[str, Any], workers: int) -> list[str]:
    wanted = {
        "job-name": "cmunet-sweep",
        "array": f"0-{workers - 1}",
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": str(options["cpus"]),
        "mem": options["memory"],
        "time": options["time"],
        "gres": options["gres"],
        "partition": options["partition"],
        "account": options["account"],
        "qos": options["qos"],
        "signal": f"TERM@{options['grace_seconds']}",
        "open-mode": "append",
        "output": "worker_%A_%a.log",
    }
    for key in ("memory", "time", "gres", "partition", "account", "qos"):
        command.check_name(f"slurm.{key}", options[key], _WORD, "one word, without spaces")
    try:
        more = shlex.split(options["options"])
    except ValueError as error:
        raise UserError(f"config.slurm.options: {error}.") from None
    for text in more:
        command.check_name("slurm.options", text, rf"--?[a-z]{_WORD}", "'--name=value --other'")
    return ["--requeue", *(f"--{k}={v}" for k, v in wanted.items() if v), *more]


def submit(path: Path) -> str:
    """Hands the script to sbatch, to run in its folder; returns the number of the job.

    Raises:
      UserError: if there is no sbatch here, or with what it says.
    """
    words = _sbatch(path)
    if not shutil.which("sbatch"):
        raise UserError(
            f"there is no sbatch here. {path} is written: run {shlex.join(words)} on a login node "
            "of the cluster."
        )
    # Slurm would give the variables of a job, if this is one, to the new job.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    kept = {k: v for k, v in os.environ.items() if k in ("SLURM_CONF", "SLURM_CLUSTERS")}
    done = subprocess.run(words, env=inherited | kept, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.replace("sbatch: error:", "").split())
        raise UserError(f"sbatch refused {path}: {reason}")
    return done.stdout.strip().partition(";")[0]


def _sbatch(path: Path) -> list[str]:
    return ["sbatch", "--parsable", f"--chdir={path.parent}", str(path)]
