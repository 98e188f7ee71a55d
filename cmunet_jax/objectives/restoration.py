"""What the methods share that restore an image with the whole U-Net and one output channel."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmunet_jax.models import initialise
from cmunet_jax.models.unet import UNet, check_size
from cmunet_jax.objectives import base
from cmunet_jax.objectives.base import Array, Transfer, Tree, Variables


@dataclasses.dataclass(frozen=True)
class Restoration(base.WithoutContext):
    """A U-Net that puts out one image; encoder and decoder transfer, its 1×1 head does not.

    Attributes:
      width: of the U-Net, 64 in the paper.
      dtype: of the computation; parameters and losses are float32.
      up: 'transposed' or 'bilinear'.
      fast: forms of the layers that XLA compiles well.
      remat: what is computed again for the gradient: a key of `models.unet.REMAT`.
    """

    width: int = 64
    dtype: str = "float32"
    up: str = "transposed"
    fast: bool = True
    remat: str = "none"

    transfer = Transfer({"encoder": "encoder", "decoder": "decoder"}, reinit=("decoder/head",))

    @property
    def network(self) -> UNet:
        """The network; apply it to {'params', 'batch_stats'}."""
        return UNet(self.width, 1, jnp.dtype(self.dtype), self.up, self.fast, self.remat)

    def init(self, key: Array, image_shape: tuple[int, int, int]) -> Variables:
        """Fresh variables for images [H, W, 1]; UserError unless 16 divides H and W."""
        check_size(*image_shape[:2])
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        made = initialise.draw(key, initialise.shapes_of(self.network, image))
        return Variables(params=made["params"], batch_stats=made["batch_stats"], extra={})

    def restore(
        self, params: Tree, stats: Tree, image: Array, *, train: bool
    ) -> tuple[Array, dict[str, Any]]:
        """The network's image [B, H, W], float32, for [B, H, W, 1], and new running statistics."""
        made, stats = base.run(self.network, params, stats, image, train=train)
        return made[..., 0], stats
