"""Who does a trial: claims that only one runner gets, kept alive by a heartbeat.

The N-th runner to take a trial creates `attempts/N.json`, which only one of many can do; whoever
holds the highest number owns the trial. The owner rewrites `claim.json` every quarter of a lease. A
runner takes over when it has itself seen no change for a whole lease, by its own monotonic clock:
no two clocks are ever compared, so none of them may jump and cost a trial. An owner that was asleep
notices the higher number at its next renewal and before it publishes, and stops.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from cmunet_jax.sweep.store import Store


def now() -> str:
    """The time in ISO 8601, UTC; for people, never compared."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def dump(content: Any) -> bytes:
    """JSON as it is stored."""
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def parse(content: bytes | None) -> dict[str, Any] | None:
    """The JSON object of a file, or None where it is absent or half-written."""
    try:
        value = json.loads(content) if content else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def number(content: Mapping[str, Any], key: str, default: float) -> float:
    """A finite number of a file that others may have written; the default where it is none."""
    value = content.get(key)
    if isinstance(value, int | float) and abs(value) < 1e18:  # NaN is not
        return float(value)
    return default


def _machine() -> str:
    """Names this machine and what process ids mean on it (containers have their own)."""
    parts = [platform.node()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    if boot.exists():
        parts += [boot.read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _ticks(pid: int) -> int | None:
    """Clock ticks from the machine's start to that of a process; None where Linux does not tell.

    proc(5), field 22. Unlike a time of day it does not move when the clock is set.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])  # The name, in parentheses, may hold any sign.


def _alive(holder: dict[str, Any]) -> bool:
    """Whether the process of this machine that took a trial is there; its number may be reused."""
    pid = int(number(holder, "pid", 0))
    if pid < 1:
        return False
    try:
        process = psutil.Process(pid)
        if holder.get("ticks") is not None:
            return _ticks(process.pid) == holder["ticks"]
        return abs(process.create_time() - number(holder, "started", 0.0)) < 1.0
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


@dataclasses.dataclass
class Claim:
    """A trial that this runner owns, as long as `lost` is False.

    Attributes:
      key: of the trial.
      attempt: 1, 2, ...: how often the trial was taken.
      token: content of the attempt's file, which no other runner could have written.
      seconds: device time that earlier attempts used.
      energy: joules that earlier attempts used, None where that is not known.
      lost: whether another runner has taken over.
    """

    key: str
    attempt: int
    token: bytes
    seconds: float = 0.0
    energy: float | None = 0.0
    lost: bool = False


class Claims:
    """Takes, renews and releases claims for one runner."""

    def __init__(
        self, store: Store, lease_seconds: float, *, clock: Callable[[], float] = time.monotonic
    ):
        """Args: store; lease_seconds without a sign of life end a claim; clock: monotonic."""
        self._store, self._lease, self._clock = store, float(lease_seconds), clock
        self._owner = uuid.uuid4().hex
        self._machine = _machine()
        me = psutil.Process()
        self._process = {"pid": me.pid, "started": me.create_time(), "ticks": _ticks(me.pid)}
        # What was last seen of the claims of others, and when.
        self._seen: dict[str, tuple[Any, float]] = {}

    def attempts(self, key: str) -> int:
        """How often a trial was taken."""
        names = self._store.names(f"trials/{key}/attempts")
        return max((int(n[:-5]) for n in names if n[:-5].isdigit()), default=0)

    def take(self, key: str, *, ended: Callable[[], bool] = lambda: False) -> Claim | None:
        """Takes a trial that nobody works on; None if somebody does.

        Args:
          key: of the trial.
          ended: whether the trial has its result. It is asked once the last owner is seen to be
            gone: owners publish before they release, so what was finished is never taken again.

        Raises:
          StorageError: if the store cannot be written.
        """
        newest = self.attempts(key)
        before = parse(self._store.read(f"trials/{key}/claim.json")) or {}
        if newest and (not self._free(key, newest, before) or ended()):
            return None
        record = {
            "owner": self._owner,
            "machine": self._machine,
            "taken": now(),
            "lease_seconds": self._lease,
            **self._process,
        }
        attempt = newest + 1
        token = dump(record | {"attempt": attempt})
        if not self._store.create(f"trials/{key}/attempts/{attempt}.json", token):
            return None
        seconds, energy = number(before, "seconds", 0.0), before.get("energy_joules", 0.0)
        energy = None if energy is None else number(before, "energy_joules", 0.0)
        claim = Claim(key, attempt, token, seconds, energy)
        self._write(claim, claim.seconds, claim.energy, released=False)
        return claim

    def _free(self, key: str, newest: int, lease: dict[str, Any]) -> bool:
        """Whether the newest attempt has ended, died or shown no life for a whole lease."""
        if lease.get("attempt") == newest and lease.get("released"):
            return True
        holder = parse(self._store.read(f"trials/{key}/attempts/{newest}.json")) or {}
        if holder.get("owner") == self._owner:
            return True  # Ours, from before an error; this runner does one trial at a time.
        if holder.get("machine") == self._machine and not _alive(holder):
            return True
        sign, at = (newest, lease.get("attempt"), lease.get("beat")), self._clock()
        if self._seen.get(key, (None, 0.0))[0] != sign:
            self._seen[key] = (sign, at)
            return False
        lasts = number(holder, "lease_seconds", self._lease)
        return at - self._seen[key][1] >= lasts

    def holds(self, claim: Claim) -> bool:
        """Whether a claim is still ours; once lost it stays lost."""
        path = f"trials/{claim.key}/attempts"
        if self._store.names(path) and self.attempts(claim.key) > claim.attempt:
            claim.lost = True
        elif self._store.read(f"{path}/{claim.attempt}.json") != claim.token:
            claim.lost = True
        return not claim.lost

    def renew(self, claim: Claim, *, seconds: float, energy: float | None) -> bool:
        """Shows that the owner lives and what the trial has cost; False if the claim was lost."""
        if not self.holds(claim):
            return False
        self._write(claim, seconds, energy, released=False)
        return True

    def release(self, claim: Claim, *, seconds: float, energy: float | None) -> None:
        """Lets others go on with the trial at once."""
        if self.holds(claim):
            self._write(claim, seconds, energy, released=True)

    def _write(self, claim: Claim, seconds: float, energy: float | None, *, released: bool) -> None:
        content = {
            "attempt": claim.attempt,
            "owner": self._owner,
            "machine": self._machine.split(" ")[0],
            **self._process,
            "lease_seconds": self._lease,
            "beat": uuid.uuid4().hex,
            "renewed": now(),
            "seconds": round(seconds, 3),
            "energy_joules": energy,
            "released": released,
        }
        self._store.write(f"trials/{claim.key}/claim.json", dump(content))
