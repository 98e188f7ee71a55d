"""A real Slurm cluster of this one machine, for as long as a test needs it.

Nothing is installed and nothing of the system's own Slurm is touched: the three daemons run in the
foreground with their files in one folder, their own ports and their own munge socket.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo")
# cred_expire: how long Slurm waits before a requeued job may start again, 120 s if not set.
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=0
MinJobAge=600
KillWait=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=60 State=UP
"""


def _program(name: str) -> str:
    """Its path; the daemons are in sbin, which is not on everybody's PATH."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if not path:
        pytest.skip(f"{name} is not installed (Debian: apt-get install slurm-wlm munge)")
    return path


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(15)


@contextlib.contextmanager
def cluster(folder: pathlib.Path) -> Iterator[dict[str, str]]:
    """Yields the environment in which Slurm's commands speak to a cluster of 4 pretended cores.

    Skips, with the reason, where a program is missing or the node does not come up.
    """
    paths = {name: _program(name) for name in PROGRAMS}
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    controller_port, node_port = _free_ports(2)
    megabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    conf = folder / "slurm.conf"
    conf.write_text(
        _CONF.format(
            host=host,
            user=getpass.getuser(),
            folder=folder,
            controller_port=controller_port,
            node_port=node_port,
            memory=megabytes // 2,
        )
    )
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    munge = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
    environment |= {"SLURM_CONF": str(conf)}
    commands = {
        # --force: the folders of pytest are closed to others, which munge finds unusual.
        "munged": ["-F", "--force", f"--key-file={key}"]
        + [f"--{option}={folder}/munge.{end}" for option, end in munge.items()],
        "slurmctld": ["-D", "-f", str(conf)],
        "slurmd": ["-D", "-f", str(conf), "-N", host],
    }
    with contextlib.ExitStack() as stack:
        for name, arguments in commands.items():
            output = stack.enter_context(open(folder / f"{name}.out", "wb"))
            process = subprocess.Popen(
                [paths[name], *arguments], env=environment, stdout=output, stderr=output
            )
            stack.callback(_stop, process)
        _wait_until_idle(folder, environment, paths)
        yield environment
        # Steps are processes of their own: the daemons' end would leave them running.
        subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, check=False)
        wait_until_empty(environment, seconds=60)


def _wait_until_idle(
    folder: pathlib.Path, environment: dict[str, str], paths: dict[str, str]
) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        done = subprocess.run(
            [paths["sinfo"], "--noheader", "--format=%t"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    logs = [folder / f"{name}.out" for name in ("munged", "slurmctld", "slurmd")]
    last = [line for log in logs for line in log.read_text().splitlines()[-2:]]
    pytest.skip(f"Slurm did not start here: {' | '.join(last)} {done.stderr.strip()}")


def queue(environment: dict[str, str]) -> list[str]:
    """One line (element, state, reason) for each job that is not done."""
    done = subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%i %T %r"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def wait_until_empty(environment: dict[str, str], *, seconds: float) -> None:
    """Waits until no job is queued or running; fails after `seconds`."""
    until = time.monotonic() + seconds
    while left := queue(environment):
        if time.monotonic() > until:
            pytest.fail(f"still in the queue after {seconds} s: {'; '.join(left)}")
        time.sleep(0.5)
