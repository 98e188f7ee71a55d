"""What the processes of one run owe each other; with a single process all of it is free."""

import ctypes
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from tfds_angio.errors import UserError

# For the others, who may compile, save or build the data set. One that has died is noticed by its
# heartbeat long before; these are for one that lives and will never come.
PATIENCE_SECONDS = 3600.0
DATA_SECONDS = 3 * 3600.0
START_SECONDS = 300.0
NOTE_SECONDS = 60.0  # of waiting, before a line says so
GRACE_SECONDS = 30.0  # for the others to come, after SIGTERM


class Apart(Exception):
    """The other processes did not come to a meeting; starting all of them again may help."""


class Interrupted(Exception):
    """SIGTERM came while waiting for others who did not come; the last checkpoint is the state."""


def me() -> str:
    """This process, for messages."""
    return f"process {jax.process_index()} of {jax.process_count()}"


def is_first() -> bool:
    """Whether this process speaks for the run: it alone writes logs, pictures and records."""
    return jax.process_index() == 0


def notice_sigterm() -> None:
    """Notes when SIGTERM comes, and passes it on to jax; once, after jax has started.

    jax keeps it to itself until the next step, which a process that waits never reaches.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    swap = ctypes.CDLL(None).signal  # Python's own cannot name a handler that is not Python's.
    swap.restype, swap.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    native = swap(signal.SIGTERM, None)
    pass_on = ctypes.CFUNCTYPE(None, ctypes.c_int)(native) if (native or 0) > 1 else None
    if pass_on is None:  # the default, which ends the process, or to be ignored
        swap(signal.SIGTERM, native)
        return
    signal.signal(signal.SIGTERM, _Sigterm(pass_on))


class _Sigterm:
    """Handles SIGTERM: notes when the first came, and passes all on."""

    def __init__(self, pass_on: Callable[[int], None]):
        self.at: float | None = None
        self._pass_on = pass_on

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.at = self.at or time.monotonic()
        self._pass_on(number)


def _stopped_at() -> float | None:
    """When SIGTERM came, if it did."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler.at if isinstance(handler, _Sigterm) else None


def require_same(facts: dict[str, str], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Checks that all processes see the same, before they wait for each other on it.

    Args:
      facts: name -> value, with the same names in all processes: they wait for each other by them.
      seconds: to wait for the others at most.

    Raises:
      UserError: in every process, naming what differs.
    """
    if jax.process_count() == 1:
        return
    meet(f"comparing {', '.join(facts)}", seconds=seconds)
    sums = np.asarray([zlib.crc32(value.encode()) for value in facts.values()], np.uint32)
    everywhere = multihost_utils.process_allgather(sums)
    same = (everywhere == everywhere[0]).all(0)
    different = [name for name, equal in zip(facts, same) if not equal]
    if different:
        name = different[0]
        raise UserError(
            f"the {jax.process_count()} processes of this run differ in {name} (here: "
            f"{facts[name][:200] or 'nothing'}). Start all of them with one command, on file "
            "systems that show all of them the same --workdir and config.data.dir."
        )


def meet(place: str, *, seconds: float = PATIENCE_SECONDS) -> None:
    """Waits until all processes are here; `place` names it, the same in all of them.

    A barrier of the coordination service, not of the devices: their first message gives up when
    the others, who may still be compiling or building the data set, are half a minute late.

    Raises:
      Apart: if not all came within `seconds`.
      Interrupted: if they did not come within GRACE_SECONDS of SIGTERM.
    """
    if jax.process_count() == 1:
        return
    barrier = multihost.get_barrier_sync_fn()
    failed: list[Exception] = []

    def wait() -> None:
        try:
            barrier(key=f"cmunet_jax: {place}", timeout_ms=int(seconds * 1000))
        except Exception as error:
            failed.append(error)

    # Beside this thread, which thereby goes on handling signals.
    waiting = threading.Thread(target=wait, name="meeting", daemon=True)
    began, told = time.monotonic(), False
    waiting.start()
    pause = 0.001
    while waiting.is_alive():
        waiting.join(pause)
        pause = min(2 * pause, 0.2)
        now = time.monotonic()
        if not told and now - began > NOTE_SECONDS:
            told = True
            text = f"{me()}: waiting for the others ({place}), for {seconds:,.0f} s at most"
            print(text, file=sys.stderr, flush=True)
        stopped = _stopped_at()
        if stopped and now - max(began, stopped) > GRACE_SECONDS and waiting.is_alive():
            raise Interrupted(
                f"SIGTERM, and the others did not come within {GRACE_SECONDS:.0f} s ({place}). "
                "Start all of them again to go on from the last checkpoint."
            )
    if failed and time.monotonic() - began >= seconds:
        raise Apart(
            f"the others did not come within {seconds:,.0f} s ({place}). Look at their "
            "output, end them, and start all of them again to resume."
        ) from failed[0]
    if failed:
        raise failed[0]
