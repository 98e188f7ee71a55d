"""Decodes JPEG frames with GDCM in a process that may be lost: see gdcm_worker.py."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import selectors
import subprocess
import sys
import threading
import time
import weakref

from cmunet_jax.imaging import gdcm_worker
from cmunet_jax.imaging.case import UnreadableCase

SECONDS = 60.0  # for a frame; the largest takes about one
WORKER = pathlib.Path(gdcm_worker.__file__)


class Worker:
    """The process, which is started by the first frame and again after one that ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def decode(
        self, data: bytes, *, lossless: bool, rows: int, columns: int, samples: int, precision: int
    ) -> bytes:
        """The samples of a frame: see `gdcm_worker.decode`.

        Raises:
          UnreadableCase: GDCM cannot decode it.
        """
        expected = rows * columns * samples * (1 if precision <= 8 else 2)
        request = gdcm_worker.REQUEST.pack(lossless, rows, columns, samples, precision, len(data))
        with self._lock:
            process = self._start()
            try:
                assert process.stdin
                process.stdin.write(request + data)
                process.stdin.flush()
                (length,) = gdcm_worker.ANSWER.unpack(_read(process, gdcm_worker.ANSWER.size))
                frame = _read(process, length) if length == expected else b""
            except (OSError, EOFError, TimeoutError):
                frame, length = b"", -1
            if length not in (0, expected):
                self._end()
        if not frame:
            raise UnreadableCase("corrupt: a frame cannot be decoded")
        return frame

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            # -P: a gdcm.py that lies in some folder is not imported.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(WORKER)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            )  # fmt: skip
            weakref.finalize(self, _stop, self._process)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _stop(process)


def _read(process: subprocess.Popen[bytes], length: int) -> bytes:
    assert process.stdout
    pieces, left, end = [], length, time.monotonic() + SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while left:
            if not selector.select(max(end - time.monotonic(), 0)):
                raise TimeoutError
            piece = os.read(process.stdout.fileno(), min(left, 2**20))
            if not piece:
                raise EOFError
            pieces.append(piece)
            left -= len(piece)
    return b"".join(pieces)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe:
                pipe.close()


@functools.lru_cache(maxsize=1)
def worker(process_id: int) -> Worker:
    """The worker of the calling process; a fork does not speak to its parent's."""
    assert process_id == os.getpid()
    return Worker()
