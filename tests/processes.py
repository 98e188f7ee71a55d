"""Real processes that form one run on this machine, over jax.distributed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import socket
import subprocess
from collections.abc import Iterator

from tests.conftest import start_python


def free_address() -> str:
    """127.0.0.1:PORT with a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


@dataclasses.dataclass
class Ended:
    """What a process left: its exit status and what it printed."""

    status: int
    out: str
    err: str


def explicit(address: str, count: int, index: int, *, seconds: int = 50) -> list[str]:
    """The flags that make a command one of several processes."""
    return [
        "--config.distributed=explicit",
        f"--config.hosts.coordinator={address}",
        f"--config.hosts.processes={count}",
        f"--config.hosts.process={index}",
        f"--config.hosts.wait_seconds={seconds}",
    ]


@contextlib.contextmanager
def started(commands: list[list[str]], *, devices: int = 2, **env: str) -> Iterator[list]:
    """Starts all commands (arguments of Python); whatever still runs at the end is killed."""
    running = [start_python(*command, devices=devices, **env) for command in commands]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def finish(running: list[subprocess.Popen[str]], *, timeout: float = 300) -> list[Ended]:
    """Waits for all; a process that does not end in time fails the test."""
    ended = []
    for process in running:
        out, err = process.communicate(timeout=timeout)
        ended.append(Ended(process.returncode, out, err))
    return ended


def main_command(*flags: str) -> list[str]:
    """Arguments of Python that run a stage."""
    return ["-m", "cmunet_jax.main", *flags]


def commands_of(flags: list[str], *, count: int = 2) -> list[list[str]]:
    """The arguments of Python of one command as `count` processes, at an address of their own."""
    address = free_address()
    return [main_command(*flags, *explicit(address, count, i)) for i in range(count)]


def run_together(flags: list[str], *, count: int = 2, devices: int = 2) -> list[Ended]:
    """Runs one command as `count` processes with `devices` each."""
    with started(commands_of(flags, count=count), devices=devices) as running:
        return finish(running)


def finetune(dataset, workdir, *more):
    """The flags of a small supervised run that evaluates, draws and saves on its way."""
    return [
        "--config=configs/finetune.py:size=tiny,init=scratch",
        f"--workdir={workdir}",
        f"--config.data.dir={dataset.directory.parents[2]}",
        "--config.data.workers=1",
        "--config.labels=8",
        "--config.eval_images=5",
        "--config.log_every=2 steps",
        "--config.checkpoint.every=3 steps",
        *more,
    ]


def losses(workdir: pathlib.Path) -> dict[int, float]:
    """Step -> mean loss since the line before."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
