"""SparK pre-training: a sparse encoder sees the visible patches only (Tian et al., ICLR 2023).

    image ─ mask ─ sparse encoder ─ densify (norm, mask tokens) ─ U-Net decoder ─ masked patches

The network is `models.sparse.SparseUNet`; the loss is the squared error of the masked pixels
against pixels standardised within their patch of 16×16 (unbiased variance, epsilon 1e-6 under the
root), averaged. It looks at no visible pixel, and no masked one reaches the encoder.

The presets do not differ in the objective: nothing in the released loss, mask or network is what
section 7 of method.md calls wrong (each image has its own mask, and targets are per patch), so
there is no switch. They differ, as for every method, in the preprocessing of the images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from cmunet_jax import losses
from cmunet_jax.models import initialise
from cmunet_jax.models.sparse import SparseUNet
from cmunet_jax.models.unet import STRIDE, check_size
from cmunet_jax.objectives import base
from cmunet_jax.objectives.base import Array, Out, State, Transfer, Tree, Variables

_VIEW = {"area": (0.67, 1.0), "flip_horizontal": 0.5, "patch_ratio": 0.6}


def preset_options(name: str) -> dict[str, Any]:
    """Options of preset 'paper' or 'fixed', for `config.objective`; UserError for other names."""
    return base.preset({"paper": {}, "fixed": {}}, name)


@dataclasses.dataclass(frozen=True)
class SparK(base.WithoutContext):
    """The SparK objective.

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

    views = ("masked",)
    view_options = MappingProxyType({"paper": _VIEW, "fixed": _VIEW})
    transfer = Transfer({"encoder": "encoder", "decoder": "decoder"}, reinit=("decoder/head",))

    @property
    def network(self) -> SparseUNet:
        """The network; apply it to {'params', 'batch_stats'}."""
        return SparseUNet(self.width, jnp.dtype(self.dtype), self.up, self.fast, self.remat)

    def init(self, key: Array, image_shape: tuple[int, int, int]) -> Variables:
        """Fresh variables for images [H, W, 1]; UserError unless 16 divides H and W."""
        height, width = image_shape[:2]
        check_size(height, width)
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        active = jax.ShapeDtypeStruct((1, height // STRIDE, width // STRIDE), jnp.bool_)
        made = initialise.draw(key, initialise.shapes_of(self.network, image, active))
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
        """Mean squared error of the masked patches.

        Args:
          params: of the objective.
          state: of the objective; `extra` passes through.
          views: `image` [B, H, W, 1] and `patches` bool [B, H/16, W/16], True = masked.
          context: empty.
          key: unused.
          train: normalise by the batch's statistics and record them.
        """
        image, patches = views["image"], views["patches"]
        made, stats = base.run(
            self.network, params, state["batch_stats"], image, ~patches, train=train
        )
        target, _, _ = losses.standardise(image[..., 0], over="patch")
        loss = losses.masked_mse(made[..., 0], target, patches)
        new = {"batch_stats": stats, "extra": state["extra"]}
        return loss, Out(new, base.means(loss_reconstruction=loss))

    def pictures(
        self,
        params: Tree,
        state: State,
        views: Mapping[str, Array],
        context: Mapping[str, Array],
        key: Array,
    ) -> dict[str, Array]:
        """The view, what the network sees of it, the reconstruction pasted in, and the error.

        The network predicts standardised patches; they are shown with the true mean and deviation
        of each patch.
        """
        image, patches = views["image"], views["patches"]
        made, _ = base.run(self.network, params, state["batch_stats"], image, ~patches, train=False)
        _, mean, scale = losses.standardise(image[..., 0], over="patch")
        return base.inpainted(image, made * scale[..., None] + mean[..., None], patches)
