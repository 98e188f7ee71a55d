"""The runners that work themselves: `local` with a live table, `worker` with plain lines."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from cmunet_jax.sweep import view as view_lib
from cmunet_jax.sweep.plan import Trial
from cmunet_jax.sweep.records import BLOCKED, FAILED, Records
from cmunet_jax.sweep.store import StorageError, open_store
from cmunet_jax.sweep.worker import Settings, View, Worker
from cmunet_jax.train import loop


def run(plan: Sequence[Trial], config: ml_collections.ConfigDict, workdir: Path | str) -> int:
    """One trial after another on this machine, with a live table.

    Returns:
      0 if all trials are done, 1 if some failed or are blocked, loop.EXIT_PREEMPTED if it was
      stopped.
    """
    return _work(plan, config, workdir, live=True)


def run_worker(
    plan: Sequence[Trial], config: ml_collections.ConfigDict, workdir: Path | str
) -> int:
    """The same for a batch system: plain lines, and 0 also where trials failed.

    Waits for trials that others do, as long as some of its own may depend on them.
    """
    status = _work(plan, config, workdir, live=False)
    return 0 if status == 1 else status


def _work(
    plan: Sequence[Trial], config: ml_collections.ConfigDict, workdir: Path | str, *, live: bool
) -> int:
    store = open_store(workdir)
    records = Records(store, {"name": config.data.name, "fingerprint": config.fingerprint})
    if config.retry_failed:
        records.forget_failures(plan)
    scratch = Path(config.scratch) if config.scratch else _scratch(store.url)
    settings = Settings(config.lease_seconds, config.max_attempts, config.keep, scratch)
    view: View
    try:
        with view_lib.open_view(plan, records, store, live=live) as view:
            states, stopped = Worker(plan, store, records, settings, view).run()
    except KeyboardInterrupt:  # A second Ctrl-C does not wait for the trial to save.
        print("Stopped at once: the running trial goes on from its last save, next time.")
        return loop.EXIT_PREEMPTED
    except StorageError:  # What is done, failed and left is told all the same.
        with contextlib.suppress(StorageError):
            view_lib.print_end(plan, records.states(plan), store)
        raise
    view_lib.print_end(plan, states, store)
    if stopped:
        print("Stopped. Run the same command to continue.")
        return loop.EXIT_PREEMPTED
    return 1 if any(s.status in (FAILED, BLOCKED) for s in states.values()) else 0


def _scratch(url: str) -> Path:
    """A folder for what is trained here and kept elsewhere."""
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    return Path(cache) / "cmunet_jax" / "sweeps" / hashlib.sha256(url.encode()).hexdigest()[:16]
