"""The evaluate stage: any of our checkpoints on one split, per image, at native resolution."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
from rich.console import Console
from rich.table import Table

from cmunet_jax import config as config_lib
from cmunet_jax.data import datasets
from cmunet_jax.evaluation import evaluator, results
from cmunet_jax.stages import provenance, record, segment
from cmunet_jax.train import estimate, sharding
from tfds_angio import resplit
from tfds_angio.base import AngioDataset
from tfds_angio.errors import UserError

_FACTS = ("labels", "draw", "seed", "init_from", "train_for", "batch_size", "folds", "fold")


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path | None) -> int:
    """Evaluates `config.checkpoint` and writes summary.json, cases.csv and overlays.

    Args:
      config: of this stage.
      workdir: where to; default a folder `evaluation-<split>` in the workdir of the training.

    Raises:
      UserError: if the checkpoint, the data set or the split cannot be used, or the network was
        trained on what it is to be measured on.
    """
    mesh = sharding.create_mesh()
    segmenter = segment.restore(
        config.checkpoint, step=str(config.step), weights=config.weights, mesh=mesh
    )
    loaded = segmenter.loaded
    workdir = workdir or loaded.path.parent.parent / f"evaluation-{config.split}"
    dataset = open_data(config, loaded.config)
    datasets.size_of(dataset, config.split, key="split")
    overlap = provenance.check_unseen(loaded.config, dataset, config.split)
    with estimate.memory_errors(batch_size=config.batch_size):
        result = evaluator.evaluate(
            segmenter.forward,
            segmenter.weights,
            dataset,
            config.split,
            segmenter.preprocessing,
            batch_size=segment.round_up(config.batch_size, mesh),
            protocol=config.protocol,
            resolution=config.resolution,
            workers=config.data.workers or None,
            prepared=segment.prepare(dataset, config.split, segmenter.preprocessing, config.data),
        )
    facts = {
        "checkpoint": {
            "path": str(loaded.path),
            "step": loaded.step,
            "digest": loaded.digest,
            "weights": segmenter.kind,
        },
        "preprocessing": loaded.preprocessing,
        "training": {key: loaded.config.get(key) for key in _FACTS}
        | {"label_ids": loaded.config.get("provenance", {}).get("label_ids")},
        "selected_on": _selected_on(loaded.config, str(config.step)),
        "splits": {
            "rule": dataset.splits,
            "sizes": dataset.sizes,
            "seen_in_training": overlap,
        },
        "versions": record.versions(),
        "config": config_lib.to_dict(config),
    }
    evaluator.write(result, workdir, overlays=config.overlays, provenance=facts)
    print_summary(workdir, title=f"{dataset.name} {config.split}")
    print(f"Written: {workdir / 'summary.json'}, cases.csv and overlays beside it.")
    return 0


def open_data(config: ml_collections.ConfigDict, trained: Mapping[str, Any]) -> AngioDataset:
    """The data set to evaluate on: that of the training, divided as it was there, by default.

    Args:
      config: of this stage.
      trained: the stored config of the checkpoint.

    Raises:
      UserError: if it cannot be opened or divided so.
    """
    data = config.data.copy_and_resolve_references()
    same = data.name in ("", trained["data"]["name"])
    data.name, data.dir = data.name or trained["data"]["name"], data.dir or trained["data"]["dir"]
    if not data.name:
        raise UserError(
            "the checkpoint was imported and names no data set: say on which to evaluate it, for "
            "example --config.data.name=arcade"
        )
    before = trained["data"].get("splits", resplit.BUILT)
    with data.unlocked():
        # Another data set has its own splits; a number held out of this one means nothing there.
        data.splits = data.get("splits") or (before if same else resplit.BUILT)
    dataset = datasets.open_or_build(data)
    if same and data.splits == before and trained.get("folds"):
        chosen = {key: trained[key] for key in ("labels", "draw", "folds", "fold")}
        label_ids = trained.get("label_ids", "")
        dataset, _ = datasets.labelled_subset(dataset, label_ids=label_ids, **chosen)
    return dataset


def _selected_on(trained: Mapping[str, Any], step: str) -> str:
    """The metric that chose the checkpoint, or '' where none did."""
    return str(trained["checkpoint"].get("best", "")) if step == "best" else ""


def print_summary(directory: pathlib.Path, *, title: str) -> None:
    """Prints the table of a summary.json."""
    summary = json.loads((directory / "summary.json").read_text())
    table = Table(title=f"{title}: {summary['n']} images, mean per image with 95 % interval")
    for name in ("metric", "mean", "95 % interval", "pooled"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for row in results.text_table(summary):
        table.add_row(*row)
    Console().print(table)
