"""Fifty kills, spread over what may be at work when the power goes; the same ones every time."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from tests.conftest import ROOT

KILLS = {"training": 6, "build": 12, "checkpoint": 18, "sweep": 14}


def generator(kind: str) -> random.Random:
    """The generator of one kind of kills."""
    return random.Random(f"kills of a {kind}")


def start(arguments: Sequence[str], *, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """Starts Python in the repository's root, quietly."""
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=stdout, stderr=subprocess.DEVNULL)


def kill(process: subprocess.Popen[str], *, after: float) -> bool:
    """Kills a process of ours after some seconds; False if it had ended by itself."""
    try:
        process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str], seconds: float) -> None:
    """Waits for something that the process does, until it ends or the time is over."""
    deadline = time.monotonic() + seconds
    while not true() and process.poll() is None:
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """All files below a folder, by name."""
    return {
        os.fspath(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
