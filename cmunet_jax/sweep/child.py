"""A trial in a process of its own: what kills it does not kill the sweep."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODULE = "cmunet_jax.stages.trial"
SPEC, OUTCOME, LOG = "spec.json", "outcome.json", "log.txt"
EXIT_STORAGE = 74  # EX_IOERR: the disk is full, read-only or failing
_PATIENCE = 120.0  # seconds that a stopping child has to save


def end_with_worker(status: int) -> None:
    """Lets this process end with a status when the pipe from its worker closes.

    It saves nothing then, since another process may start in its place. Without such a pipe (a
    trial that was started by hand) nothing happens.
    """

    def watch() -> None:
        while os.read(0, 1024):
            pass  # Nothing is ever sent.
        os._exit(status)

    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=watch, name="worker-watch", daemon=True).start()


class Child:
    """A running trial. Its standard input is a pipe of ours: when we die, it ends too."""

    def __init__(self, folder: Path, *, env: Mapping[str, str] | None = None):
        """Starts `python -m cmunet_jax.stages.trial FOLDER`, which reads FOLDER/spec.json.

        Args:
          folder: of the trial.
          env: environment variables beside those of this process.
        """
        self.folder = folder
        with contextlib.suppress(FileNotFoundError):
            (folder / OUTCOME).unlink()
        self._log = open(folder / LOG, "ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(folder)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **(env or {})},
            # Ctrl-C goes to a whole terminal group; we pass it on ourselves, once.
            start_new_session=True,
        )
        self._asked: float | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while it runs. Kills one that will not stop."""
        status = self._process.poll()
        if status is None and self._asked and time.monotonic() - self._asked > _PATIENCE:
            self.kill()
        if status is not None:
            self._close()
        return status

    def wait(self) -> int:
        """Waits for its end."""
        try:
            status = self._process.wait()
        except BaseException:
            self.kill()
            raise
        self._close()
        return status

    def stop(self) -> None:
        """Asks it to save and end."""
        if self._asked is None:
            self._asked = time.monotonic()
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._log.close()

    def outcome(self, status: int) -> dict[str, Any]:
        """What the child wrote about itself; with 'error' if it did not end well."""
        try:
            found = json.loads((self.folder / OUTCOME).read_text())
        except (OSError, ValueError):
            found = {}
        if status and not found.get("error"):
            found["error"] = self._reason(status)
        if not status and not found:
            found["error"] = "the trial ended without a result"
        return found

    def _reason(self, status: int) -> str:
        """A line for a crash: the signal, or the last line of the log."""
        if status < 0:
            name = signal.Signals(-status).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return f"killed by {name}{hint}"
        with open(self.folder / LOG, "rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - 4000, 0))
            lines = file.read().decode(errors="replace").strip().splitlines()
        return f"exit status {status}: {lines[-1].strip() if lines else 'no output'}"
