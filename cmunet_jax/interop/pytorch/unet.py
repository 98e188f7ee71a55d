"""The segmentation network in PyTorch: for ONNX, and as the rival of the benchmark.

Written from the description of the method; tensors have the names of `interop.torch_names` behind
`encoder.` and `decoder.`, so our weights can be put in, and a test compares the outputs. NCHW.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmunet_jax.interop import torch_names
from cmunet_jax.interop.torch_names import Entry

LEVELS = 4


class DoubleConv(nn.Module):
    """Two times 3×3 convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
            layers += [nn.ReLU(inplace=True)]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H, W]."""
        return self.double_conv(x)


class Down(nn.Module):
    """A block; its output is a skip connection and, pooled, the input of the next level."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.double_conv = DoubleConv(inputs, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the pooled map [B, outputs, H/2, W/2] and the skip [B, outputs, H, W]."""
        skip = self.double_conv(x)
        return F.max_pool2d(skip, 2), skip


class Up(nn.Module):
    """Up-samples, concatenates [up-sampled, skip], block."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.up_sample = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.double_conv = DoubleConv(2 * outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """[B, inputs, H, W] and a skip of twice its size to [B, outputs, 2H, 2W]."""
        return self.double_conv(torch.cat([self.up_sample(x), skip], 1))


class Encoder(nn.Module):
    """The contracting path; widths w, 2w, 4w, 8w, bottleneck 16w."""

    def __init__(self, width: int):
        super().__init__()
        for level in range(LEVELS):
            inputs = width << (level - 1) if level else 1
            self.add_module(f"down_conv{level + 1}", Down(inputs, width << level))
        self.double_conv = DoubleConv(width << (LEVELS - 1), width << LEVELS)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, 1, H, W] to the bottleneck [B, 16w, H/16, W/16] and four skips, finest first."""
        skips = []
        for level in range(LEVELS):
            x, skip = getattr(self, f"down_conv{level + 1}")(x)
            skips.append(skip)
        return self.double_conv(x), skips


class Decoder(nn.Module):
    """The expanding path and its 1×1 head."""

    def __init__(self, width: int, outputs: int = 2):
        super().__init__()
        for level in reversed(range(LEVELS)):
            self.add_module(f"up_conv{level + 1}", Up(width << (level + 1), width << level))
        self.conv_last = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """What `Encoder` returns to [B, outputs, H, W]."""
        for level in reversed(range(LEVELS)):
            x = getattr(self, f"up_conv{level + 1}")(x, skips[level])
        return self.conv_last(x)


class UNet(nn.Module):
    """The segmentation network."""

    def __init__(self, width: int):
        super().__init__()
        self.encoder, self.decoder = Encoder(width), Decoder(width)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 1, H, W] to logits [B, 2, H, W]."""
        return self.decoder(*self.encoder(x))


def unet_entries(prefix: str = "") -> list[Entry]:
    """The names of `UNet` against those of ours."""
    encoder = torch_names.encoder_entries(f"{prefix}encoder.")
    return encoder + torch_names.decoder_entries(f"{prefix}decoder.")
