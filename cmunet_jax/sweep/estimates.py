"""What a sweep will cost: device time of every trial from a measured step time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import logging

from cmunet_jax import config as config_lib
from cmunet_jax.sweep import child, view
from cmunet_jax.sweep.claims import dump, parse
from cmunet_jax.sweep.plan import SELECTED, Trial
from cmunet_jax.sweep.records import Records
from cmunet_jax.sweep.store import StorageError, Store
from tfds_angio.errors import UserError

FILE = "step_times.json"
# What the time of a step depends on, beside the machine.
_SHAPE = ("stage", "objective", "model", "batch_size", "accumulation", "views", "ema_decay")


def show(plan: Sequence[Trial], config: ml_collections.ConfigDict, store: Store) -> None:
    """Prints the plan with estimated device time; starts no trial.

    Raises:
      UserError: if a training of the plan could not start.
    """
    data = {"name": config.data.name, "fingerprint": config.fingerprint}
    states = Records(store, data, mend=False).states(plan)
    times = measure(plan, store)
    seconds = {}
    for trial in plan:
        found = times[shape_of(trial)]
        seconds[trial.key] = found["start_seconds"] + trial.steps * found["seconds_per_step"]
    devices = {found["versions"].get("devices", "") for found in times.values()}
    per_step = ", ".join(
        f"{name} {found['seconds_per_step']:.3g} s" for name, found in _names(plan, times).items()
    )
    view.print_plan(
        plan,
        states,
        seconds,
        basis=f"measured a step on {' and '.join(sorted(devices))}: {per_step}; the time to start "
        "is counted, that of the evaluations is not.",
    )


def _names(plan: Sequence[Trial], times: Mapping[str, Any]) -> dict[str, Any]:
    """{name of the first trial of each shape: times}."""
    found: dict[str, Any] = {}
    for trial in plan:
        text = " ".join(filter(None, (trial.method, trial.variant, view.KINDS[trial.kind])))
        if times[shape_of(trial)] not in found.values():
            found[text] = times[shape_of(trial)]
    return found


def shape_of(trial: Trial) -> str:
    """A name for all trainings whose steps take equally long."""
    config = {key: trial.config[key] for key in _SHAPE if key in trial.config}
    config |= {
        "size": trial.config["preprocessing"]["size"],
        "optim": trial.config["optim"]["name"],
    }
    return config_lib.digest(config)[:16]


def measure(plan: Sequence[Trial], store: Store) -> dict[str, dict[str, Any]]:
    """Measures one training of each shape, or takes what was measured in this sweep before.

    Returns:
      {shape: {'seconds_per_step', 'start_seconds', 'versions'}}.

    Raises:
      UserError: naming the trial that could not start.
    """
    known = parse(store.read(FILE)) or {}
    for trial in plan:
        shape = shape_of(trial)
        if shape in known:
            continue
        print(f"measuring a step of {trial.name}", flush=True)
        known[shape] = _measure(trial)
        try:
            store.write(FILE, dump(known))
        except StorageError as error:
            logging.warning("step times are not kept: %s", error)
    return known


def _measure(trial: Trial) -> dict[str, Any]:
    config = json.loads(json.dumps(trial.config))
    if config["optim"]["learning_rate"] == SELECTED:
        config["optim"]["learning_rate"] = 1e-3
    with tempfile.TemporaryDirectory(prefix="cmunet-measure-") as name:
        folder = Path(name)
        (folder / child.SPEC).write_bytes(dump({"measure": True, "config": config}))
        process = child.Child(folder)
        outcome = process.outcome(process.wait())
    if outcome.get("error"):
        raise UserError(f"{trial.name} cannot start: {outcome['error']}")
    return outcome
