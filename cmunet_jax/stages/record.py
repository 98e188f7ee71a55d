"""What a run writes down about itself, and the guard against mixing two runs in one folder."""

import contextlib
import json
import os
import pathlib
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import ml_collections

from cmunet_jax import config as config_lib
from cmunet_jax.stages import revision
from cmunet_jax.train import processes
from tfds_angio.base import AngioDataset
from tfds_angio.errors import UserError

FILE = "config.json"
_PACKAGES = ("cmunet-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """Returns the versions, the source and the hardware that a result depends on."""
    found = {name: metadata.version(name) for name in _PACKAGES}
    device = jax.devices()[0]
    return found | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "cpus": str(os.cpu_count()),
        "source": revision.source(),
    }


def default_workdir(config: ml_collections.ConfigDict) -> pathlib.Path:
    """Returns runs/<stage> in the current folder."""
    return pathlib.Path("runs", config.stage).absolute()


def check_workdir(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Refuses a workdir that holds a run with another config.

    Raises:
      UserError: naming the first difference.
    """
    path = workdir / FILE
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file. Choose a folder.")
    parent = next(p for p in [workdir, *workdir.parents] if p.exists())
    if not parent.is_dir():
        raise UserError(f"--workdir {workdir} lies in {parent}, which is a file. Choose a folder.")
    if not os.access(parent, os.W_OK):
        raise UserError(f"--workdir {workdir} cannot be written ({parent} is read-only).")
    if not path.is_file():
        return
    _require_same_config(f"{workdir} holds a run", read(workdir)["config"], config)


def check_checkpoint(
    workdir: pathlib.Path, step: int, saved: Mapping[str, Any], config: ml_collections.ConfigDict
) -> None:
    """Refuses a checkpoint of another config than the run's, `saved` (a manifest's).

    Raises:
      UserError: naming the first difference.
    """
    own = {key: value for key, value in saved.items() if key != "provenance"}
    _require_same_config(f"{workdir} holds a checkpoint (step {step})", own, config)


def _require_same_config(
    what: str, before: Mapping[str, Any], config: ml_collections.ConfigDict
) -> None:
    changed = [
        line
        for line in config_lib.differences(before, config_lib.to_dict(config))
        if not line.startswith(config_lib.FREE)
    ]
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise UserError(
            f"{what} with another config: {changed[0]}{more}. "
            "Choose another --workdir, or delete that folder."
        )


def read(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the content of config.json.

    Raises:
      UserError: if it is damaged.
    """
    path = workdir / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = [content["config"], content.get("data", {})]
        if not all(isinstance(part, dict) for part in parts):
            raise TypeError("not what a run writes")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged. Move {workdir} away or choose another --workdir."
        ) from error
    return content


def read_facts(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns what an earlier command of this run wrote beside its config, or {}.

    Raises:
      UserError: if it is damaged.
    """
    content = read(workdir) if (workdir / FILE).is_file() else {}
    return {
        key: content[key] for key in ("data", "init_from", "seen", "label_ids") if key in content
    }


def check_data(workdir: pathlib.Path, facts: dict[str, Any], dataset: AngioDataset) -> None:
    """Refuses to continue a run on data that was built anew with other content.

    Raises:
      UserError: naming the data set and the remedy.
    """
    before = facts.get("data", {}).get("fingerprint", dataset.fingerprint)
    if before != dataset.fingerprint:
        raise UserError(
            f"{workdir} was started on another build of {dataset.name} (fingerprint {before[:12]}, "
            f"now {dataset.fingerprint[:12]}). Choose another --workdir to train on the new one."
        )


def write(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, facts: dict[str, Any]
) -> dict[str, Any]:
    """Writes config.json (config, versions, command, facts) and returns its content.

    With several processes the first one writes.
    """
    content = {
        "config": config_lib.to_dict(config),
        "versions": versions(),
        "command": " ".join(["python -m cmunet_jax.main", *sys.argv[1:]]),
        **facts,
    }
    if processes.is_first():
        write_json(workdir / FILE, content)
    return content


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes JSON atomically; a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None
