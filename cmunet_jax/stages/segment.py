"""From a checkpoint to a function that segments images; shared by training and evaluation."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from cmunet_jax import config as config_lib
from cmunet_jax import objectives
from cmunet_jax.data import preprocessing, source
from cmunet_jax.objectives.scratch import Scratch
from cmunet_jax.train import checkpoint, sharding
from cmunet_jax.train.state import TrainState
from tfds_angio.base import AngioDataset
from tfds_angio.errors import UserError

Forward = Callable[[Mapping[str, Any], jax.Array], jax.Array]


def make_forward(objective: Any, mesh: jax.sharding.Mesh) -> Forward:
    """Returns jitted (weights, images [B, S, S, 1] float32) -> logits [B, S, S, 2] float32.

    B must be a multiple of the number of devices; weights are {'params', 'batch_stats'}. With
    several processes each gives all images and gets all logits.
    """
    whole, rows = sharding.replicated(mesh), sharding.by_example(mesh)
    network = objective.network

    def forward(weights: Mapping[str, Any], images: jax.Array) -> jax.Array:
        return network.apply(dict(weights), images, train=False)

    if jax.process_count() == 1:
        return jax.jit(forward, in_shardings=(whole, rows), out_shardings=rows)
    jitted = jax.jit(forward, in_shardings=(whole, rows), out_shardings=whole)
    return lambda weights, images: jitted(weights, sharding.place(images, rows))


def weights_of(state: TrainState) -> dict[str, Any]:
    """The weights to evaluate: the averaged ones where the run keeps them."""
    averaged = state.ema_params is not None
    return {
        "params": state.ema_params if averaged else state.params,
        "batch_stats": state.ema_batch_stats if averaged else state.batch_stats,
    }


def round_up(batch_size: int, mesh: jax.sharding.Mesh) -> int:
    """The next multiple of the number of devices."""
    return -(-batch_size // mesh.size) * mesh.size


def prepare(
    dataset: AngioDataset,
    split: str,
    chain: preprocessing.Preprocessing,
    options: ml_collections.ConfigDict,
    *,
    ids: Sequence[str] | None = None,
    progress: bool = True,
) -> source.PreparedSplit | None:
    """The images of a split as the network sees them, kept on disk beside those of training.

    The same few hundred images are evaluated by every run of a study, several times in each.

    Args:
      dataset: to evaluate on.
      split: of it.
      chain: the preprocessing.
      options: `config.data`; None is returned where it asks to stream sets too large to keep.
      ids: a subset; all for None.
      progress: whether to show a bar.
    """
    if options.streaming:
        return None
    workers = options.workers or None
    return source.prepare(
        dataset, split, chain, ids=ids, with_masks=False, workers=workers, progress=progress
    )


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """A restored segmentation network with the preprocessing that it was trained with."""

    forward: Forward
    weights: Mapping[str, Any]
    preprocessing: preprocessing.Preprocessing
    loaded: checkpoint.Loaded
    kind: str  # 'ema' or 'raw'


def load(path: str | pathlib.Path, *, step: str, weights: str) -> tuple[checkpoint.Loaded, bool]:
    """Loads a checkpoint, and says whether its averaged weights are to be used.

    Args and errors as in `restore`, which also makes a network of it.
    """
    config_lib.choose("config.weights", weights, ("ema", "raw"))
    loaded = checkpoint.load(path, step=int(step) if step.isdigit() else step)
    return loaded, weights == "ema" and loaded.ema_params is not None


def restore(
    path: str | pathlib.Path, *, step: str, weights: str, mesh: jax.sharding.Mesh
) -> Segmenter:
    """Restores a fine-tuned checkpoint for use.

    Args:
      path: workdir, its checkpoints folder or one step folder.
      step: 'latest', 'best' or a number.
      weights: 'ema' (averaged, where the run kept them) or 'raw'.
      mesh: devices to run on.

    Raises:
      UserError: if there is no such checkpoint, it is damaged, or it does not segment.
    """
    loaded, averaged = load(path, step=step, weights=weights)
    objective = objectives.create(config_lib.from_dict(loaded.config))
    if not isinstance(objective, Scratch):
        raise UserError(
            f"{path} holds a pre-training run ({loaded.config['objective']['name']}), which does "
            "not segment yet. Fine-tune it first: --config configs/finetune.py "
            f"--config.init_from={path}"
        )
    params, batch_stats = loaded.weights(ema=averaged)
    chosen = {"params": params, "batch_stats": batch_stats}
    return Segmenter(
        forward=make_forward(objective, mesh),
        weights=sharding.place(chosen, sharding.replicated(mesh)),
        preprocessing=preprocessing.Preprocessing.from_dict(loaded.preprocessing),
        loaded=loaded,
        kind="ema" if averaged else "raw",
    )
