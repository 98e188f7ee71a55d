"""Supervised segmentation from labels; also what fine-tunes every pre-trained network.

The loss is Dice + cross-entropy. Preset `paper` keeps the released Dice term, which is computed on
a thresholded prediction and so has no gradient (method.md, section 7, row 1); `fixed` takes soft
Dice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cmunet_jax import losses
from cmunet_jax.models import initialise
from cmunet_jax.models.unet import UNet, check_size
from cmunet_jax.objectives import base
from cmunet_jax.objectives.base import Array, Out, State, Transfer, Tree, Variables


def preset_options(name: str) -> dict[str, Any]:
    """Options of preset 'paper' or 'fixed', for `config.objective`; UserError for other names."""
    return base.preset({"paper": {"soft_dice": False}, "fixed": {"soft_dice": True}}, name)


@dataclasses.dataclass(frozen=True)
class Scratch(base.WithoutContext):
    """The supervised objective.

    Attributes:
      width: of the U-Net, 64 in the paper.
      dtype: of the computation; parameters and losses are float32.
      up: 'transposed' or 'bilinear'.
      fast: forms of the layers that XLA compiles well.
      remat: what is computed again for the gradient: a key of `models.unet.REMAT`.
      soft_dice: Dice on probabilities, per image; False: on the thresholded batch, no gradient.
    """

    width: int = 64
    dtype: str = "float32"
    up: str = "transposed"
    fast: bool = True
    remat: str = "none"
    soft_dice: bool = True

    views = ("supervised",)
    transfer = Transfer({"encoder": "encoder", "decoder": "decoder"})

    @property
    def network(self) -> UNet:
        """The segmentation network; apply it to {'params', 'batch_stats'}."""
        return UNet(self.width, 2, jnp.dtype(self.dtype), self.up, self.fast, self.remat)

    def init(self, key: Array, image_shape: tuple[int, int, int]) -> Variables:
        """Fresh variables for images [H, W, 1]; UserError unless 16 divides H and W."""
        check_size(*image_shape[:2])
        made = initialise.draw(
            key, initialise.shapes_of(self.network, jnp.zeros((1, *image_shape)))
        )
        return Variables(params=made["params"], batch_stats=made["batch_stats"], extra={})

    def loss(
        self,
        params: Tree,
        state: State,
        views: Mapping[str, Array],
        context: Mapping[str, Array],
        key: Array,
        *,
        train: bool,
    ) -> tuple[Array, Out]:
        """Dice + cross-entropy of `image` [B, H, W, 1] against `mask` int [B, H, W]."""
        variables = {"params": params, "batch_stats": state["batch_stats"]}
        logits, updated = self.network.apply(
            variables, views["image"], train=train, mutable=["batch_stats"]
        )
        cross_entropy = losses.cross_entropy(logits, views["mask"])
        dice_loss = losses.soft_dice if self.soft_dice else losses.thresholded_dice
        dice = dice_loss(logits, views["mask"])
        metrics = base.means(
            cross_entropy=cross_entropy,
            dice_loss=dice,
            dice=1 - losses.thresholded_dice(logits, views["mask"]),
        )
        state = {"batch_stats": updated["batch_stats"], "extra": state["extra"]}
        return cross_entropy + dice, Out(state, metrics)

    def pictures(
        self,
        params: Tree,
        state: State,
        views: Mapping[str, Array],
        context: Mapping[str, Array],
        key: Array,
    ) -> dict[str, Array]:
        """The image, the true mask and the probability of artery."""
        variables = {"params": params, "batch_stats": state["batch_stats"]}
        logits = jnp.asarray(self.network.apply(variables, views["image"], train=False))
        return {
            "image": base.to_unit(views["image"]),
            "truth": views["mask"][..., None].astype(jnp.float32),
            "prediction": jax.nn.softmax(logits)[..., 1:],
        }
