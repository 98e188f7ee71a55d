"""Masked autoencoder on a U-Net: hidden patches are reconstructed (He et al., CVPR 2022).

The encoder sees an image of which half of the 16×16 patches are zero, and the whole U-Net, with one
output channel, puts the image back. Preset `paper` is the comparison method as CM-UNet released it,
`fixed` follows the MAE paper. Each difference is an option:

  loss_over               'masked': squared error of hidden pixels alone. 'all': of all pixels, as
                          released; half of it is then copying what the first skip connection holds.
  reconstruction_target   'patch': pixels standardised over their patch, which takes brightness, the
                          easy part, out of the task. 'pixels': as they are, as released.
  mask_per_sample         True: each image is masked by its own patches. False: all images of a
                          batch by those of its first, as released.

The view differs too: MAE crops and mirrors (area 0.2–1), the released chain does neither. Both
presets hide half of the patches, as released; MAE hides three quarters of a transformer's tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from cmunet_jax import losses
from cmunet_jax.objectives import base
from cmunet_jax.objectives.base import Array, Out, State, Tree
from cmunet_jax.objectives.restoration import Restoration

LOSS_OVER = ("masked", "all")
TARGETS = ("patch", "pixels")


def preset_options(name: str) -> dict[str, Any]:
    """Options of preset 'paper' or 'fixed', for `config.objective`; UserError for other names."""
    return base.preset(
        {
            "paper": {
                "loss_over": "all",
                "reconstruction_target": "pixels",
                "mask_per_sample": False,
            },
            "fixed": {
                "loss_over": "masked",
                "reconstruction_target": "patch",
                "mask_per_sample": True,
            },
        },
        name,
    )


@dataclasses.dataclass(frozen=True)
class MAE(Restoration):
    """The masked autoencoder; see the module for its options, `Restoration` for the network's."""

    loss_over: str = "masked"
    reconstruction_target: str = "patch"
    mask_per_sample: bool = True

    views = ("masked",)
    view_options = MappingProxyType(
        {
            "paper": {"area": (1.0, 1.0), "flip_horizontal": 0.0, "patch_ratio": 0.5},
            "fixed": {"area": (0.2, 1.0), "flip_horizontal": 0.5, "patch_ratio": 0.5},
        }
    )

    def __post_init__(self):
        """Refuses options that do not exist."""
        base.check_choice("loss_over", self.loss_over, LOSS_OVER)
        base.check_choice("reconstruction_target", self.reconstruction_target, TARGETS)

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
        """Mean squared error of the reconstruction.

        Args:
          params: of the objective.
          state: of the objective; `extra` is empty.
          views: `image` [B, H, W, 1] and `patches` bool [B, H/16, W/16], True = masked.
          context: empty.
          key: unused.
          train: normalise by the batch's statistics and record them.
        """
        patches = self._patches(views)
        made, stats = self.restore(
            params, state["batch_stats"], base.mask(views["image"], patches), train=train
        )
        target, _, _ = self._target(views["image"])
        hidden = losses.masked_mse(made, target, patches)
        visible = losses.masked_mse(made, target, ~patches)
        total = hidden if self.loss_over == "masked" else losses.mse(made, target)
        metrics = base.means(error_masked=hidden, error_visible=visible)
        return total, Out({"batch_stats": stats, "extra": state["extra"]}, metrics)

    def _patches(self, views: Mapping[str, Array]) -> Array:
        patches = views["patches"]
        return patches if self.mask_per_sample else jnp.broadcast_to(patches[:1], patches.shape)

    def _target(self, image: Array) -> tuple[Array, Array | float, Array | float]:
        """What is predicted [B, H, W], and the mean and scale that turn it into pixels."""
        if self.reconstruction_target == "patch":
            return losses.standardise(image[..., 0], over="patch")
        return image[..., 0], 0.0, 1.0

    def pictures(
        self,
        params: Tree,
        state: State,
        views: Mapping[str, Array],
        context: Mapping[str, Array],
        key: Array,
    ) -> dict[str, Array]:
        """The image, what the network sees of it, its reconstruction and the error.

        The reconstruction is pasted into the visible patches where the loss is over the hidden ones
        (nothing is asked of the others), and shown whole otherwise. Grey values share one window;
        the error is absolute, white at half that window.
        """
        image, patches = views["image"], self._patches(views)
        made, _ = self.restore(params, state["batch_stats"], base.mask(image, patches), train=False)
        _, mean, scale = self._target(image)
        made = (made * scale + mean)[..., None]
        pictures = base.inpainted(image, made, patches)
        if self.loss_over == "all":
            whole = base.inpainted(image, made, jnp.ones_like(patches))
            pictures |= {name: whole[name] for name in ("reconstruction", "error")}
        return pictures
