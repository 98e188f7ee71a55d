"""What the processes of one run owe each other; with a single process all of it is free."""

import ctypes
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

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
_KEYS_TOLD = 3  # of those that differ

# What must be the same everywhere: a text, or parts that are compared one by one.
Fact = str | Mapping[str, Any] | Sequence[str]


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


def require_same(facts: Mapping[str, Fact], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Checks that all processes see the same, before they wait for each other on it.

    Args:
      facts: name -> value, with the same names in all processes: they wait for each other by them.
        Of a mapping the keys that differ are told, in the place of its name; of a sequence its
        length and the first item that differs.
      seconds: to wait for the others at most.

    Raises:
      UserError: in every process, naming what differs.
    """
    if jax.process_count() == 1:
        return
    meet(f"comparing {', '.join(facts)}", seconds=seconds)
    sums = np.asarray([_sum(repr(_parts(fact))) for fact in facts.values()], np.uint32)
    everywhere = multihost_utils.process_allgather(sums)
    same = (everywhere == everywhere[0]).all(0)
    different = [name for name, equal in zip(facts, same) if not equal]
    if different:
        name = different[0]
        raise UserError(
            f"the {jax.process_count()} processes of this run differ in "
            f"{_difference(name, facts[name])}. Start all of them with one command, on file "
            "systems that show all of them the same --workdir and config.data.dir."
        )


def _sum(text: str) -> int:
    return zlib.crc32(text.encode())


def _parts(fact: Fact) -> dict[str, str]:
    """Name -> value of what is compared one by one."""
    if isinstance(fact, str):
        return {"": fact}
    if isinstance(fact, Mapping):
        return {key: repr(fact[key]) for key in sorted(fact)}
    return {str(number): item for number, item in enumerate(fact, 1)}


def _difference(name: str, fact: Fact) -> str:
    """Says what differs in a fact that does; all processes come here together."""
    parts = _parts(fact)
    if isinstance(fact, str):
        return f"{name} (here: {fact[:200] or 'nothing'})"
    sums = np.asarray([(_sum(k), _sum(v)) for k, v in parts.items()], np.uint32).reshape(-1, 2)
    # Others may have more parts or fewer: all fill up to the longest.
    lengths = multihost_utils.process_allgather(np.asarray([len(sums)], np.uint32))
    filled = np.zeros((int(lengths.max()), 2), np.uint32)
    filled[: len(sums)] = sums
    everywhere = multihost_utils.process_allgather(filled).astype(np.uint64)  # [P, longest, 2]
    own, codes = sums.astype(np.uint64), everywhere[..., 0] << 32 | everywhere[..., 1]
    shared = np.ones(len(own), bool)
    for one in codes:
        shared &= np.isin(own[:, 0] << 32 | own[:, 1], one)
    different = [key for key, everyone in zip(parts, shared) if not everyone]
    if not isinstance(fact, Mapping):
        first = "".join(f", number {key} is '{parts[key]}'" for key in different[:1])
        return f"{name} (here: {len(fact):,}{first})"
    told = [f"{key} (here: {parts[key][:100]})" for key in different[:_KEYS_TOLD]]
    if more := len(different) - len(told):
        told.append(f"{more} more")
    if absent := len(np.setdiff1d(everywhere[..., 0], np.append(own[:, 0], 0))):
        told.append(f"{absent} that {'is' if absent == 1 else 'are'} not here")
    return f"{name}: {', '.join(told)}"


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
