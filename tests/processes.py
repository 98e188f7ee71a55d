"""Real processes that form one run on this machine, over jax.distributed."""

from __future__ import annotations

import contextlib
import dataclasses
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


def run_together(flags: list[str], *, count: int = 2, devices: int = 2) -> list[Ended]:
    """Runs one command as `count` processes with `devices` each."""
    address = free_address()
    commands = [main_command(*flags, *explicit(address, count, i)) for i in range(count)]
    with started(commands, devices=devices) as running:
        return finish(running)
