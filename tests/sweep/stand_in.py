"""A plan whose trials take no time, workers for it, and what stands in for a trial's process.

The network of these trials is a number of steps. They save as Orbax does, a folder a step, go on
from the newest, and note what they began with. `behave` in a trial's config says how long it takes.
They take the folder's lock and end with their worker as a real trial does.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from cmunet_jax.sweep import child
from cmunet_jax.sweep.plan import Trial
from cmunet_jax.sweep.records import Records
from cmunet_jax.sweep.store import open_store
from cmunet_jax.sweep.worker import Settings, Worker
from tfds_angio.exclusive import exclusive

DATA = {"name": "hearts", "fingerprint": "f" * 64}
STOPPED = 75


def trial(
    key: str, *, steps: int = 1, seconds: float = 0.0, after: str = "", kind: str = "finetune"
) -> Trial:
    """A trial; `after` is the key of its pre-training."""
    config: dict[str, Any] = {
        "behave": {"steps": steps, "seconds": seconds},
        "optim": {"learning_rate": 1.0},
    }
    if after:
        config["init_from"] = f"trial:{after}"
    return Trial(
        key=key,
        name=f"trial {key}",
        kind=kind,
        method="mae" if after or kind == "pretrain" else "scratch",
        labels=None if kind == "pretrain" else 18,
        draw=None,
        seed=0,
        learning_rate=1.0,
        variant="",
        fold=None,
        depends=(after,) if after else (),
        steps=steps,
        config=config,
        evaluation=None,
        selection=None,
    )


class _Lines:
    def show(self, states: object, current: object) -> None:
        """Shows nothing."""

    def say(self, text: str) -> None:
        """Prints what happens."""
        print(text, flush=True)


def work(plan: Sequence[Trial], url: str, scratch: pathlib.Path, *, lease: float = 5.0) -> None:
    """Works on a plan until nothing is left, in this process."""
    store = open_store(url)
    settings = Settings(lease, max_attempts=2, keep="needed", scratch=scratch)
    Worker(plan, store, Records(store, DATA), settings, _Lines()).run()


def command(plan: Sequence[Trial], url: str, scratch: pathlib.Path) -> list[str]:
    """The command of a worker process."""
    text = json.dumps([dataclasses.asdict(trial) for trial in plan])
    return [sys.executable, "-m", "tests.sweep.stand_in", "work", text, url, str(scratch)]


def _trial(folder: pathlib.Path) -> int:
    spec = json.loads((folder / "spec.json").read_text())
    behave = spec["config"]["behave"]
    saved = folder / "run" / "checkpoints"
    done = max((int(p.name) for p in saved.glob("[0-9]*")), default=0)
    with open(folder / "log.txt", "a") as log:
        log.write(f"from step {done}\n")
    begin = spec["config"].get("init_from")
    if begin:
        (folder / "evaluation").mkdir(exist_ok=True)
        step = json.loads((pathlib.Path(begin) / "manifest" / "metadata").read_text())["step"]
        (folder / "evaluation" / "began.json").write_text(json.dumps(step))
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    for step in range(done + 1, behave["steps"] + 1):
        time.sleep(behave["seconds"])
        part = saved / f".{step}"
        (part / "manifest").mkdir(parents=True, exist_ok=True)  # It may have died just here.
        manifest = {"step": step, "digest": "d" * 64}
        (part / "manifest" / "metadata").write_text(json.dumps(manifest))
        os.replace(part, saved / str(step))
        (folder / "run" / "config.json").write_text("{}")
        shutil.rmtree(saved / str(step - 1), ignore_errors=True)
        if stopped:
            return STOPPED
    checkpoint = {"path": f"run/checkpoints/{behave['steps']}", "digest": "d" * 64}
    outcome = {"steps": behave["steps"], "checkpoint": checkpoint, "versions": {}}
    (folder / child.OUTCOME).write_text(json.dumps(outcome))
    return 0


def main(arguments: Sequence[str]) -> int:
    """`work PLAN URL SCRATCH` is a worker, `FOLDER` a trial."""
    if arguments[0] != "work":
        child.end_with_worker(STOPPED)
        folder = pathlib.Path(arguments[0])
        with exclusive(folder):
            return _trial(folder)
    child.MODULE = "tests.sweep.stand_in"
    entries = json.loads(arguments[1])
    plan = [Trial(**entry | {"depends": tuple(entry["depends"])}) for entry in entries]
    work(plan, arguments[2], pathlib.Path(arguments[3]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
