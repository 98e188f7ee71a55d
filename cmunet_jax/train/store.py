"""Reading checkpoint folders through Orbax, with every way of being damaged turned into one error.

In a checkpoints folder, `<step>/state/` holds the arrays (Orbax, OCDBT), `<step>/manifest/metadata`
names, checksums, config and preprocessing (JSON); `damaged-<step>/` was set aside by a resume and
may be deleted.
"""

import json
import logging
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from cmunet_jax.train.manifest import Damaged, Manifest, Unsupported, describe, nest
from tfds_angio.errors import UserError

STATE = "state"
MANIFEST = "manifest"
_STEP = re.compile(r"0|[1-9][0-9]*")


class _NoOrbax(logging.Filter):
    """Drops what Orbax logs: its errors reach the user as ours, in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "/orbax/" not in record.pathname.replace("\\", "/")


def silence_orbax() -> None:
    """Keeps Orbax's own log lines and tracebacks off the console; may be called repeatedly."""
    logger = absl_logging.get_absl_logger()
    if not any(isinstance(f, _NoOrbax) for f in logger.filters):
        logger.addFilter(_NoOrbax())


def step_folders(directory: Path) -> dict[int, Path]:
    """All step folders of a checkpoints folder, damaged and empty ones included, oldest first.

    Raises:
      UserError: if the folder cannot be read.
    """
    try:
        names = [p for p in directory.iterdir() if _STEP.fullmatch(p.name) and p.is_dir()]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot read the checkpoints in {directory}: {reason(error)}") from error
    return {int(p.name): p for p in sorted(names, key=lambda p: int(p.name))}


def is_empty(folder: Path) -> bool:
    """Whether a step folder holds no file at all: nothing was ever saved in it."""
    return not any(p for p in folder.rglob("*") if not p.is_dir())


def read_manifest(folder: Path) -> Manifest:
    """Reads and verifies the manifest of a step folder.

    Raises:
      Damaged: with the reason.
      UserError: if the files may not be read, or a later version wrote them.
    """
    try:
        text = (folder / MANIFEST / "metadata").read_text(encoding="utf-8")
        manifest = Manifest.from_json(json.loads(text))
    except FileNotFoundError as error:
        missing = "it is empty" if is_empty(folder) else "its manifest is missing"
        raise Damaged(missing) from error
    except PermissionError as error:
        raise UserError(f"cannot read the checkpoint {folder}: {reason(error)}") from error
    except Unsupported as error:
        raise UserError(
            f"cannot read the checkpoint {folder}: {error}. Upgrade cmunet-jax."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged("its manifest is not readable") from error
    if str(manifest.step) != folder.name:
        raise Damaged(f"it holds step {manifest.step}")
    return manifest


def read_leaves(folder: Path, manifest: Manifest, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Restores and verifies the arrays named in `wanted`.

    Args:
      folder: a step folder.
      manifest: its manifest.
      wanted: {path: sharding}; None as sharding gives a NumPy array in host memory.

    Returns:
      {path: jax.Array or np.ndarray}, each equal bit for bit to what was saved.

    Raises:
      Damaged: with the reason.
    """
    recorded = {leaf.path: leaf for leaf in manifest.leaves}
    empty = {p for p in wanted if 0 in recorded[p].shape}  # Orbax does not store these.
    arguments = {
        path: _restore_args(recorded[path].shape, sharding)
        for path, sharding in wanted.items()
        if path not in empty
    }
    found = _restore(folder / STATE, arguments) if arguments else {}
    for path in empty:
        zeros = np.zeros(recorded[path].shape, jax.numpy.dtype(recorded[path].dtype))
        found[path] = zeros if wanted[path] is None else jax.device_put(zeros, wanted[path])
    for path, leaf in found.items():
        if describe(leaf) != (recorded[path].dtype, recorded[path].shape):
            raise Damaged(f"{path} has another shape or dtype than was saved")
    manifest.find_damage(found)
    return found


def _restore_args(shape: tuple[int, ...], sharding: Any) -> ocp.RestoreArgs:
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding, global_shape=shape)


def _restore(folder: Path, arguments: Mapping[str, ocp.RestoreArgs]) -> dict[str, Any]:
    """Calls Orbax, whose errors on damaged files are of many types."""
    request = ocp.args.PyTreeRestore(
        item=nest({path: 0 for path in arguments}),
        restore_args=nest(arguments),
        partial_restore=True,
    )
    try:
        with (
            warnings.catch_warnings(),
            ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
        ):
            warnings.simplefilter("ignore")
            tree = checkpointer.restore(folder.absolute(), args=request)
        return {path: _at(tree, path) for path in arguments}
    except MemoryError:
        raise
    except Exception as error:  # KeyboardInterrupt and SystemExit are no Exception.
        if "RESOURCE_EXHAUSTED" in str(error):  # The device is full; the files are not to blame.
            raise
        raise Damaged(f"its arrays are not readable ({reason(error)})") from error


def _at(tree: Any, path: str) -> Any:
    for part in path.split("/"):
        tree = tree[part]
    return tree


def set_aside(folder: Path) -> None:
    """Moves a damaged step out of the way of later saves of the same step; deletes an empty one.

    Raises:
      UserError: if the folder cannot be moved.
    """
    try:
        if is_empty(folder):
            shutil.rmtree(folder)
            return
        target = folder.with_name(f"damaged-{folder.name}")
        count = 1
        while target.exists():
            count += 1
            target = folder.with_name(f"damaged-{folder.name}-{count}")
        folder.rename(target)
    except OSError as error:
        raise UserError(
            f"cannot move the damaged checkpoint {folder} aside: {reason(error)}. "
            "Delete or move it, then resume."
        ) from error


def reason(error: BaseException) -> str:
    """The innermost cause of an error in a few words on one line."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        if isinstance(current, BaseExceptionGroup):
            current = current.exceptions[0]
        else:
            current = current.__cause__ or current.__context__
    system = [e for e in seen if isinstance(e, OSError) and e.strerror]
    if system:
        return str(system[0].strerror)
    text = next((str(e) for e in reversed(seen) if str(e).strip()), type(error).__name__)
    known = ("No space left on device", "Disk quota exceeded", "File too large",
             "Read-only file system", "Permission denied", "Input/output error")  # fmt: skip
    for phrase in known:
        if phrase.lower() in text.lower():
            return phrase
    line = " ".join(text.split())
    return line if len(line) <= 160 else line[:157] + "..."
