"""The import stage: weights of PyTorch become a checkpoint of ours, in the layout of a training."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from cmunet_jax import config as config_lib
from cmunet_jax import objectives
from cmunet_jax.data import preprocessing
from cmunet_jax.data.preprocessing import Preprocessing
from cmunet_jax.interop import convert, importing
from cmunet_jax.interop.convert import Imported
from cmunet_jax.stages import export_header, record
from cmunet_jax.stages.staging import inside
from cmunet_jax.train import checkpoint, store
from tfds_angio.errors import UserError

REPORT = "import.json"
_FOLDER = "checkpoints"
_RELEASED = {"name": "paper", "size": 256}  # of files that tell no preprocessing


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path | None) -> int:
    """Imports `config.source` into `workdir`/checkpoints, and says what became of every tensor.

    Args:
      config: of this stage.
      workdir: where to; default runs/import_weights.

    Raises:
      UserError: if the file cannot be imported, the folder already holds a checkpoint, or it
        cannot be written. Then it is as it was.
    """
    if not config.source:
        raise UserError("config.source is empty: give the file, --config.source=weights.pth")
    config_lib.choose("config.one_output", config.one_output, convert.ONE_OUTPUT)
    workdir = workdir or record.default_workdir(config)
    _require_free(workdir, config)
    source = pathlib.Path(config.source).expanduser()
    imported, origin = importing.read(
        source, one_output=config.one_output, read_header=export_header.read
    )
    _require_expected(config, imported, source)
    export = origin.facts.get("export", {})
    chain, said = _preprocessing(config, export)
    told = dataclasses.asdict(origin) | {
        "layout": imported.layout,
        "preprocessing": chain.to_dict(),
        "preprocessing_from": said,
    }
    # What they were trained on is not known: no images are seen, and `imported` says why.
    facts = {"data": {}, "init_from": None, "seen": {}, "imported": told}
    with inside(workdir, "import") as staging:
        trained = _trained(config, imported, chain, export) | {"provenance": facts}
        _save(staging, trained, imported)
        record.write_json(staging / REPORT, _report(imported, told))
        record.write(staging, config, facts)
        loaded = checkpoint.load(staging)
        _move_in(staging, workdir)
    print(importing.summary(imported, origin))
    print(f"preprocessing {_short(chain)}: {said}")
    place = workdir / loaded.path.relative_to(staging)
    print(f"Written: {place} (digest {loaded.short_digest}) and {workdir / REPORT}")
    print(_next(imported))
    return 0


def _require_free(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Refuses to replace a checkpoint without being told to, and a training's in any case."""
    if not config.overwrite:
        record.check_workdir(workdir, config)
    if (workdir / record.FILE).is_file():
        stage = record.read(workdir)["config"].get("stage")
        if stage != config.stage:
            raise UserError(f"{workdir} holds a run of stage {stage}. Choose another --workdir.")
    known = (workdir / record.FILE).is_file() or store.step_folders(workdir / _FOLDER)
    if (workdir / REPORT).exists() and not known:
        raise UserError(
            f"{workdir / REPORT} is there, of no import: choose another --workdir or move it."
        )
    if store.step_folders(workdir / _FOLDER) and not config.overwrite:
        raise UserError(
            f"{workdir} holds a checkpoint already. Choose another --workdir, or replace it: "
            "--config.overwrite=True"
        )


def _require_expected(
    config: ml_collections.ConfigDict, imported: Imported, source: pathlib.Path
) -> None:
    """Compares what the config expects of the network with what the shapes tell."""
    for key in ("width", "up"):
        wanted, found = config[key], getattr(imported, key)
        if wanted and wanted != found:
            raise UserError(
                f"config.{key}={wanted}, but the network in {source} has {key} {found}: leave "
                f"config.{key} out, or import another file."
            )


def _preprocessing(
    config: ml_collections.ConfigDict, export: Mapping[str, Any]
) -> tuple[Preprocessing, str]:
    """What the weights go with, and who says so: the config first, then the file's own header."""
    asked = {key: value for key, value in config.preprocessing.items() if value is not None}
    if not export:
        chain = preprocessing.create(_RELEASED | asked)
        if asked:
            return chain, "as config.preprocessing says; the file tells none"
        return chain, (
            "the released chain, as the file tells none; for another give config.preprocessing"
        )
    of_file = preprocessing.create(export["preprocessing"])
    same = asked.get("name", of_file.name) == of_file.name
    chain = preprocessing.create((of_file.to_dict() if same else _RELEASED) | asked)
    if chain == of_file:
        return chain, "as the file says, an export of this project"
    return chain, (
        f"as config.preprocessing says, against the file's own ({_short(of_file)}), with which the "
        "weights were trained: expect other masks"
    )


def _short(chain: Preprocessing) -> str:
    return f"{chain.name} at {chain.size}²"


def _trained(
    config: ml_collections.ConfigDict,
    imported: Imported,
    chain: Preprocessing,
    export: Mapping[str, Any],
) -> dict[str, Any]:
    """The config by which the checkpoint is restored, as that of a training run."""
    dtype = export["network"]["dtype"] if export else "float32"
    model = {"width": imported.width, "dtype": dtype, "up": imported.up}
    # One file gives one digest, wherever it lies.
    kept = config_lib.to_dict(config) | {
        "source": pathlib.Path(config.source).name,
        "preprocessing": chain.to_dict(),
    }
    del kept["overwrite"]
    return kept | {
        "objective": objectives.default_options(imported.objective, "paper"),
        "model": model | {"fast": True, "remat": "none"},
    }


def _save(folder: pathlib.Path, trained: dict[str, Any], imported: Imported) -> None:
    state = {
        "step": np.zeros((), np.int32),
        "params": imported.params,
        "batch_stats": imported.batch_stats,
    }
    with checkpoint.Checkpointer(
        folder / _FOLDER, config=trained, preprocessing=trained["preprocessing"]
    ) as checkpointer:
        checkpointer.save(0, state)


def _move_in(staging: pathlib.Path, workdir: pathlib.Path) -> None:
    """Puts the results in their place, or all that was there back into its own.

    The checkpoint comes last: without one, the same command can be repeated.
    """
    aside = staging / "replaced"
    aside.mkdir()
    names = (record.FILE, REPORT, _FOLDER)
    undo: list[tuple[pathlib.Path, pathlib.Path]] = []
    try:
        for name in names:
            if (workdir / name).is_file() or (name == _FOLDER and (workdir / name).exists()):
                os.replace(workdir / name, aside / name)
                undo.append((aside / name, workdir / name))
        for name in names:
            os.replace(staging / name, workdir / name)
            undo.append((workdir / name, staging / name))
    except BaseException:
        for source, place in reversed(undo):
            os.replace(source, place)
        raise


def _report(imported: Imported, origin: dict[str, Any]) -> dict[str, Any]:
    return {
        "origin": origin,
        "objective": imported.objective,
        "width": imported.width,
        "up": imported.up,
        "mapped": dict(imported.mapped),
        "ignored": dict(imported.ignored),
        "notes": list(imported.notes),
    }


def _next(imported: Imported) -> str:
    """What can be done with it."""
    if imported.objective == "scratch":
        return "It segments: give it to configs/evaluate.py as config.checkpoint."
    return "It is a pre-training: give it to configs/finetune.py:preset=paper as config.init_from."
