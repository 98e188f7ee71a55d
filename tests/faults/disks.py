"""Real small file systems: full disks and read-only ones as the kernel makes them.

A tmpfs of some KiB gives ENOSPC at whichever write comes first beyond its size, and a remount gives
EROFS, for every writer alike: Python, Pillow, TensorStore, ArrayRecord. Permissions would not do,
since they do not bind root, and a limit on file sizes is another error (EFBIG). Mounting needs
root; without it the tests skip, and the stand-ins of tests/train and tests/report remain.
"""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
from collections.abc import Iterator

import pytest


class Disk:
    """A mounted tmpfs."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def resize(self, kib: int) -> None:
        """Makes it larger or smaller."""
        self._mount(f"remount,size={kib}k")

    def read_only(self, value: bool = True) -> None:
        """Refuses writes from now on, or takes them again."""
        self._mount("remount,ro" if value else "remount,rw")

    def fill(self) -> None:
        """Leaves no byte."""
        with contextlib.suppress(OSError), open(self.path / "ballast", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def drain(self) -> None:
        """The space is there again."""
        (self.path / "ballast").unlink(missing_ok=True)

    def _mount(self, options: str) -> None:
        subprocess.run(["mount", "-o", options, self.path], check=True, capture_output=True)


@contextlib.contextmanager
def small(path: pathlib.Path, *, kib: int) -> Iterator[Disk]:
    """Mounts a small disk at `path`; skips the test where that is not allowed."""
    path.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", path]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield Disk(path)
    finally:
        # Lazily: an event writer of the failed run may still hold a file open.
        subprocess.run(["umount", "--lazy", path], check=True, capture_output=True)
