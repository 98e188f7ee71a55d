"""Reads the checkpoint folders that Orbax wrote; every way of being damaged is one error.

In a checkpoints folder, `<step>/state/` holds the arrays (Orbax, OCDBT), `<step>/manifest/metadata`
names, checksums, config and preprocessing (JSON); `damaged-<step>/` was set aside by a resume and
may be deleted.
"""

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from absl import logging as absl_logging

from cmunet_jax.train.manifest import Damaged, Manifest, Unsupported, describe
from tfds_angio.errors import UserError

STATE = "state"
MANIFEST = "manifest"
_STEP = re.compile(r"0|[1-9][0-9]*")


class _NoOrbax(logging.Filter):
    """Drops what Orbax logs: its errors reach the user as ours, in one line.

    Of the writes that were under way when one failed, asyncio reports each with a traceback.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        abandoned = "exception was never retrieved" in record.getMessage()
        return "/orbax/" not in record.pathname.replace("\\", "/") and not abandoned


def silence_orbax() -> None:
    """Keeps Orbax's own log lines and tracebacks off the console; may be called repeatedly."""
    for logger in (absl_logging.get_absl_logger(), logging.getLogger("asyncio")):
        if not any(isinstance(f, _NoOrbax) for f in logger.filters):
            logger.addFilter(_NoOrbax())


def step_folders(directory: Path) -> dict[int, Path]:
    """All step folders of a checkpoints folder, damaged and empty ones included, oldest first.

    Raises:
      UserError: if the folder cannot be read.
    """
    try:
        names = [p for p in directory.iterdir() if _STEP.fullmatch(p.name) and p.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
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
    found = _read_arrays(folder / STATE, [p for p in wanted if 0 not in recorded[p].shape])
    for path in wanted:
        leaf = recorded[path]
        if 0 in leaf.shape:  # Orbax stores no empty arrays.
            found[path] = np.zeros(leaf.shape, jax.numpy.dtype(leaf.dtype))
        if describe(found[path]) != (leaf.dtype, leaf.shape):
            raise Damaged(f"{path} has another shape or dtype than was saved")
    manifest.find_damage(found)
    return {path: _place(found[path], sharding) for path, sharding in wanted.items()}


def _place(value: np.ndarray, sharding: Any) -> Any:
    if sharding is None:
        return value
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _read_arrays(folder: Path, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads whole arrays with TensorStore, from the layout that `handlers` pins for Orbax.

    Orbax's own reader abandons its event loop at the first damaged array, and the reads still
    under way then print tracebacks. It also has no use for host memory, where we verify.
    """
    base = {"driver": "file", "path": f"{folder}/"}
    # Holds the nodes of the key-value tree, which all arrays share.
    context = ts.Context({"cache_pool": {"total_bytes_limit": 100_000_000}})

    def spec(path: str) -> dict[str, Any]:
        name = path.replace("/", ".")
        return {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}

    def begin(path: str) -> Any:
        try:
            return ts.open(spec(path), open=True, read=True, context=context)
        except ValueError as error:  # As a name that TensorStore does not take.
            raise Damaged(f"{path} is not readable") from error

    def get(future: Any, path: str) -> Any:
        try:
            return future.result()
        except MemoryError:
            raise
        except Exception as error:  # Damage surfaces as ValueError and others; interrupts pass.
            raise Damaged(f"{path} is not readable") from error

    # All requests are made before the first answer is awaited, so that reads overlap.
    opening = [begin(path) for path in paths]
    reading = [get(f, path).read() for f, path in zip(opening, paths, strict=True)]
    return {path: np.asarray(get(f, path)) for f, path in zip(reading, paths, strict=True)}


def handlers() -> Any:
    """Orbax's handlers for the two items of a step, with the array layout spelled out."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    arrays = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)
    registry.add(STATE, ocp.args.PyTreeSave, arrays)
    registry.add(MANIFEST, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
    return registry


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


def of_the_disk(error: BaseException) -> bool:
    """Whether an error is one of the file system: full, over quota, read-only, failing."""
    chain = _chain(error)
    if any(isinstance(e, OSError) and not isinstance(e, ConnectionError) for e in chain):
        return True
    return any(_known(str(e)) for e in chain)  # TensorStore wraps them in a ValueError.


def reason(error: BaseException) -> str:
    """The innermost cause of an error in a few words on one line."""
    seen = _chain(error)
    system = [e for e in seen if isinstance(e, OSError) and e.strerror]
    if system:
        return str(system[0].strerror)
    text = next((str(e) for e in reversed(seen) if str(e).strip()), type(error).__name__)
    if phrase := _known(text):
        return phrase
    line = " ".join(text.split())
    return line if len(line) <= 160 else line[:157] + "..."


def _chain(error: BaseException) -> list[BaseException]:
    """An error and its causes, the innermost last."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        if isinstance(current, BaseExceptionGroup):
            current = current.exceptions[0]
        else:
            current = current.__cause__ or current.__context__
    return seen


def _known(text: str) -> str:
    """What the file system says, if the text quotes it; or ''."""
    known = ("No space left on device", "Disk quota exceeded", "File too large",
             "Read-only file system", "Permission denied", "Input/output error")  # fmt: skip
    return next((phrase for phrase in known if phrase.lower() in text.lower()), "")
