"""What has the name of an image and is no file: pipes, sockets and devices."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path


def special(path: Path) -> None:
    """Makes a socket or a link to a device where the name begins so, else a named pipe."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.startswith("socket"):
        with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)  # the whole path may be longer than a socket's address
    elif path.name.startswith("zero"):
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in what is still running then, even where it waits for a pipe."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
