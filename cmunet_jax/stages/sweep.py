"""The sweep stage: plans a study as trials and hands them to a runner."""

import copy
import pathlib
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import ml_collections

from cmunet_jax import config as config_lib
from cmunet_jax.data import datasets
from cmunet_jax.stages import record, revision, train
from cmunet_jax.sweep import estimates, fairness, plan, runners
from cmunet_jax.sweep.claims import dump, now, parse
from cmunet_jax.sweep.store import Store, open_store
from tfds_angio.errors import UserError

_PACKAGES = ("cmunet-jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path | str | None) -> int:
    """Runs what is missing of a sweep; the same command continues it.

    Args:
      config: of this stage.
      workdir: a folder, or a URL such as gs://bucket/sweep.

    Returns:
      The runner's status: 0 when all is done, 1 where trials failed, 75 when stopped.

    Raises:
      UserError: on anything the user can mend, before a trial starts.
    """
    workdir = workdir or record.default_workdir(config)
    config = copy.deepcopy(config)  # With its references, which a variant's changes follow.
    config_lib.choose("config.runner", config.runner, tuple(runners.RUNNERS))
    plan.check(config)
    dataset = datasets.open_or_build(config.data)
    datasets.size_of(dataset, config.test_split, key="test_split")
    trials = plan.make_plan(
        config,
        fingerprint=dataset.fingerprint,
        examples=lambda training: len(train.choose_images(training).ids),
    )
    with config.unlocked():
        config.fingerprint = dataset.fingerprint
    deviations = fairness.deviations(config, plan.budgets(trials))
    for line in deviations:
        print(f"Less than protocol fair asks for: {line}")
    store = open_store(workdir)
    _check_data(store, dataset.name, dataset.fingerprint)
    if config.dry_run:
        estimates.show(trials, config, store)
        return 0
    facts = {"name": dataset.name, "fingerprint": dataset.fingerprint, "splits": dataset.sizes}
    _write(store, config, trials, facts, deviations)
    return runners.RUNNERS[config.runner](trials, config, workdir)


def _check_data(store: Store, name: str, fingerprint: str) -> None:
    """Refuses to add trials to a sweep on another build of the data.

    Raises:
      UserError: with both fingerprints.
    """
    before = parse(store.read("sweep.json")) or {}
    there = before.get("data", {}).get("fingerprint", fingerprint)
    if there != fingerprint:
        raise UserError(
            f"{store.url} holds a sweep on another build of the data ({before['data']['name']}, "
            f"fingerprint {there[:12]}; {name} here has {fingerprint[:12]}), and results of two "
            "data sets cannot be compared. Choose another --workdir."
        )


def _write(
    store: Store,
    config: ml_collections.ConfigDict,
    trials: Sequence[plan.Trial],
    data: dict[str, Any],
    deviations: Sequence[str],
) -> None:
    """Writes sweep.json and plan.json; workers that start later find them as they are.

    A sweep may grow: a plan with more methods replaces the old one, and what was done is kept.
    """
    before = parse(store.read("sweep.json")) or {}
    content = {
        "version": 1,
        "title": config.title,
        "protocol": config.protocol,
        "deviations": list(deviations),
        "scale": config.scale,
        "config": config_lib.to_dict(config),
        "data": data,
        "versions": {name: metadata.version(name) for name in _PACKAGES}
        | {"source": revision.source()},
        "created": before.get("created", now()),
        "command": "python -m cmunet_jax.main " + shlex.join(sys.argv[1:]),
    }
    planned = {"version": 1, "trials": [trial.entry() for trial in trials]}
    known = (parse(store.read("plan.json")) or {}).get("trials", [])
    old, new = {entry["key"] for entry in known}, {trial.key for trial in trials}
    if old and old != new:
        print(
            f"The plan has changed: {len(new - old)} trials are new, {len(old - new)} are no "
            "longer in it (what they left is kept)."
        )
    store.write("plan.json", dump(planned))
    store.write("sweep.json", dump(content))
    print(f"{len(trials)} trials in {store.url}", flush=True)
