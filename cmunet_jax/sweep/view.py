"""What a person sees of a sweep: the plan, the live table, the end."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from cmunet_jax.sweep.claims import parse
from cmunet_jax.sweep.plan import Trial
from cmunet_jax.sweep.records import BLOCKED, DONE, FAILED, READY, WAITING, Records, State
from cmunet_jax.sweep.store import Store
from cmunet_jax.train.estimate import duration

KINDS = {"pretrain": "pre-training", "search": "learning-rate search", "finetune": "fine-tuning"}
_EVERY = 5.0  # seconds between two looks at the claims of others
_SHOWN_FAILURES = 20


class _View:
    """Lines, and on a terminal a table that is redrawn in place."""

    def __init__(
        self, plan: Sequence[Trial], records: Records, store: Store, live: Live | None
    ) -> None:
        self._plan, self._records, self._store, self._live = plan, records, store, live
        self._running: set[str] = set()
        self._looked = 0.0
        self._began, self._current = time.monotonic(), ""

    def say(self, text: str) -> None:
        """A line above the table."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def show(self, states: Mapping[str, State], current: Trial | None) -> None:
        """Redraws the table; without a terminal, one line for each trial that begins."""
        if current and current.name != self._current:
            self._began, self._current = time.monotonic(), current.name
            if not self._live:
                left = sum(s.status in (READY, WAITING) for s in states.values())
                self.say(f"{current.name} ({left} left{self._time_left(states)})")
        if not self._live:
            return
        if time.monotonic() - self._looked > _EVERY:
            self._running = running(self._plan, states, self._store)
            self._looked = time.monotonic()
        text = "waiting for trials that others do"
        if current:
            text = f"{current.name}  {duration(time.monotonic() - self._began)}"
        table = status_table(self._plan, states, self._running)
        self._live.update(Group(table, f"{text}{self._time_left(states)}"))

    def _time_left(self, states: Mapping[str, State]) -> str:
        seconds = seconds_left(self._plan, states, self._records)
        if seconds is None:
            return ""
        return f", about {duration(seconds / max(len(self._running), 1))} left"


@contextlib.contextmanager
def open_view(
    plan: Sequence[Trial], records: Records, store: Store, *, live: bool
) -> Iterator[_View]:
    """A view of a sweep; a live table where `live` and standard output is a terminal."""
    if not (live and sys.stdout.isatty()):
        yield _View(plan, records, store, None)
        return
    with Live(console=Console(), refresh_per_second=2) as table:
        yield _View(plan, records, store, table)


def running(plan: Sequence[Trial], states: Mapping[str, State], store: Store) -> set[str]:
    """Keys of trials that someone has claimed and not let go of."""
    found = set()
    for trial in plan:
        if states[trial.key].status == READY:
            lease = parse(store.read(f"trials/{trial.key}/claim.json"))
            if lease and not lease.get("released"):
                found.add(trial.key)
    return found


def seconds_left(
    plan: Sequence[Trial], states: Mapping[str, State], records: Records
) -> float | None:
    """Device seconds of the open trials, from the median seconds a step of finished ones."""
    per_step: dict[str, list[float]] = {}
    for trial in plan:
        result = records.result(trial.key) if states[trial.key].status == DONE else None
        if result and result.get("seconds"):
            per_step.setdefault(trial.kind, []).append(result["seconds"] / trial.steps)
    if not per_step:
        return None
    every = statistics.median([value for values in per_step.values() for value in values])
    medians = {kind: statistics.median(values) for kind, values in per_step.items()}
    return sum(
        trial.steps * medians.get(trial.kind, every)
        for trial in plan
        if states[trial.key].status in (READY, WAITING)
    )


def status_table(
    plan: Sequence[Trial], states: Mapping[str, State], running_keys: set[str]
) -> Table:
    """Counts by kind of trial."""
    table = Table(title="trials", title_justify="left")
    table.add_column("kind")
    for name in ("done", "running", "left", "failed", "blocked"):
        table.add_column(name, justify="right")
    for kind, text in KINDS.items():
        keys = [trial.key for trial in plan if trial.kind == kind]
        if keys:
            counts = Counter(states[key].status for key in keys)
            busy = sum(key in running_keys for key in keys)
            left = counts[READY] + counts[WAITING] - busy
            numbers = (counts[DONE], busy, left, counts[FAILED], counts[BLOCKED])
            table.add_row(text, *(str(n) for n in numbers))
    return table


def print_end(plan: Sequence[Trial], states: Mapping[str, State], store: Store) -> None:
    """Counts, then why trials failed or are blocked, and where to look."""
    Console().print(status_table(plan, states, set()))
    bad = [trial for trial in plan if states[trial.key].status in (FAILED, BLOCKED)]
    for trial in bad[:_SHOWN_FAILURES]:
        state = states[trial.key]
        print(f"{state.status}: {trial.name} ({store.url}/trials/{trial.key}): {state.why}")
    if len(bad) > _SHOWN_FAILURES:
        print(f"... and {len(bad) - _SHOWN_FAILURES} more")
    if any(states[trial.key].status == FAILED for trial in bad):
        print("Failed trials are left as they are; --config.retry_failed=True tries them again.")


def print_plan(
    plan: Sequence[Trial],
    states: Mapping[str, State],
    seconds: Mapping[str, float],
    *,
    basis: str,
) -> None:
    """The plan for a person: trials, what they wait for, device time.

    Args:
      plan: all trials.
      states: of each.
      seconds: estimated device seconds of each.
      basis: what the estimate is made from, for the last line.
    """
    names = {trial.key: trial.name for trial in plan}
    table = Table(title=f"{len(plan)} trials", title_justify="left")
    for column in ("key", "trial", "kind", "steps", "needs", "state", "device time"):
        table.add_column(column, justify="right" if column in ("steps", "device time") else "left")
    for trial in plan:
        first = [key for key in trial.depends if names[key].endswith("/search")]
        others = [names[key] for key in trial.depends if key not in first]
        needs = ", ".join(others + ([f"{len(first)} searches"] if first else []))
        table.add_row(
            trial.key,
            trial.name,
            KINDS[trial.kind],
            f"{trial.steps:,}",
            needs,
            states[trial.key].status,
            duration(seconds[trial.key]),
        )
    width = None if sys.stdout.isatty() else 160
    Console(width=width).print(table)
    for kind, text in KINDS.items():
        keys = [trial.key for trial in plan if trial.kind == kind]
        if keys:
            hours = sum(seconds[key] for key in keys) / 3600
            print(f"{text}: {len(keys)} trials, {hours:.2f} device-hours")
    open_keys = [t.key for t in plan if states[t.key].status in (READY, WAITING)]
    total = sum(seconds.values()) / 3600
    left = sum(seconds[key] for key in open_keys) / 3600
    print(f"in all: {len(plan)} trials, {total:.2f} device-hours, of which {left:.2f} are left")
    print(basis)
