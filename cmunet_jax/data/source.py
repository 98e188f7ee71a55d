"""Raw batches, from a data set resident on the device or streamed; one meaning for both.

A raw batch holds codes as they are stored; ``decode`` turns it into what views take. Order,
gathering and decoding run inside the jitted step, so a resident run does nothing on the host, and
any batch can be made again from its step alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from cmunet_jax.data.order import batch_indices, steps_per_epoch
from cmunet_jax.data.prepared import OnTheFly, PreparedSplit, prepare
from cmunet_jax.data.stream import Stream, stream

__all__ = [
    "OnTheFly",
    "PreparedSplit",
    "Stream",
    "batch_indices",
    "decode",
    "gather",
    "prepare",
    "steps_per_epoch",
    "stream",
]

Array = jax.Array


def gather(arrays: Mapping[str, Array], indices: Array) -> dict[str, Array]:
    """Takes the rows of a batch out of resident arrays.

    Args:
      arrays: ``PreparedSplit.arrays()`` on the device: code [N, S, S], scale [N], offset [N] and
        perhaps mask [N, S, S].
      indices: int32 [B], in 0..N-1 (not checked under jit).

    Returns:
      A raw batch: the same names with leading dimension B, and index int32 [B].
    """
    rows = {name: jnp.take(array, indices, axis=0) for name, array in arrays.items()}
    return {**rows, "index": indices.astype(jnp.int32)}


def decode(raw: Mapping[str, Array]) -> dict[str, Array]:
    """A raw batch -> image float32 [B, S, S, 1], mask int32 [B, S, S] if any, index int32 [B].

    ``image = code * scale + offset``, about zero mean and unit standard deviation.
    """
    scale, offset = raw["scale"][:, None, None], raw["offset"][:, None, None]
    image = raw["code"].astype(jnp.float32) * scale + offset
    batch = {"image": image[..., None], "index": jnp.asarray(raw["index"], jnp.int32)}
    if "mask" in raw:
        batch["mask"] = raw["mask"].astype(jnp.int32)
    return batch
