"""The U-Net of SparK pre-training (Tian et al., ICLR 2023, section 3): sparse in, dense out.

    visible patches ─ sparse encoder ─ 5 maps, zero elsewhere ─ densify ─ 5 full maps ─ decoder

The sparse encoder is `unet.Encoder` told which patches are active. A convolution that skips
inactive sites equals the dense one on maps that are zero there, followed by the mask; so every map
is kept at zero outside active patches, and normalisation looks at active sites alone. Which patches
are active is an argument of every call: nothing remembers it.

Parameters are those of the segmentation network, {'encoder': ..., 'decoder': ...}, and {'densify':
{'level5': {'norm': ..., 'token': [16·width]}, ..., 'level1': ...}}, which it does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cmunet_jax.models.batch_norm import BatchNorm
from cmunet_jax.models.initialise import token_normal
from cmunet_jax.models.layers import sites_of
from cmunet_jax.models.unet import Decoder, Encoder

Array = jax.Array
Dtype = Any


class Fill(nn.Module):
    """Makes one sparse map dense: sparse batch normalisation, then the mask token where inactive.

    The token [C] is one learned vector a level. The original convolves the result to the width of
    its own decoder; the two halves of a U-Net agree already, and the release has no such layer.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, active: Array, *, train: bool) -> Array:
        """Fills [B, H, W, C] outside the active patches, bool [B, h, w]."""
        sites = sites_of(active, x.shape[1])
        token = self.param("token", token_normal, (x.shape[-1],), jnp.float32)
        x = BatchNorm(dtype=self.dtype, name="norm")(x, train=train, sites=sites)
        return jnp.where(sites, x, token.astype(self.dtype))


class Densify(nn.Module):
    """`Fill` for each of the five maps of an encoder."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, bottleneck: Array, skips: Sequence[Array], active: Array, *, train: bool
    ) -> tuple[Array, list[Array]]:
        """Takes and returns what `Encoder` returns; `active` is bool [B, H/16, W/16]."""
        maps = [
            Fill(self.dtype, name=f"level{i}")(x, active, train=train)
            for i, x in enumerate([*skips, bottleneck], start=1)
        ]
        return maps[-1], maps[:-1]


class SparseUNet(nn.Module):
    """Reconstructs images from their visible patches."""

    width: int = 64
    dtype: Dtype = jnp.float32
    up: str = "transposed"
    fast: bool = True
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Array, active: Array, *, train: bool) -> Array:
        """Maps images [B, H, W, 1] to reconstructions [B, H, W, 1], float32.

        Args:
          x: images; pixels of inactive patches are not looked at.
          active: bool [B, H/16, W/16], True where a patch is visible.
          train: whether normalisation takes the batch's statistics.
        """
        encoder = Encoder(self.width, self.dtype, self.fast, self.remat, name="encoder")
        options = (self.dtype, self.up, self.fast, self.remat)
        decoder = Decoder(self.width, 1, *options, name="decoder")
        maps = encoder(x, train=train, active=active)
        dense = Densify(self.dtype, name="densify")(*maps, active, train=train)
        return decoder(*dense, train=train)
