"""From a checkpoint to a function that gives the features of images."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmunet_jax import config as config_lib
from cmunet_jax import objectives
from cmunet_jax.data import preprocessing
from cmunet_jax.models.unet import Encoder
from cmunet_jax.stages import segment
from cmunet_jax.train import checkpoint, sharding
from cmunet_jax.train.manifest import describe, leaves_by_path
from tfds_angio.errors import UserError


@dataclasses.dataclass(frozen=True)
class Restored:
    """An encoder with the preprocessing that it was trained with.

    Attributes:
      encode: images float32 [B, S, S, 1] -> spatial means float32 [B, C] of its four skips, finest
        first, and of the bottleneck.
      preprocessing: that makes the images.
      loaded: the checkpoint.
      kind: 'ema' or 'raw'.
    """

    encode: Any
    preprocessing: preprocessing.Preprocessing
    loaded: checkpoint.Loaded
    kind: str


def restore(
    path: str | pathlib.Path, *, step: str, weights: str, mesh: jax.sharding.Mesh
) -> Restored:
    """Restores the encoder of any checkpoint of ours, pre-trained or fine-tuned.

    Args:
      path: workdir, its checkpoints folder or one step folder.
      step: 'latest', 'best' or a number.
      weights: 'ema' (averaged, where the run kept them) or 'raw'.
      mesh: devices to run on.

    Raises:
      UserError: if there is no such checkpoint, it is damaged, or it holds no encoder of ours.
    """
    loaded, averaged = segment.load(path, step=step, weights=weights)
    objective = objectives.create(config_lib.from_dict(loaded.config))
    params, stats = loaded.weights(ema=averaged)
    # What a segmentation network takes as its encoder is the encoder, whatever its name there.
    sources = [source for source, to in objective.transfer.mapping.items() if to == "encoder"]
    if not sources or sources[0] not in params or sources[0] not in stats:
        raise UserError(
            f"the checkpoint {loaded.path} holds no encoder (it has {', '.join(sorted(params))}): "
            "choose a run of configs/pretrain.py or configs/finetune.py."
        )
    chain = preprocessing.Preprocessing.from_dict(loaded.preprocessing)
    model = loaded.config["model"]
    network = Encoder(model["width"], jnp.dtype(model["dtype"]), model.get("fast", True))
    chosen = {"params": params[sources[0]], "batch_stats": stats[sources[0]]}
    _check(network, chosen, loaded)
    return Restored(
        encode=_make(network, chosen, mesh),
        preprocessing=chain,
        loaded=loaded,
        kind="ema" if averaged else "raw",
    )


def _check(network: Encoder, chosen: Mapping[str, Any], loaded: checkpoint.Loaded) -> None:
    image = jax.ShapeDtypeStruct((1, 16, 16, 1), jnp.float32)
    wanted = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), image)
    expected, found = leaves_by_path(dict(wanted)), leaves_by_path(dict(chosen))
    for name in sorted(expected.keys() | found.keys()):
        have, want = (describe(t[name]) if name in t else "nothing" for t in (found, expected))
        if have != want:
            raise UserError(
                f"the checkpoint {loaded.path} holds no U-Net encoder of width {network.width}: "
                f"{name} is {have}, expected {want}."
            )


def _make(network: Encoder, variables: Mapping[str, Any], mesh: jax.sharding.Mesh) -> Any:
    whole, rows = sharding.replicated(mesh), sharding.by_example(mesh)

    def means(variables: Mapping[str, Any], images: jax.Array) -> list[jax.Array]:
        bottleneck, skips = network.apply(dict(variables), images, train=False)
        return [jnp.mean(m, axis=(1, 2), dtype=jnp.float32) for m in (*skips, bottleneck)]

    jitted = jax.jit(means, in_shardings=(whole, rows), out_shardings=whole)
    placed = sharding.place(variables, whole)

    def encode(images: np.ndarray) -> Sequence[np.ndarray]:
        return [np.asarray(m) for m in jitted(placed, sharding.place(images, rows))]

    return encode
