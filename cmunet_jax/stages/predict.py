"""The predict stage: users' angiograms to masks, probabilities, pictures and DICOM SEG."""

import functools
import pathlib
import sys
import time

import jax
import ml_collections
import numpy as np

from cmunet_jax import __version__
from cmunet_jax import config as config_lib
from cmunet_jax.imaging import inputs
from cmunet_jax.predict import masks, network, outputs, windows
from cmunet_jax.predict import run as predict
from cmunet_jax.stages import record, segment
from cmunet_jax.train import estimate, sharding
from tfds_angio.base import default_workers
from tfds_angio.errors import UserError

_LEAST_TILE = 16  # Smaller windows see nothing, and there are a million of them.
EXIT_NO_SEGMENTATION, EXIT_SOME_FAILED = 1, 3


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path | None) -> int:
    """Predicts `config.input` and writes masks, pictures and predictions.json.

    Args:
      config: of this stage.
      workdir: where to; default runs/predictions.

    Returns:
      0; EXIT_SOME_FAILED if an input could not be used while others could, else
      EXIT_NO_SEGMENTATION if a DICOM SEG that the config asks for could not be written.

    Raises:
      UserError: on a bad config or checkpoint, if no input can be used, or if the workdir holds
        results or cannot be written.
    """
    workdir = workdir or pathlib.Path("runs", "predictions").absolute()
    started = time.perf_counter()
    found = _find(config, workdir)
    with outputs.stage(workdir, overwrite=config.overwrite) as staging:
        mesh = sharding.create_mesh()
        segmenters = [
            segment.restore(path, step=str(config.step), weights=config.weights, mesh=mesh)
            for path in _checkpoints(config.checkpoint)
        ]
        options = _options(config, segmenters, segment.round_up(config.batch_size, mesh))
        networks = [_network(segmenter) for segmenter in segmenters]
        with estimate.memory_errors(batch_size=config.batch_size):
            for one in networks:  # compiled first: not after minutes of reading
                side = one.preprocessing.size
                shape = (options.how.batch_size, side, side, 1)
                jax.block_until_ready(one.forward(np.zeros(shape, np.float32)))
            ready = time.perf_counter()
            workers = config.workers or default_workers()
            outcome = predict.run(found, networks, options, staging, workers=workers)
        _report(outcome)
        if not outcome.cases:
            raise UserError(
                f"none of the {len(outcome.failed)} inputs can be used: nothing is written"
            )
        staging.publish(
            {
                "checkpoints": [_provenance(segmenter) for segmenter in segmenters],
                "options": _public(config),
                "versions": record.versions(),
                "cases": outcome.cases,
                "failed": [{"input": f.input, "reason": f.reason} for f in outcome.failed],
            }
        )
    seconds = time.perf_counter() - ready
    print(
        f"{outcome.frames} frames of {len(outcome.cases)} inputs in {seconds:.1f} s "
        f"({outcome.frames / seconds:.2f} frames/s), after {ready - started:.1f} s to start."
    )
    print(f"Written: {workdir / 'predictions.json'}")
    if outcome.failed:
        return EXIT_SOME_FAILED
    return EXIT_NO_SEGMENTATION if outcome.unsegmented else 0


def _find(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> inputs.Found:
    if not config.input:
        raise UserError("config.input is empty: give files, folders or globs, with commas between")
    if 0 < config.tile < _LEAST_TILE:
        raise UserError(
            f"config.tile is {config.tile}: windows are at least {_LEAST_TILE} pixels wide; 0 "
            "takes what the checkpoint was shown"
        )
    found = inputs.find(config.input, without=workdir)
    if found.left_out:
        print(f"{found.left_out} files below {workdir} are left out.", file=sys.stderr)
    for path in found.ignored:
        print(f"{path}: ignored, not an image", file=sys.stderr)
    if not found.inputs:
        for refused in found.refused:
            print(f"{refused.path}: {refused.reason}", file=sys.stderr)
        raise UserError(f"config.input={config.input} names nothing that can be used")
    return found


def _checkpoints(text: str) -> list[str]:
    paths = [part.strip() for part in str(text).split(",") if part.strip()]
    if not paths:
        raise UserError("config.checkpoint is empty: give the workdir of a fine-tuning")
    return paths


def _options(
    config: ml_collections.ConfigDict, segmenters: list[segment.Segmenter], batch_size: int
) -> predict.Options:
    """Checks the values that only this stage has."""
    choices = {
        "fit": windows.FITS,
        "tta": tuple(network.VIEWS),
        "frames": predict.FRAMES,
        "probability": outputs.PROBABILITIES,
        "burned_in": predict.BURNED_IN,
    }
    for key, allowed in choices.items():
        config_lib.choose(f"config.{key}", config[key], allowed)
    length, unit = masks.parse_length(config.min_length)
    digests = "+".join(segmenter.loaded.short_digest for segmenter in segmenters)
    return predict.Options(
        how=network.How(batch_size=batch_size, fit=config.fit, tile=config.tile, tta=config.tta),
        rules=masks.Rules(config.threshold, config.keep_components, length, unit),
        frames=config.frames,
        probability=config.probability,
        segmentation=config.segmentation,
        qca=config.qca,
        burned_in=config.burned_in,
        spacing=config.spacing,
        algorithm=f"{__version__} {digests}"[:64],
    )


def _network(segmenter: segment.Segmenter) -> network.Network:
    forward = functools.partial(segmenter.forward, segmenter.weights)
    return network.Network(forward, segmenter.preprocessing)


def _provenance(segmenter: segment.Segmenter) -> dict[str, object]:
    loaded = segmenter.loaded
    return {
        "digest": loaded.digest,
        "step": loaded.step,
        "weights": segmenter.kind,
        "preprocessing": segmenter.preprocessing.to_dict(),
        "width": loaded.config["model"]["width"],
    }


def _public(config: ml_collections.ConfigDict) -> dict[str, object]:
    """The config without paths: names of inputs may be names of patients."""
    values = config_lib.to_dict(config)
    return {k: v for k, v in values.items() if k not in ("input", "checkpoint")}


def _report(outcome: predict.Outcome) -> None:
    """Says on the screen, and only there, which file is which case."""
    for refused in outcome.failed:
        print(f"{refused.path}: {refused.reason}", file=sys.stderr)
    for path, identifier in outcome.names:
        print(f"{path} -> {identifier}")
    for case in outcome.cases:
        for note in case["notes"]:
            if not note.startswith(predict.NO_SEGMENTATION):  # follows, by the name of the file
                print(f"{case['id']}: {note}", file=sys.stderr)
    for refused in outcome.unsegmented:
        advice = "its other results are written; --config.segmentation=False asks for no DICOM SEG"
        print(f"{refused.path}: {refused.reason}: {advice}", file=sys.stderr)
