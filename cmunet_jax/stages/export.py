"""The export stage: a fine-tuned checkpoint as files that other programs read."""

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from scipy.special import expit

from cmunet_jax import config as config_lib
from cmunet_jax import objectives
from cmunet_jax.data.preprocessing import Preprocessing
from cmunet_jax.interop import export_loader, export_stablehlo, safetensors_file
from cmunet_jax.stages import export_header, record, segment
from cmunet_jax.stages.segment import Segmenter
from cmunet_jax.stages.staging import inside
from cmunet_jax.train import sharding
from tfds_angio.errors import UserError

MANIFEST = "export.json"
FILES = {
    "stablehlo": ("model.stablehlo", "load.py"),
    "safetensors": ("model.safetensors",),
    "onnx": ("model.onnx",),
}
"""config.formats -> the files that it gives."""
_NEEDED = {"onnx": ("torch", "onnx", "onnxscript", "onnxruntime")}
_PROBES = ((2, 160, 224, False), (1, 300, 260, False), (2, 300, 260, True))
"""Frames, rows, columns, and whether a round shutter darkens the corners."""
_TOLERANCE = 1e-4


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path | None) -> int:
    """Writes `config.checkpoint` in the formats asked for, checked, and export.json beside them.

    Args:
      config: of this stage.
      workdir: where to; default the folder `export` in the workdir of the training.

    Raises:
      UserError: if the checkpoint cannot be used, a format is not known or lacks its library, the
        files exist already or cannot be written. Then nothing is left behind.
    """
    formats = _formats(config.formats)
    mesh = sharding.create_mesh()
    segmenter = segment.restore(
        config.checkpoint, step=str(config.step), weights=config.weights, mesh=mesh
    )
    if "onnx" in formats and segmenter.loaded.config["model"]["up"] != "transposed":
        raise UserError(
            "config.formats: onnx is for networks with transposed convolutions, and this one was "
            "trained with model.up='bilinear': leave it out with "
            "--config.formats=stablehlo,safetensors"
        )
    target = workdir or segmenter.loaded.path.parent.parent / "export"
    _check_free(target, overwrite=config.overwrite)
    with inside(target, "export") as staging:
        facts = _facts(segmenter)
        checks = {}
        for name in formats:
            print(f"writing {', '.join(FILES[name])}", flush=True)
            checks[name] = _WRITERS[name](segmenter, facts, staging)
        content = facts | {
            "files": {path.name: _describe(path) for path in sorted(staging.iterdir())},
            "checks": checks,
        }
        (staging / MANIFEST).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        _move_in(staging, target)
    for name, file in content["files"].items():
        print(f"{file['bytes']:>12,} bytes  {name}")
    print(target / MANIFEST)
    return 0


def _formats(text: str) -> list[str]:
    """The formats of config.formats, in our order; fails before anything is loaded."""
    chosen = [part.strip() for part in str(text).split(",") if part.strip()]
    for name in chosen:
        config_lib.choose("config.formats", name, tuple(FILES))
        missing = [m for m in _NEEDED.get(name, ()) if importlib.util.find_spec(m) is None]
        if missing:
            raise UserError(
                f"config.formats: {name} needs {', '.join(missing)}, which is not installed: "
                f"pip install '.[{name}]', or leave {name} out."
            )
    if not chosen:
        raise UserError(f"config.formats is empty. Choose some of: {', '.join(FILES)}.")
    return [name for name in FILES if name in chosen]


def _check_free(target: pathlib.Path, *, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"--workdir {target} is a file. Choose a folder.")
    names = [MANIFEST, *(name for files in FILES.values() for name in files)]
    there = [name for name in names if (target / name).exists()]
    if there and not overwrite:
        raise UserError(
            f"{target / there[0]} exists: replace it with --config.overwrite=True, or choose "
            "another --workdir."
        )


def _move_in(staging: pathlib.Path, target: pathlib.Path) -> None:
    """The manifest goes first and comes last, so that it never speaks of other files."""
    (target / MANIFEST).unlink(missing_ok=True)
    for name in (name for files in FILES.values() for name in files):
        (target / name).unlink(missing_ok=True)
        if (staging / name).exists():
            os.replace(staging / name, target / name)
    os.replace(staging / MANIFEST, target / MANIFEST)


def _facts(segmenter: Segmenter) -> dict[str, Any]:
    """What every file says of its origin. No path: the files travel."""
    loaded = segmenter.loaded
    versions = record.versions()
    for name in _NEEDED["onnx"]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "format": export_header.FORMAT,
        "checkpoint": {"digest": loaded.digest, "step": loaded.step, "weights": segmenter.kind},
        "data": loaded.config.get("provenance", {}).get("data"),
        "network": {key: loaded.config["model"][key] for key in ("width", "up", "dtype")},
        "preprocessing": dict(loaded.preprocessing),
        "versions": versions,
    }


def _describe(path: pathlib.Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _host_weights(segmenter: Segmenter) -> tuple[Any, Any]:
    return segmenter.loaded.weights(ema=segmenter.kind == "ema")


def _write_stablehlo(
    segmenter: Segmenter, facts: Mapping[str, Any], folder: pathlib.Path
) -> dict[str, Any]:
    objective: Any = objectives.create(config_lib.from_dict(segmenter.loaded.config))
    params, batch_stats = _host_weights(segmenter)
    weights = {"params": params, "batch_stats": batch_stats}
    exported = export_stablehlo.export(objective.network, weights, facts["preprocessing"])
    model, loader = (folder / name for name in FILES["stablehlo"])
    export_stablehlo.write(exported, model)
    shutil.copyfile(export_loader.__file__, loader)
    return {
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "input": "frames [batch, height, width], any size; uint8, uint16 or float",
        "output": "probability of artery [batch, height, width]",
        **compare(export_loader.load(model), segmenter),
    }


def compare(
    function: Callable[[np.ndarray], np.ndarray], segmenter: Segmenter
) -> dict[str, float | str]:
    """Differences between an exported program and ours on made-up frames.

    Args:
      function: frames [B, H, W] to probabilities [B, H, W].
      segmenter: the restored checkpoint.

    Raises:
      UserError: if they disagree by more than the preprocessing's rounding can explain.
    """
    largest, means, dice = 0.0, [], []
    for frames in _probes():
        ours = probabilities(segmenter.forward, segmenter.weights, segmenter.preprocessing, frames)
        theirs = function(frames)
        largest = max(largest, float(np.abs(ours - theirs).max()))
        means.append(float(np.abs(ours - theirs).mean()))
        both = np.sum((ours > 0.5) & (theirs > 0.5))
        dice.append(float((2 * both + 1) / (np.sum(ours > 0.5) + np.sum(theirs > 0.5) + 1)))
    found = {"largest_difference": largest, "mean_difference": max(means), "dice": min(dice)}
    if not max(means) < 0.01:
        raise UserError(
            f"the exported program differs from the network by {max(means):.3g} on average: "
            "nothing was written. Please report it with the versions of jax and jaxlib."
        )
    return found | {"on": "synthetic frames", "device": jax.default_backend()}


def _probes() -> Iterator[np.ndarray]:
    """Made-up frames [B, H, W], uint8, and those with a shutter as uint16 too."""
    rng = np.random.default_rng(0)
    for count, height, width, shutter in _PROBES:
        walk = rng.normal(size=(count, height, width)).cumsum(1).cumsum(2)
        walk -= walk.min((1, 2), keepdims=True)
        levels = walk / walk.max((1, 2), keepdims=True)
        if not shutter:
            yield (255 * levels).astype(np.uint8)
            continue
        rows, columns = np.ogrid[:height, :width]
        away = np.hypot(rows - height / 2, columns - width / 2) / min(height, width)
        levels = np.where(away < 0.55, 0.3 + 0.7 * levels, 0.03 * levels)
        yield (255 * levels).astype(np.uint8)
        yield (4095 * levels).astype(np.uint16)


def probabilities(
    forward: segment.Forward, weights: Any, chain: Preprocessing, frames: np.ndarray
) -> np.ndarray:
    """Native probabilities float32 [B, H, W] of frames [B, H, W], by our own chain."""
    prepared = [chain.apply(frame) for frame in frames]
    images = np.stack([one.float() for one in prepared])[..., None]
    padding = -len(images) % jax.device_count()
    padded: Any = np.pad(images, [(0, padding)] + [(0, 0)] * 3)
    logits = np.asarray(forward(weights, padded))[: len(frames)]
    margins = logits[..., 1:] - logits[..., :1]
    made = []
    for margin, one in zip(margins, prepared, strict=True):
        native = chain.restore(margin, one.geometry, fill=np.nan)[..., 0]
        made.append(np.where(np.isnan(native), 0, expit(native)))
    return np.stack(made)


def _write_safetensors(
    segmenter: Segmenter, facts: Mapping[str, Any], folder: pathlib.Path
) -> dict[str, Any]:
    params, batch_stats = _host_weights(segmenter)
    path = folder / FILES["safetensors"][0]
    safetensors_file.write(path, params, batch_stats, export_header.write(facts))
    again = safetensors_file.read(path)[:2]
    same = jax.tree.map(np.array_equal, (params, batch_stats), again)
    if not jax.tree.all(same):
        raise UserError(f"{path.name} does not hold what was written: is the disk damaged?")
    return {"round_trip": "equal bit for bit", "names": "PyTorch's"}


def _write_onnx(
    segmenter: Segmenter, facts: Mapping[str, Any], folder: pathlib.Path
) -> dict[str, Any]:
    onnx_file = importlib.import_module("cmunet_jax.interop.pytorch.onnx_file")
    params, batch_stats = _host_weights(segmenter)
    path, size = folder / FILES["onnx"][0], facts["preprocessing"]["size"]
    onnx_file.write(path, params, batch_stats, size=size, metadata=export_header.write(facts))
    config = config_lib.from_dict(segmenter.loaded.config)
    config.model.dtype = "float32"  # ONNX computes in float32 whatever the training did
    forward = segment.make_forward(objectives.create(config), sharding.create_mesh())
    noise = np.random.default_rng(0).normal(size=(jax.device_count(), size, size, 1))
    images: Any = noise.astype(np.float32)
    ours = np.asarray(forward(segmenter.weights, images))
    theirs = onnx_file.Session(path)(images[..., 0])
    difference = float(np.abs(ours - theirs).max())
    scale = max(1.0, float(np.abs(ours).max()))
    if not difference <= _TOLERANCE * scale:
        raise UserError(
            f"the ONNX network differs from ours by {difference:.3g} on logits up to {scale:.3g}: "
            "nothing was written. Please report it with the versions of torch and onnxruntime."
        )
    return {
        "input": "prepared images float32 [batch, 1, rows, columns], rows and columns in 16s",
        "output": "logits [batch, 2, rows, columns]; artery where the second is larger",
        "preprocessing": "not included",
        "largest_difference": difference,
        "largest_logit": scale,
    }


_WRITERS = {
    "stablehlo": _write_stablehlo,
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
}
