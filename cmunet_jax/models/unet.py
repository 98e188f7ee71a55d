"""The U-Net of CM-UNet (arXiv 2507.17779, section II; widths 64-128-256-512, bottleneck 1024).

Encoder and decoder are modules of their own because pre-training combines one encoder with two
decoders, and transfers the encoder and one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cmunet_jax.models.batch_norm import BatchNorm
from cmunet_jax.models.layers import Conv, UpConv, max_pool, sites_of, upsample_bilinear
from tfds_angio.errors import UserError

Array = jax.Array
Dtype = Any

LEVELS = 4
"""Resolutions with a skip connection; the bottleneck lies at 1/2**LEVELS."""
STRIDE = 2**LEVELS
UPSAMPLING = ("transposed", "bilinear")
_CONVOLVED = "convolved"
# What the backward pass finds stored; the rest it computes a second time.
REMAT = MappingProxyType(
    {
        "none": None,
        "norms": jax.checkpoint_policies.save_only_these_names(_CONVOLVED),
        "blocks": jax.checkpoint_policies.nothing_saveable,
    }
)
"""`config.model.remat`: store everything; all but normalised and rectified maps; only the inputs
of blocks (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016)."""


class Block(nn.Module):
    """Two times 3×3 convolution, batch normalisation, ReLU."""

    features: int
    dtype: Dtype = jnp.float32
    fast: bool = True

    @nn.compact
    def __call__(self, x: Array, train: bool, sites: Array | None = None) -> Array:
        """Maps [B, H, W, C] to [B, H, W, features], non-negative.

        With `sites`, bool [B, H, W, 1], x is zero where they are False, and so is the result. The
        convolution's own output needs no mask: normalisation looks at no other site.
        """
        for i in (1, 2):
            x = Conv(self.features, 3, self.dtype, self.fast, name=f"conv{i}")(x)
            x = checkpoint_name(x, _CONVOLVED)
            norm = BatchNorm(dtype=self.dtype, fast=self.fast, name=f"bn{i}")
            x = nn.relu(norm(x, train=train, sites=sites))
        return x


class Encoder(nn.Module):
    """The contracting path: blocks of width w, 2w, 4w, 8w with 2×2 max pooling, bottleneck 16w.

    With `active` it is the sparse encoder of SparK: see `models.sparse`.
    """

    width: int = 64
    dtype: Dtype = jnp.float32
    fast: bool = True
    remat: str = "none"

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool, active: Array | None = None
    ) -> tuple[Array, list[Array]]:
        """Encodes images.

        Args:
          x: [B, H, W, 1], standardised; 16 divides H and W.
          train: whether normalisation takes the batch's statistics.
          active: bool [B, H/16, W/16], the patches that exist; all maps are zero elsewhere. None:
            all.

        Returns:
          The bottleneck [B, H/16, W/16, 16·width] and four skips, finest first
          ([B, H, W, width] ... [B, H/8, W/8, 8·width]).
        """
        check_size(x.shape[1], x.shape[2])
        sites: list[Any] = [None] * (LEVELS + 1)
        if active is not None:
            sites = [sites_of(active, x.shape[1] >> level) for level in range(LEVELS + 1)]
            # By selection: a product would keep what is not finite. No pooling window crosses the
            # border of a patch, so nothing else needs masking.
            x = jnp.where(sites[0], x, 0)
        skips = []
        for level in range(LEVELS):
            block = self._block(self.width << level, f"down{level + 1}")
            x = block(x, train, sites[level])
            skips.append(x)
            x = max_pool(x, fast=self.fast)
        bottleneck = self._block(self.width << LEVELS, "bottleneck")
        return bottleneck(x, train, sites[LEVELS]), skips

    def _block(self, features: int, name: str) -> nn.Module:
        return _block(features, self.dtype, self.fast, self.remat, name=name)


class Decoder(nn.Module):
    """The expanding path: up-sample, concatenate [up-sampled, skip], block; 1×1 convolution `head`.

    `up='bilinear'` interpolates (corners aligned) in place of the transposed convolution; the
    up-sampled map then keeps its channels, so the first kernel of each block is wider.
    """

    width: int = 64
    out_channels: int = 2
    dtype: Dtype = jnp.float32
    up: str = "transposed"
    fast: bool = True
    remat: str = "none"

    @nn.compact
    def __call__(self, bottleneck: Array, skips: Sequence[Array], *, train: bool) -> Array:
        """Decodes what `Encoder` returns to [B, H, W, out_channels], float32."""
        if self.up not in UPSAMPLING:
            raise UserError(f"model.up is {self.up!r}; it must be one of {', '.join(UPSAMPLING)}")
        x = bottleneck
        for level in reversed(range(LEVELS)):
            features = self.width << level
            if self.up == "bilinear":
                x = upsample_bilinear(x)
            else:
                x = UpConv(features, self.dtype, self.fast, name=f"upsample{level + 1}")(x)
            x = jnp.concatenate([x, skips[level]], axis=-1)
            name = f"up{level + 1}"
            x = _block(features, self.dtype, self.fast, self.remat, name=name)(x, train)
        head = Conv(self.out_channels, 1, self.dtype, name="head")
        return head(x).astype(jnp.promote_types(self.dtype, jnp.float32))


class UNet(nn.Module):
    """The segmentation network: parameters {'encoder': ..., 'decoder': {..., 'head': ...}}."""

    width: int = 64
    out_channels: int = 2
    dtype: Dtype = jnp.float32
    up: str = "transposed"
    fast: bool = True
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps images [B, H, W, 1] to logits [B, H, W, out_channels], float32."""
        encoder = Encoder(self.width, self.dtype, self.fast, self.remat, name="encoder")
        options = (self.dtype, self.up, self.fast, self.remat)
        decoder = Decoder(self.width, self.out_channels, *options, name="decoder")
        return decoder(*encoder(x, train=train), train=train)


def _block(features: int, dtype: Dtype, fast: bool, remat: str, *, name: str) -> nn.Module:
    """A block that stores for its gradient what `REMAT[remat]` says; values are the same."""
    block: Any = Block
    if remat != "none":
        block = nn.remat(Block, static_argnums=(2,), policy=REMAT[remat])
    return block(features, dtype, fast, name=name)


def check_size(height: int, width: int) -> None:
    """Raises UserError unless both sides are positive multiples of 16."""
    if height < STRIDE or width < STRIDE or height % STRIDE or width % STRIDE:
        raise UserError(
            f"image size {height}x{width} does not fit the U-Net: both sides must be multiples of "
            f"{STRIDE}; the next one up is {_up(height)}x{_up(width)}"
        )


def _up(size: int) -> int:
    return max(STRIDE, -(-size // STRIDE) * STRIDE)
