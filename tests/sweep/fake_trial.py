"""Stands in for a trial's process: does as `behave` in its config says, and notes that it ran.

{"value": 0.7}                       ends well, with that score
{"errors": ["exit 2", "SIGKILL"]}    the first attempts end so; the next one ends well
{"seconds": 5}                       takes that long; SIGTERM ends it, to be continued
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import sys
import time
from typing import Any

from cmunet_jax.sweep import child

PREEMPTED = 75


def main(folder: pathlib.Path) -> int:
    """Does the trial in `folder`; one line of runs.txt for each time that it is started."""
    spec = json.loads((folder / child.SPEC).read_text())
    behave = spec["config"]["behave"]
    with open(folder / "runs.txt", "a") as file:
        file.write(f"{os.getpid()}\n")
    attempt = len((folder / "runs.txt").read_text().splitlines())
    signal.signal(signal.SIGTERM, lambda *unused: os._exit(PREEMPTED))
    until = time.monotonic() + behave.get("seconds", 0)
    while time.monotonic() < until:
        time.sleep(0.02)
    errors = behave.get("errors", [])
    if attempt <= len(errors):
        kind = errors[attempt - 1]
        if kind == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "traceback":
            print("Traceback: something broke", flush=True)
            return 1
        content = {"error": f"it ended with {kind}"}
        (folder / child.OUTCOME).write_text(json.dumps(content))
        return int(kind.split()[1])
    if behave.get("saves", True):
        manifest = folder / "run" / "checkpoints" / "1" / "manifest"
        manifest.mkdir(parents=True, exist_ok=True)
        (manifest / "metadata").write_text(json.dumps({"digest": "d"}))
    selection = spec["selection"] and {**spec["selection"], "value": behave.get("value")}
    outcome: dict[str, Any] = {
        "steps": 1,
        "versions": {},
        "selection": selection,
        "evaluation": None,
        "checkpoint": {"path": "run/checkpoints/1", "digest": "d", "step": 1},
        "began": spec["config"].get("init_from"),
        "rate": spec["config"]["optim"]["learning_rate"],
    }
    (folder / child.OUTCOME).write_text(json.dumps(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
