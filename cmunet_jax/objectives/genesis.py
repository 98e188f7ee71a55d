"""Model Genesis: the network restores an image that four transforms have changed.

Zhou et al., Models Genesis (MICCAI 2019; Medical Image Analysis 2021). Flips, pixel shuffling in
small windows, a Bézier map of the intensities and painting are in `data/views/genesis.py`. Here are
the whole U-Net with one output channel and the mean squared error over all pixels, which is what
the original minimises, so both presets have the same loss. They differ in the view: `fixed` paints
with noise of the image's range, as the original does, where the released port paints with noise in
0..1 on standardised images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from cmunet_jax import losses
from cmunet_jax.objectives import base
from cmunet_jax.objectives.base import Array, Out, State, Tree
from cmunet_jax.objectives.restoration import Restoration


def preset_options(name: str) -> dict[str, Any]:
    """Options of preset 'paper' or 'fixed', for `config.objective`; UserError for other names."""
    return base.preset({"paper": {}, "fixed": {}}, name)


@dataclasses.dataclass(frozen=True)
class Genesis(Restoration):
    """The restoration objective; its options are those of the network, see `Restoration`."""

    views = ("genesis",)

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
        """Mean squared error over all pixels.

        Args:
          params: of the objective.
          state: of the objective; `extra` is empty.
          views: `image`, the transformed one, and `target` [B, H, W, 1].
          context: empty.
          key: unused.
          train: normalise by the batch's statistics and record them.
        """
        image, target = views["image"], views["target"]
        made, stats = self.restore(params, state["batch_stats"], image, train=train)
        error = losses.mse(made, target[..., 0])
        # An error above this one means that the network does worse than changing nothing.
        metrics = base.means(error_untouched=losses.mse(image, target))
        return error, Out({"batch_stats": stats, "extra": state["extra"]}, metrics)

    def pictures(
        self,
        params: Tree,
        state: State,
        views: Mapping[str, Array],
        context: Mapping[str, Array],
        key: Array,
    ) -> dict[str, Array]:
        """What the network sees, what it makes of it, the image itself, and the error.

        Grey values share one window; the error is absolute, white at half that window.
        """
        image, target = views["image"], views["target"]
        made, _ = self.restore(params, state["batch_stats"], image, train=False)
        unit, shown = base.to_unit(target), base.to_unit(made[..., None], like=target)
        return {
            "transformed": base.to_unit(image, like=target),
            "restored": shown,
            "view": unit,
            "error": jnp.clip(2 * jnp.abs(shown - unit), 0, 1),
        }
