"""Results of trials: read with suspicion, published once, and what follows from them."""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from cmunet_jax.sweep.claims import dump, now, parse
from cmunet_jax.sweep.plan import Trial
from cmunet_jax.sweep.store import Store

VERSION = 1
DONE, FAILED, READY, WAITING, BLOCKED = "done", "failed", "ready", "waiting", "blocked"


@dataclasses.dataclass(frozen=True)
class State:
    """Where a trial stands; `why` says what a failed or blocked one suffers from."""

    status: str
    why: str = ""


class Records:
    """Reads and publishes the results of one sweep."""

    def __init__(self, store: Store, data: Mapping[str, str], *, mend: bool = True):
        """Args: store; data: {'name', 'fingerprint'} of the sweep; mend: move bad files aside."""
        self._store, self._data, self._mend = store, dict(data), mend
        self._final: dict[str, dict[str, Any]] = {}
        self.complaints: list[str] = []

    def result(self, key: str, *, again: bool = False) -> dict[str, Any] | None:
        """The result of a trial that has ended, or None.

        A half-written result, or one of another data set, is reported once, moved aside and counts
        as none: the trial is then continued from what its folder holds. An evaluation there that
        was made on other data is moved aside too, and made again (stages/trial.py).

        Args:
          key: of the trial.
          again: read it also where it is known: another runner may have withdrawn it since.
        """
        if again:
            self._final.pop(key, None)
        if key in self._final:
            return self._final[key]
        name = f"trials/{key}/result.json"
        raw = self._store.read(name)
        if raw is None:
            return None
        content = parse(raw)
        if content is None or content.get("key") != key or content.get("version") != VERSION:
            self._reject(name, "is damaged or half-written")
            return None
        if content.get("status") not in (DONE, FAILED):
            self._reject(name, f"has the unknown status {content.get('status')!r}")
            return None
        data = content.get("data")
        fingerprint = data.get("fingerprint") if isinstance(data, dict) else None
        if fingerprint != self._data["fingerprint"]:
            self._reject(
                name,
                f"was measured on another build of the data (fingerprint {str(fingerprint)[:12]}, "
                f"here {self._data['fingerprint'][:12]})",
            )
            return None
        self._final[key] = content
        return content

    def _reject(self, name: str, why: str) -> None:
        aside = f"{name.removesuffix('.json')}.rejected-{uuid.uuid4().hex[:8]}.json"
        line = f"{self._store.url}/{name} {why}: "
        line += (
            f"kept as {aside.rsplit('/', 1)[-1]}, the trial is done again from what its folder "
            "holds: weights are trained on, an evaluation counts if it is of these weights and "
            "this data."
            if self._mend
            else "it is ignored."
        )
        self.complaints.append(line)
        logging.warning("%s", line)
        if self._mend:
            self._store.rename(name, aside)

    def withdraw(self, key: str, why: str) -> None:
        """Takes a result back, so that the trial is done again."""
        self._final.pop(key, None)
        self._reject(f"trials/{key}/result.json", why)

    def publish(self, key: str, content: Mapping[str, Any]) -> bool:
        """Writes a trial's result; False if there is one already, which then stays."""
        whole = {"version": VERSION, "key": key, "data": self._data, "finished": now(), **content}
        return self._store.create(f"trials/{key}/result.json", dump(whole))

    def failures(self, key: str) -> list[str]:
        """Why earlier attempts failed, oldest first."""
        folder = f"trials/{key}/failures"
        read = [parse(self._store.read(f"{folder}/{n}")) or {} for n in self._store.names(folder)]
        return [str(content.get("error")) for content in read]

    def add_failure(self, key: str, error: str) -> int:
        """Records a failed attempt; returns how many there are now."""
        count = len(self._store.names(f"trials/{key}/failures"))
        content = dump({"error": error, "time": now()})
        while not self._store.create(f"trials/{key}/failures/{count + 1}.json", content):
            count += 1
        return count + 1

    def forget_failures(self, plan: Sequence[Trial]) -> int:
        """Gives failed trials another chance; returns how many there were."""
        count = 0
        for trial in plan:
            result = self.result(trial.key)
            if result and result["status"] == FAILED:
                count += 1
                stamp = uuid.uuid4().hex[:8]
                self._final.pop(trial.key)
                base = f"trials/{trial.key}"
                for name in self._store.names(f"{base}/failures"):
                    self._store.rename(f"{base}/failures/{name}", f"{base}/before-{stamp}-{name}")
                self._store.rename(f"{base}/result.json", f"{base}/result.failed-{stamp}.json")
        return count

    def states(self, plan: Sequence[Trial]) -> dict[str, State]:
        """Where every trial stands; who works on a ready one is not looked at.

        A search that failed only drops its learning rate; a pre-training that failed, or a search
        of which no trial succeeded, blocks what depends on it.
        """
        found: dict[str, State] = {}
        kinds = {trial.key: trial for trial in plan}
        for trial in plan:
            result = self.result(trial.key)
            if result:
                found[trial.key] = State(result["status"], str(result.get("error") or ""))
                continue
            before = [(kinds[key], found[key]) for key in trial.depends]
            found[trial.key] = _state_of_open(before)
        return found

    def chosen(self, trial: Trial, plan: Mapping[str, Trial]) -> dict[str, Any]:
        """The learning rate of a fine-tuning, from the searches that it depends on.

        The best mean over folds; the smaller rate where two are equal. A rate of which a trial
        failed is out: with it training broke down.

        Returns:
          {'learning_rate', 'from': keys, 'scores': [[rate, mean or None], ...]}.

        Raises:
          ValueError: if no rate has a score.
        """
        searches = [plan[key] for key in trial.depends if plan[key].kind == "search"]
        if not searches:
            return {"learning_rate": trial.learning_rate, "from": [], "scores": []}
        values: dict[float, list[float]] = {}
        for search in searches:
            result = self.result(search.key) or {}
            value = (result.get("selection") or {}).get("value")
            score = math.nan if value is None or result.get("status") != DONE else float(value)
            values.setdefault(search.learning_rate or 0.0, []).append(score)
        scores = {rate: sum(found) / len(found) for rate, found in sorted(values.items())}
        finite = {rate: score for rate, score in scores.items() if math.isfinite(score)}
        if not finite:
            raise ValueError("no learning rate could be scored")
        best = max(finite, key=lambda rate: (finite[rate], -rate))
        return {
            "learning_rate": best,
            "from": [search.key for search in searches],
            "scores": [[rate, finite.get(rate)] for rate in scores],
        }


def _state_of_open(before: Sequence[tuple[Trial, State]]) -> State:
    """The state of a trial without a result, from those that it depends on."""
    for trial, state in before:
        if trial.kind != "search" and state.status in (FAILED, BLOCKED):
            return State(BLOCKED, f"{trial.name} {state.status}")
    searches = [state for trial, state in before if trial.kind == "search"]
    if searches and all(state.status in (FAILED, BLOCKED) for state in searches):
        return State(BLOCKED, "every trial of its learning-rate search failed")
    ended = (DONE, FAILED, BLOCKED)
    if all(state.status in ended for _, state in before):
        return State(READY)
    return State(WAITING)


def write_reads(store: Store, plan: Sequence[Trial]) -> None:
    """Writes test_reads.jsonl: one line for each time that a trial looked at the test split."""
    lines = []
    for trial in plan:
        folder = f"trials/{trial.key}/reads"
        lines += [store.read(f"{folder}/{name}") or b"" for name in store.names(folder)]
    rows = [row for line in lines if (row := parse(line))]
    rows.sort(key=lambda row: (row["time"], row["key"]))
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    store.write("test_reads.jsonl", text.encode())
