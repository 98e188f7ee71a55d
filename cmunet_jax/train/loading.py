"""Loads weights and what belongs to them from a checkpoint, without the code that trained them."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmunet_jax.train import store
from cmunet_jax.train.manifest import Damaged, Manifest, nest
from cmunet_jax.train.selection import best_step
from tfds_angio.errors import UserError
from tfds_angio.paths import absolute

_log = logging.getLogger(__name__)
_WEIGHTS = ("params", "batch_stats", "ema_params", "ema_batch_stats")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Weights as nested dicts of NumPy arrays, and what is needed to use them.

    Attributes:
      params, batch_stats: as trained.
      ema_params, ema_batch_stats: their moving averages, None if the run kept none.
      extra: the objective's own arrays if asked for, else None.
      config: the resolved configuration of the run.
      preprocessing: for `data.preprocessing.from_dict`.
      metrics: scalars saved with this step.
      versions: of the libraries that wrote it.
      digest: SHA-256 (hex) over arrays, config, preprocessing and step.
      step: optimiser steps done.
      path: the step folder.
    """

    params: dict[str, Any]
    batch_stats: dict[str, Any]
    ema_params: dict[str, Any] | None
    ema_batch_stats: dict[str, Any] | None
    extra: dict[str, Any] | None
    config: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    metrics: Mapping[str, float]
    versions: Mapping[str, str]
    digest: str
    step: int
    path: Path

    @property
    def short_digest(self) -> str:
        """The first 12 hex digits of the digest, for messages and tables."""
        return self.digest[:12]

    def weights(self, *, ema: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
        """(params, batch_stats): the moving averages if there are any and `ema`, else the last."""
        if ema and self.ema_params is not None:
            return self.ema_params, self.ema_batch_stats or {}
        return self.params, self.batch_stats


def load(path: str | Path, *, step: int | str | None = None, extra: bool = False) -> Loaded:
    """Loads one checkpoint.

    Args:
      path: a workdir, its checkpoints folder, or one step folder.
      step: a step number (an int or its digits), 'best' (by the metric the run selects by), or
        'latest', which is the default. A damaged latest or best one costs a warning, and the one
        before it is taken; a step asked for by number or folder is never replaced by another.
      extra: also load the objective's own arrays.

    Returns:
      Verified weights.

    Raises:
      UserError: if there is no such checkpoint, none is intact, or it has no preprocessing.
    """
    store.silence_orbax()
    if isinstance(step, str) and step.isdecimal():
        step = int(step)
    folders = _find(absolute(path), step)
    exact = isinstance(step, int) or len(folders) == 1
    reasons = []
    for folder in folders:
        try:
            return _read(folder, extra)
        except Damaged as error:
            reasons.append(f"{folder} is damaged: {error}")
            if not exact:
                _log.warning("the checkpoint %s. Trying the one before it.", reasons[-1])
    raise UserError(
        f"cannot load the checkpoint {'; '.join(reasons)}. "
        "Copy it back from a backup or choose another step."
    )


def _find(path: Path, step: int | str | None) -> list[Path]:
    """The candidates in order of preference."""
    if not path.exists():
        raise UserError(
            f"no checkpoint at {path}: the path does not exist. "
            "Give the workdir of a finished run, or one of its checkpoints/<step> folders."
        )
    if (path / store.MANIFEST).is_dir() or (path / store.STATE).is_dir():
        if step not in (None, "latest") and str(step) != path.name:
            raise UserError(f"{path} is one step folder: leave step={step!r} out.")
        return [path]
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    folders = store.step_folders(root) if root.is_dir() else {}
    if not folders:
        if path.name.isdigit() and path.is_dir():
            raise UserError(f"the checkpoint {path} is damaged: it is empty. Choose another step.")
        raise UserError(
            f"no checkpoint in {root}: it has no step folder. Did the run reach its first save?"
        )
    if step in (None, "latest"):
        return list(reversed(folders.values()))
    if step == "best":
        return _by_score(root, folders)
    if isinstance(step, bool) or not isinstance(step, int):
        raise UserError(f"step={step!r}: give 'latest', 'best' or a step number.")
    if step not in folders:
        raise UserError(f"no step {step} in {root}: it has {', '.join(map(str, folders))}.")
    return [folders[step]]


def _by_score(root: Path, folders: Mapping[int, Path]) -> list[Path]:
    manifests: list[Manifest] = []
    for folder in folders.values():
        try:
            manifests.append(store.read_manifest(folder))
        except Damaged as error:
            _log.warning("the checkpoint %s is damaged: %s. It is left out.", folder, error)
    selection = manifests[-1].selection if manifests else {"metric": None, "mode": "max"}
    name = selection["metric"]
    scores = {m.step: m.metrics.get(name, math.nan) for m in manifests} if name else {}
    ordered = []
    while (best := best_step(scores, str(selection["mode"]))) is not None:
        ordered.append(folders[best])
        del scores[best]
    if not ordered:
        why = f"none of them has the metric {name!r}" if name else "the run selected by no metric"
        raise UserError(f"no best checkpoint in {root}: {why}. Use step='latest' or a number.")
    return ordered


def _read(folder: Path, extra: bool) -> Loaded:
    manifest = store.read_manifest(folder)
    if not manifest.preprocessing:
        raise UserError(
            f"the checkpoint {folder} does not say how its images were preprocessed, and weights "
            "without preprocessing cannot be loaded: on other inputs they predict nothing. "
            "Train again with config.preprocessing set."
        )
    parts = (*_WEIGHTS, "extra") if extra else _WEIGHTS
    paths = [leaf.path for leaf in manifest.leaves if leaf.path.split("/")[0] in parts]
    leaves = store.read_leaves(folder, manifest, dict.fromkeys(paths))
    tree = nest(leaves, unescape=True)
    if "params" not in tree:
        raise UserError(f"the checkpoint {folder} holds no weights (no 'params').")
    ema = tree.get("ema_params")
    return Loaded(
        params=tree["params"],
        batch_stats=tree.get("batch_stats", {}),
        ema_params=ema,
        ema_batch_stats=None if ema is None else tree.get("ema_batch_stats", {}),
        extra=tree.get("extra", {}) if extra else None,
        config=manifest.config,
        preprocessing=manifest.preprocessing,
        metrics=manifest.metrics,
        versions=manifest.versions,
        digest=manifest.digest,
        step=manifest.step,
        path=folder,
    )
