"""One program from native frames to probabilities for every platform, by `jax.export`."""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from cmunet_jax.interop import export_preprocessing
from cmunet_jax.models.unet import UNet
from tfds_angio.errors import UserError

# Of the file; export_loader.py, which travels alone, has both once more.
PLATFORMS, CALLING_CONVENTION = ("cpu", "cuda", "tpu"), 10


def export(
    network: UNet, weights: Mapping[str, Any], preprocessing: Mapping[str, Any]
) -> jax.export.Exported:
    """Exports preprocessing, network and the way back to native size.

    The program takes frames float32 [B, H, W] (all three symbolic) and whether they are 8-bit,
    and gives the probability of artery, float32 [B, H, W]. It is the sigmoid of the interpolated
    difference of logits, so a threshold of 0.5 is the mask of the evaluate stage; what the network
    has not seen (a centre crop) is 0.

    Args:
      network: the segmentation network.
      weights: {'params', 'batch_stats'} as host arrays; they become constants of the program.
      preprocessing: `Preprocessing.to_dict()`.

    Raises:
      UserError: if this preprocessing is of a version that cannot be exported.
    """
    name = preprocessing["name"]
    if preprocessing["version"] != export_preprocessing.VERSIONS[name]:
        raise UserError(
            f"preprocessing '{name}' of version {preprocessing['version']} cannot be exported to "
            "StableHLO: leave it out with --config.formats=safetensors"
        )

    def segment(frames: jax.Array, is_8bit: jax.Array) -> jax.Array:
        seen = export_preprocessing.network_input(frames, is_8bit, preprocessing)
        logits: Any = network.apply(dict(weights), seen[..., None], train=False)
        margins = logits[..., 1] - logits[..., 0]
        native, covered = export_preprocessing.restore(margins, frames, preprocessing)
        return jnp.where(covered, jax.nn.sigmoid(native), 0)

    shape = jax.export.symbolic_shape("batch, height, width")
    arguments = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.bool_)
    with _options(
        # The file travels: where the source lay when it was made, a home perhaps, stays here.
        jax_traceback_in_locations_limit=0,
        jax_export_calling_convention_version=CALLING_CONVENTION,
    ):
        return jax.export.export(jax.jit(segment), platforms=PLATFORMS)(*arguments)


def write(exported: jax.export.Exported, path: pathlib.Path) -> None:
    """Writes what `jax.export.deserialize` reads, and its SHA-256 after it for the loader."""
    content = bytes(exported.serialize())
    path.write_bytes(content + hashlib.sha256(content).digest())


@contextlib.contextmanager
def _options(**values: int) -> Iterator[None]:
    """Sets options of JAX for a while."""
    before = {name: getattr(jax.config, name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
