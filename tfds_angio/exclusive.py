"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from tfds_angio.errors import UserError

LOCK = ".lock"
WAIT_SECONDS = 60.0
"""For the one before, who may be saving: schedulers give half a minute or more to end."""
_UNKNOWN = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # to a file system without locks
_TOLD = 200  # bytes of what a holder says of itself


@contextlib.contextmanager
def exclusive(folder: Path, *, seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Holds a folder for this process, by a lock that the kernel frees when the process dies.

    Folders that are made for it go again if nothing was put into them. On a file system that knows
    no locks nothing is held.

    Args:
      folder: to hold; made where it is missing.
      seconds: to wait for another process that holds it.

    Raises:
      UserError: if the other is still there then, or the folder cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    deadline, told = time.monotonic() + seconds, False
    handle = _open(folder)
    held: bool | None = False
    try:
        while (held := _take(handle)) is False:
            holder = os.pread(handle, _TOLD, 0).decode(errors="replace") or "another process"
            if time.monotonic() > deadline:
                raise UserError(
                    f"{folder} is in use by {holder}. Wait for its end, or choose another."
                )
            if not told:
                print(f"Waiting {seconds:.0f} s for {holder}, who uses {folder}.", flush=True)
            told = True
            time.sleep(0.2)
            if os.fstat(handle).st_nlink == 0:  # Who held it has removed the empty folder.
                stale, handle = handle, _open(folder)
                os.close(stale)
        yield
    finally:
        if held and made:
            _remove(folder, made)
        os.close(handle)


def _open(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}.") from error


def _take(handle: int) -> bool | None:
    """Whether the lock is ours now; then it says whose it is. None: there are no locks here."""
    taken: bool | None = True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        taken = None
    if os.fstat(handle).st_nlink == 0:
        return False
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with contextlib.suppress(OSError):  # The disk may be full: it is for people only.
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {platform.node()} (since {began})".encode(), 0)
    return taken


def _remove(folder: Path, made: list[Path]) -> None:
    with contextlib.suppress(OSError):
        if os.listdir(folder) == [LOCK]:
            (folder / LOCK).unlink()
            for path in made:
                path.rmdir()
