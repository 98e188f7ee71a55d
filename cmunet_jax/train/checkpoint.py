"""Saves and restores the complete training state, and loads weights for everyone else.

`Checkpointer` belongs to the training loop. `load` (loading.py, also importable from here) belongs
to consumers: fine-tuning, evaluation, prediction.
"""

import dataclasses
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from cmunet_jax.train import processes, store
from cmunet_jax.train.loading import Loaded, load
from cmunet_jax.train.manifest import (
    Damaged,
    Manifest,
    as_json,
    describe,
    hash_leaves,
    leaves_by_path,
    nest,
    versions,
)
from cmunet_jax.train.selection import best_step
from tfds_angio.errors import UserError
from tfds_angio.paths import absolute

__all__ = ["Checkpointer", "Loaded", "Restored", "load"]

_log = logging.getLogger(__name__)
_LISTED = 12  # names shown per kind of mismatch
# Orbax reads the wall clock to see whether a save, or a thread of it, takes too long, and gives the
# save up when that clock is set forward meanwhile. Several processes need the limit, to notice one
# that has died.
_PATIENT = ocp.AsyncOptions(
    timeout_secs=100 * 365 * 24 * 3600, create_directories_asynchronously=False
)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A training state as it was saved; `meta` is the checkpoint's verified manifest."""

    state: Any
    step: int
    meta: Manifest


class _LatestAndBest:
    """Keeps the newest N and the best. (Orbax's best_fn with max_to_keep deletes the newest.)

    Metrics come from our manifests rather than from Orbax's metric files, which a damaged
    checkpoint may have left unreadable.
    """

    def __init__(self, latest: int, mode: str):
        self.scores: dict[int, float] = {}
        self._latest = latest
        self._mode = mode

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax's PreservationPolicy protocol; `checkpoints` are sorted by step."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = best_step({s: self.scores[s] for s in steps if s in self.scores}, self._mode)
        return [s in steps[-self._latest :] or s == best for s in steps]


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, without its own look at SIGTERM: the loop alone decides when to stop.

    Of several processes each asks jax once a step, and jax compares the number they ask with by
    equality. Orbax asks in between, with a number of its own and from its own thread, so that the
    step to stop at could be missed. It then also subtracts times with and without a zone. No option
    turns this off; every save of ours is forced, at the stop too.
    """

    def reached_preemption(self, step: int) -> bool:
        """Never."""
        del step
        return False


class Checkpointer:
    """Saves a run's state in the background and restores the latest good one.

    A step exists once its folder has its final name, so a kill at any moment costs at most the
    steps since the last completed save. Not to be shared between runs.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        config: Mapping[str, Any],
        preprocessing: Mapping[str, Any],
        keep_latest: int = 2,
        best_metric: str | None = None,
        best_mode: Literal["max", "min"] = "max",
    ):
        """Touches no file yet.

        Args:
          directory: the run's checkpoints folder; made at the first save.
          config: the resolved configuration, JSON values.
          preprocessing: `Preprocessing.to_dict()`, stored with every checkpoint.
          keep_latest: how many of the newest checkpoints to keep, at least 1.
          best_metric: name in `metrics` of `save`; its best checkpoint is kept too.
          best_mode: whether the largest or the smallest value is best.

        Raises:
          ValueError: for an impossible policy.
          TypeError: if config or preprocessing are not JSON.
        """
        if keep_latest < 1 or best_mode not in ("max", "min"):
            raise ValueError(f"keep_latest={keep_latest!r}, best_mode={best_mode!r}")
        store.silence_orbax()
        self.directory = absolute(directory)
        self._config = as_json(config, what="the config")
        self._preprocessing = as_json(preprocessing, what="the preprocessing")
        self._selection = {"metric": best_metric, "mode": best_mode}
        self._policy = _LatestAndBest(keep_latest, best_mode)
        self._opened: ocp.CheckpointManager | None = None
        self._saving = 0  # the step of the latest save that was started

    def save(
        self,
        step: int,
        state: Any,
        *,
        metrics: Mapping[str, float] | None = None,
        force: bool = False,
    ) -> bool:
        """Starts saving a state; returns when the state may be changed or donated.

        Args:
          step: optimiser steps done, at least 0.
          state: a pytree of arrays and Python numbers (without typed PRNG keys).
          metrics: scalars at this step; `best_metric` is read from them and may be absent.
          force: save even if a later step exists. An existing step is never overwritten.

        Returns:
          Whether a save was started; False if the step (or, without force, a later one) exists.

        Raises:
          UserError: if this or the previous save could not be written (disk full, read-only).
            The state in memory and the earlier checkpoints are untouched.
        """
        manager = self._manager()
        steps = set(manager.all_steps())
        if step in steps or (steps and step < max(steps) and not force):
            return False
        leaves = {p: _own(leaf) for p, leaf in leaves_by_path(state).items()}
        scalars = {name: float(value) for name, value in (metrics or {}).items()}
        manifest = Manifest(
            step=int(step),
            leaves=hash_leaves(leaves),
            config=self._config,
            preprocessing=self._preprocessing,
            versions=versions(),
            metrics=scalars,
            selection=self._selection,
        )
        stored = {p: leaf for p, leaf in leaves.items() if np.size(leaf)}
        items = ocp.args.Composite(
            **{
                store.STATE: ocp.args.PyTreeSave(nest(stored)),
                store.MANIFEST: ocp.args.JsonSave(manifest.to_json()),
            }
        )
        self.wait()  # An error of the previous save is reported under its own step.
        self._remember(manifest)
        self._saving = int(step)
        try:
            manager.save(int(step), args=items, force=True)
        except Exception as error:
            raise self._failure(error) from error
        return True

    def wait(self) -> None:
        """Blocks until the save in progress is on disk.

        Raises:
          UserError: if it could not be written.
        """
        if self._opened is None:
            return
        try:
            self._opened.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Waits for the save in progress and ends Orbax's threads.

        Raises:
          UserError: if it could not be written.
        """
        self.wait()
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def restore(self, abstract_state: Any) -> Restored | None:
        """Restores the latest good checkpoint.

        A damaged one costs a warning line and is moved aside, so that its step can be saved again.

        Args:
          abstract_state: the state, or jax.ShapeDtypeStructs like it; their shardings (where
            given) say where the arrays go.

        Returns:
          The state, or None if nothing was ever saved here.

        Raises:
          UserError: if the checkpoint belongs to another model (names, shapes and dtypes are
            listed), or if all checkpoints are damaged.
        """
        self.wait()
        wanted = leaves_by_path(abstract_state)
        damaged: dict[Path, str] = {}
        folders = store.step_folders(self.directory)
        processes.require_same({"the checkpoints in --workdir": str(sorted(folders))})
        for folder in reversed(folders.values()):
            result = self._read(folder, wanted)
            if isinstance(result, str):
                damaged[folder] = result
                _warn(f"the checkpoint {folder} is damaged: {result}. Trying the previous one.")
                continue
            manifest, leaves = result
            self._drop(damaged)
            values = [_like(wanted[path], leaves[path]) for path in wanted]
            state = jax.tree_util.tree_unflatten(jax.tree.structure(abstract_state), values)
            return Restored(state, manifest.step, manifest)
        if any(not store.is_empty(folder) for folder in damaged):
            raise UserError(
                f"all checkpoints in {self.directory} are damaged "
                f"({'; '.join(f'{f.name}: {why}' for f, why in damaged.items())}). "
                "Copy a good one back from a backup, or move the folder away to start again."
            )
        self._drop(damaged)
        return None

    def _read(
        self, folder: Path, wanted: Mapping[str, Any]
    ) -> tuple[Manifest, dict[str, Any]] | str:
        """A verified manifest and its leaves, or why there are none; alike in all processes."""
        result: tuple[Manifest, dict[str, Any]] | str
        try:
            manifest = store.read_manifest(folder)
            _require_match(folder, manifest, wanted)
            result = (manifest, store.read_leaves(folder, manifest, _shardings(wanted)))
        except Damaged as error:
            result = str(error)
        if jax.process_count() > 1:
            good = multihost_utils.process_allgather(np.asarray(not isinstance(result, str)))
            if not good.all() and not isinstance(result, str):
                result = "another process could not read it"
        return result

    def _drop(self, damaged: Mapping[Path, str]) -> None:
        """Clears the way for saving these steps again."""
        if processes.is_first():
            for folder in damaged:
                store.set_aside(folder)
        processes.meet("damaged checkpoints set aside")  # All must list the folder after that.
        if damaged and self._opened is not None:
            self._opened.reload()

    def _manager(self) -> ocp.CheckpointManager:
        """Opens Orbax's manager on what is on disk, without trusting any of it."""
        if self._opened is not None:
            return self._opened
        unreadable: dict[Path, str] = {}
        for folder in store.step_folders(self.directory).values():
            try:
                self._remember(store.read_manifest(folder))
                unreadable.clear()  # Older ones are no obstacle; the policy removes them.
            except Damaged as error:
                unreadable[folder] = str(error)
        for folder, why in unreadable.items():
            _warn(f"the checkpoint {folder} is damaged: {why}. It was moved aside.")
        self._drop(unreadable)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            cleanup_tmp_directories=True,
            lightweight_initialize=True,
            async_options=_PATIENT if jax.process_count() == 1 else None,
        )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._opened = _Manager(
                self.directory, options=options, handler_registry=store.handlers()
            )
        except OSError as error:
            raise UserError(
                f"cannot write checkpoints to {self.directory}: {store.reason(error)}. "
                "Choose another --workdir or make this one writable."
            ) from error
        return self._opened

    def _remember(self, manifest: Manifest) -> None:
        score = manifest.metrics.get(self._selection["metric"] or "", math.nan)
        self._policy.scores[manifest.step] = score

    def _failure(self, error: Exception) -> Exception:
        """Turns a failed save into a message; the next save starts from a clean manager."""
        if isinstance(error, MemoryError):
            return error
        step = self._saving
        self._opened = None
        self._policy.scores.pop(step, None)
        for leftover in self.directory.glob(f"{step}.orbax-checkpoint-tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)  # The space is needed; resume retries it.
        intact = [s for s in store.step_folders(self.directory) if s != step]
        kept = f"Earlier checkpoints are intact (latest: step {max(intact)})." if intact else ""
        why, remedy = store.reason(error), "Free space or make the folder writable, then resume."
        if not store.of_the_disk(error):
            why, remedy = f"{type(error).__name__}: {why}", "The same command resumes."
        return UserError(
            f"the checkpoint of step {step} could not be written to {self.directory}: {why}. "
            f"{remedy} {kept}".rstrip()
        )


def _warn(message: str) -> None:
    if processes.is_first():
        _log.warning("%s", message)


def _own(leaf: Any) -> Any:
    """Keeps device arrays (Orbax copies them before save returns); copies what may change."""
    return leaf if isinstance(leaf, jax.Array) else np.array(leaf)


def _like(wanted: Any, value: Any) -> Any:
    """Python numbers come back as such; arrays as they are."""
    return type(wanted)(value.item()) if isinstance(wanted, bool | int | float) else value


def _shardings(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Where each leaf goes; NumPy arrays and Python numbers stay on the host (None)."""
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        path: (leaf.sharding or default)
        if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
        else None
        for path, leaf in wanted.items()
    }


def _require_match(folder: Path, manifest: Manifest, wanted: Mapping[str, Any]) -> None:
    """Compares names, shapes and dtypes of a checkpoint and a model, before any array is read."""
    saved = {leaf.path: (leaf.dtype, leaf.shape) for leaf in manifest.leaves}
    model = {path: describe(leaf) for path, leaf in wanted.items()}
    text = lambda kind: f"{kind[0]}{list(kind[1])}"  # noqa: E731
    groups = {
        "only in the model": [f"{p} {text(model[p])}" for p in model if p not in saved],
        "only in the checkpoint": [f"{p} {text(saved[p])}" for p in saved if p not in model],
        "different": [
            f"{p}: checkpoint {text(saved[p])}, model {text(model[p])}"
            for p in model
            if p in saved and saved[p] != model[p]
        ],
    }
    lines = []
    for title, names in groups.items():
        if names:
            more = [f"... and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
            lines += [f"  {title} ({len(names)}):"]
            lines += [f"    {name}" for name in names[:_LISTED] + more]
    if lines:
        raise UserError(
            f"the checkpoint {folder} belongs to another model or optimiser than the config "
            "describes. Resume with the config it was saved with, or choose another --workdir.\n"
            + "\n".join(lines)
        )
