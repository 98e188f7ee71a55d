"""Does trials one after another until none is left, beside any number of others who do the same."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from absl import logging

from cmunet_jax.sweep import child as child_lib
from cmunet_jax.sweep import records as records_lib
from cmunet_jax.sweep.claims import Claim, Claims, dump, parse
from cmunet_jax.sweep.energy import Meter
from cmunet_jax.sweep.plan import Trial
from cmunet_jax.sweep.records import DONE, FAILED, READY, Records, State
from cmunet_jax.sweep.store import StorageError, Store
from cmunet_jax.train import loop
from cmunet_jax.train import store as checkpoints

_POLL, _METER_SECONDS = 0.1, 5.0
# Of a run's folder, what others look at; the rest is only needed where it was trained.
_SHOWN = ("config.json", "metrics.jsonl", "pictures")


class View(Protocol):
    """Shows where a sweep stands."""

    def show(self, states: Mapping[str, State], current: Trial | None) -> None:
        """Called now and then, with the trial that this worker is at."""

    def say(self, text: str) -> None:
        """A line that stays."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a worker needs to know of the sweep's config.

    Attributes:
      lease_seconds: a claim without a sign of life for so long is free.
      max_attempts: failing attempts after which a trial has failed.
      keep: 'all' checkpoints, or those that are 'needed': not those of the search.
      scratch: folder for training where the store is no folder.
    """

    lease_seconds: float
    max_attempts: int
    keep: str
    scratch: Path


class Worker:
    """One runner of a sweep."""

    def __init__(
        self,
        plan: Sequence[Trial],
        store: Store,
        records: Records,
        settings: Settings,
        view: View,
    ):
        """Touches nothing yet."""
        self._plan, self._by_key = plan, {trial.key: trial for trial in plan}
        self._store, self._records, self._settings = store, records, settings
        self._claims = Claims(store, settings.lease_seconds)
        self._view = view
        self._withdrawn: set[str] = set()
        self._wait = min(settings.lease_seconds / 10, 5.0)

    def run(self) -> tuple[dict[str, State], bool]:
        """Works until no trial is left or the process is asked to stop.

        Returns:
          The states of all trials, and whether it was asked to stop.

        Raises:
          StorageError: if nothing can be written any more; all that was finished is there.
        """
        with loop.StopRequest() as stop:
            while not stop.received:
                states = self._records.states(self._plan)
                self._view.show(states, None)
                if all(s.status not in (READY, records_lib.WAITING) for s in states.values()):
                    break
                ready = [t for t in self._plan if states[t.key].status == READY]
                if not any(self._try(trial, states, stop) for trial in ready):
                    _pause(self._wait, stop)
        with contextlib.suppress(StorageError):  # Derived from reads/, which are safe.
            records_lib.write_reads(self._store, self._plan)
        return self._records.states(self._plan), bool(stop.received)

    def _try(self, trial: Trial, states: Mapping[str, State], stop: loop.StopRequest) -> bool:
        """Does a trial if it is free; False if it is not, or if we are to stop."""
        if stop.received:
            return False
        ended = functools.partial(self._has_ended, trial.key)
        claim = self._claims.take(trial.key, ended=ended)
        if claim is None:
            return False
        with self._heartbeat(claim) as cost:
            try:
                if not self._has_ended(trial.key) and self._ready(trial):
                    self._view.show(states, trial)
                    self._do(trial, claim, cost, states, stop)
            finally:
                with contextlib.suppress(StorageError):  # The lease then simply expires.
                    seconds, energy = cost()
                    self._claims.release(claim, seconds=seconds, energy=energy)
        return True

    def _has_ended(self, key: str) -> bool:
        return self._records.result(key) is not None

    def _ready(self, trial: Trial) -> bool:
        """Whether the weights that a trial starts from are those of its finished pre-training."""
        before = (self._by_key[key] for key in trial.depends)
        return all(self._is_there(t) for t in before if t.kind == "pretrain")

    def _is_there(self, before: Trial) -> bool:
        """Whether a pre-training's published checkpoint is there; if not, it is done again, once.

        An older step of the same run is no substitute: its weights are unfinished.
        """
        key = before.key
        # Another runner may have withdrawn what this one has read, and be repeating it.
        result = self._records.result(key, again=True)
        if result is None or result["status"] != DONE:
            return False
        checkpoint = result.get("checkpoint")
        published = checkpoint if isinstance(checkpoint, dict) else {}
        manifest = f"trials/{key}/{published.get('path')}/{checkpoints.MANIFEST}/metadata"
        found = parse(self._store.read(manifest)) or {}
        if found and found.get("digest") == published.get("digest"):
            return True
        state = "with other content" if found else "that is no longer there"
        self._records.withdraw(key, f"({before.name}) names a checkpoint {state}")
        if key in self._withdrawn:
            error = "its checkpoint was gone again after it was repeated"
            content = _failed(error, result.get("attempts", 1), {}) | {"seconds": None}
            self._records.publish(key, content | {"energy_joules": None})
        self._withdrawn.add(key)
        return False

    @contextlib.contextmanager
    def _heartbeat(self, claim: Claim) -> Iterator[Any]:
        """Renews a claim in the background; yields () -> (seconds, joules) so far."""
        began, meter, ended = time.monotonic(), Meter(), threading.Event()

        def cost() -> tuple[float, float | None]:
            known = claim.energy is not None and meter.joules is not None
            energy = (claim.energy or 0.0) + (meter.joules or 0.0) if known else None
            return claim.seconds + time.monotonic() - began, energy

        def beat() -> None:
            every = self._settings.lease_seconds / 4
            renewed = metered = time.monotonic()
            while not ended.wait(min(_POLL * 5, every)):
                current = time.monotonic()
                if current - metered >= _METER_SECONDS:
                    meter.sample()
                    metered = current
                if current - renewed < every:
                    continue
                try:
                    seconds, energy = cost()
                    if self._claims.renew(claim, seconds=seconds, energy=energy):
                        renewed = current
                except (StorageError, OSError) as error:
                    logging.warning("the claim of %s was not renewed: %s", claim.key, error)
                if current - renewed > self._settings.lease_seconds:
                    claim.lost = True  # Others may think so too.

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield cost
        finally:
            meter.sample()
            ended.set()
            thread.join()

    def _do(
        self,
        trial: Trial,
        claim: Claim,
        cost: Any,
        states: Mapping[str, State],
        stop: loop.StopRequest,
    ) -> None:
        """Runs a claimed trial in a child and publishes what came of it."""
        folder = self._folder(trial.key)
        spec = self._spec(trial, folder)
        process = child_lib.Child(folder)
        try:
            status = self._watch(process, trial, claim, states, stop)
        except BaseException:
            process.kill()
            raise
        if self._is_lost(trial, claim):
            return
        outcome = process.outcome(status)
        if status == child_lib.EXIT_STORAGE:
            raise StorageError(f"{trial.name} stopped, to be continued: {outcome['error']}")
        if status == loop.EXIT_PREEMPTED or (stop.received and status):
            self._share(trial.key, folder, ("run", "reads"))
            self._view.say(f"{trial.name}: stopped, to be continued.")
            return
        seconds, energy = cost()
        facts = {"seconds": round(seconds, 3), "energy_joules": energy}
        if outcome.get("error"):
            self._fail(trial, claim, folder, outcome, facts)
            return
        shown = tuple(f"run/{name}" for name in _SHOWN)
        needed = ("run/checkpoints",) if trial.kind == "pretrain" else ()
        self._share(trial.key, folder, (*shown, *needed, "evaluation", "reads", child_lib.LOG))
        if not needed and not self._store.local:
            self._store.remove(f"trials/{trial.key}/run/checkpoints")
        if self._is_lost(trial, claim):  # An upload may take longer than a lease.
            return
        attempts = len(self._store.names(f"trials/{trial.key}/failures")) + 1
        content = {"status": DONE, "error": None, "attempts": attempts, **outcome, **facts}
        if self._records.publish(trial.key, content):
            score = (outcome.get("selection") or {}).get("value")
            text = f", {spec['selection']['metric']} {score:.4f}" if score is not None else ""
            self._view.say(f"{trial.name}: done in {seconds:.0f} s{text}")
        if trial.kind == "search" and self._settings.keep == "needed":
            shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
        if trial.kind == "finetune" and self._store.local:
            records_lib.write_reads(self._store, self._plan)

    def _is_lost(self, trial: Trial, claim: Claim) -> bool:
        """Whether another runner owns the trial by now, who is then the one to publish."""
        if not claim.lost and self._claims.holds(claim):
            return False
        self._view.say(f"{trial.name}: another runner has taken it over; left to that one.")
        return True

    def _watch(
        self,
        process: child_lib.Child,
        trial: Trial,
        claim: Claim,
        states: Mapping[str, State],
        stop: loop.StopRequest,
    ) -> int:
        """Waits for the child; passes a request to stop on, kills it where the claim is lost."""
        shown, saved = 0.0, _newest(process.folder)
        while (status := process.poll()) is None:
            if claim.lost:
                process.kill()
            elif stop.received:
                process.stop()
            elif not self._store.local:
                saved = self._share_saved(trial.key, process.folder, saved)
            if time.monotonic() - shown > 1.0:
                self._view.show(states, trial)
                shown = time.monotonic()
            time.sleep(_POLL)
        return status

    def _fail(
        self,
        trial: Trial,
        claim: Claim,
        folder: Path,
        outcome: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> None:
        """Records a failed attempt; the last one is the trial's result."""
        error = outcome["error"]
        count = self._records.add_failure(trial.key, error)
        self._share(trial.key, folder, ("reads", child_lib.LOG))
        if count < self._settings.max_attempts:
            self._view.say(f"{trial.name}: attempt {count} failed, will be repeated: {error}")
            return
        if self._is_lost(trial, claim):
            return
        self._records.publish(trial.key, _failed(error, count, outcome) | dict(facts))
        self._view.say(f"{trial.name}: failed ({count} attempts): {error}")

    def _folder(self, key: str) -> Path:
        """Where a trial is trained: in the store, or in scratch with what the store has of it."""
        if self._store.local:
            return self._store.local / "trials" / key
        folder = self._settings.scratch / "trials" / key
        self._fetch(key, folder / "run")
        return folder

    def _source(self, key: str) -> Path:
        """The published checkpoint of a finished pre-training: that very step, as in the store.

        What this machine may have of it, from an attempt that another runner finished, is older.
        """
        checkpoint = (self._records.result(key) or {})["checkpoint"]
        if self._store.local:
            return self._store.local / "trials" / key / checkpoint["path"]
        folder = self._settings.scratch / "sources" / f"{key}-{checkpoint['digest'][:16]}"
        self._fetch(key, folder)
        return folder / Path(checkpoint["path"]).relative_to("run")

    def _fetch(self, key: str, target: Path) -> None:
        """Brings a run out of the store, whole or not at all, unless it is there."""
        if target.exists():
            return
        part = target.with_name(f".{target.name}.part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            if self._store.download(f"trials/{key}/run", part):
                part.rename(target)
        except OSError as error:
            raise StorageError(f"{target} cannot be written: {error.strerror}.") from error

    def _spec(self, trial: Trial, folder: Path) -> dict[str, Any]:
        """Writes trial.json for readers and spec.json for the child; returns the latter."""
        chosen = self._records.chosen(trial, self._by_key) if trial.kind == "finetune" else {}
        config = json.loads(json.dumps(trial.config))
        if chosen:
            config["optim"]["learning_rate"] = chosen["learning_rate"]
        entry = trial.entry() | {"config": config, "chosen": chosen or None}
        entry |= {"evaluation": trial.evaluation, "selection": trial.selection}
        self._store.write(f"trials/{trial.key}/trial.json", dump(entry))
        config = json.loads(json.dumps(config))
        if config.get("init_from"):
            config["init_from"] = str(self._source(config["init_from"].removeprefix("trial:")))
        spec = {
            "key": trial.key,
            "name": trial.name,
            "config": config,
            "evaluation": trial.evaluation,
            "selection": trial.selection,
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / child_lib.SPEC).write_bytes(dump(spec))
        except OSError as error:
            raise StorageError(f"{folder} cannot be written: {error.strerror}") from error
        return spec

    def _share_saved(self, key: str, folder: Path, before: int) -> int:
        """Brings a new checkpoint into the store, so that a machine that vanishes costs little.

        Returns:
          The step of the newest checkpoint, which is in the store if it is not `before`.
        """
        step = _newest(folder)
        if step == before:
            return before
        try:
            # config.json last: a run without it starts anew, whatever lies beside.
            self._share(key, folder, (f"run/checkpoints/{step}", "run/config.json"))
        except FileNotFoundError:  # A newer one has replaced it meanwhile.
            return before
        if before >= 0:
            self._store.remove(f"trials/{key}/run/checkpoints/{before}")
        return step

    def _share(self, key: str, folder: Path, names: Sequence[str]) -> None:
        """Brings what a trial made into the store, where that is not its folder already."""
        for name in names if self._store.local is None else ():
            if (folder / name).exists():
                self._store.upload(folder / name, f"trials/{key}/{name}")


def _newest(folder: Path) -> int:
    """The step of the newest whole checkpoint of a trial, -1 without."""
    steps = checkpoints.step_folders(folder / "run" / "checkpoints")
    whole = [step for step, path in steps.items() if (path / checkpoints.MANIFEST).is_dir()]
    return max(whole, default=-1)


def _failed(error: str, attempts: int, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a trial that failed for good, without what it cost."""
    return {
        "status": FAILED,
        "error": error,
        "attempts": attempts,
        "steps": None,
        "versions": outcome.get("versions", {}),
        "selection": None,
        "evaluation": None,
        "checkpoint": None,
    }


def _pause(seconds: float, stop: loop.StopRequest) -> None:
    """Sleeps, but not through a request to stop."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop.received:
        time.sleep(_POLL)
