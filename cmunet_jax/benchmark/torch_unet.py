"""The same networks and losses in PyTorch, to be timed beside ours. Needs the extra `bench`.

Written from the description of the method; tensors have the names of `interop.torch_names`, so our
weights can be put in, and a test compares outputs and losses. NCHW; `channels_last` is a memory
format.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmunet_jax.interop import torch_names
from cmunet_jax.interop.pytorch.unet import LEVELS, Decoder, Encoder, UNet
from cmunet_jax.interop.torch_names import Entry

PATCH = 16


class Finetune(nn.Module):
    """The U-Net with the loss of fine-tuning: cross-entropy + soft Dice (`losses.soft_dice`)."""

    def __init__(self, width: int):
        super().__init__()
        self.unet = UNet(width)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """The loss of images [B, 1, H, W] and masks int64 [B, H, W]; a scalar."""
        logits = self.unet(image).float()
        p, g = logits.softmax(1)[:, 1], mask.to(logits.dtype)
        overlap, size = (p * g).sum((1, 2)), (p + g).sum((1, 2))
        dice = (1 - (2 * overlap + 1) / (size + 1)).mean()
        return F.cross_entropy(logits, mask) + dice

    def after_step(self) -> None:
        """Nothing follows the optimiser."""


class Projector(nn.Module):
    """Linear, BatchNorm (eps 1e-6), ReLU, Linear without bias; also the predictor's shape."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.fc0 = nn.Linear(inputs, hidden)
        self.bn0 = nn.BatchNorm1d(hidden, eps=1e-6)
        self.fc1 = nn.Linear(hidden, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] to [B, outputs]."""
        return self.fc1(F.relu(self.bn0(self.fc0(x))))


class CMUNet(nn.Module):
    """CM-UNet's graph and loss with our preset `fixed` (arXiv 2507.17779, section II-B)."""

    def __init__(self, width: int, size: int, *, temperature: float, momentum: float):
        super().__init__()
        hidden, outputs = 24 * width, 4 * width
        self.temperature, self.momentum = temperature, momentum
        self.encoder = Encoder(width)
        self.pixel_decoder, self.feature_decoder = Decoder(width), Decoder(width)
        self.projector = Projector(size * size, hidden, outputs)
        self.predictor = Projector(outputs, hidden, outputs)
        self.adapter = nn.Conv2d(width << LEVELS, PATCH * PATCH, 1)
        self.follow()
        self.adapter.requires_grad_(False)

    def follow(self) -> None:
        """Makes the momentum branch a copy of the online one."""
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def forward(self, view_a: Tensor, view_b: Tensor, patches: Tensor) -> Tensor:
        """The loss of two views [B, 1, H, W] and masked patches bool [B, H/16, W/16]; a scalar."""
        with torch.no_grad():
            bottleneck, _ = self.target_encoder(view_b)
            keys = self.target_projector(self.adapter(bottleneck).flatten(1)).float()
        hidden = patches.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
        bottleneck, skips = self.encoder(view_a.masked_fill(hidden[:, None], 0))
        pixels = self.pixel_decoder(bottleneck, skips)[:, 1].float()
        features = self.feature_decoder(bottleneck, skips).mean(1).flatten(1)
        queries = self.predictor(self.projector(features)).float()
        error = (pixels - standardise(view_a[:, 0])).square() * hidden
        reconstruction = error.sum() / hidden.sum().clamp(min=1)
        cosines = F.normalize(queries) @ F.normalize(keys).T
        positives = torch.arange(len(queries), device=queries.device)
        nce = F.cross_entropy(cosines / self.temperature, positives)
        return reconstruction + 2 * self.temperature * nce

    def after_step(self) -> None:
        """Moves the momentum branch towards the online one."""
        targets = [*self.target_encoder.parameters(), *self.target_projector.parameters()]
        online = [*self.encoder.parameters(), *self.projector.parameters()]
        with torch.no_grad():
            torch._foreach_lerp_(targets, online, 1 - self.momentum)


def standardise(image: Tensor) -> Tensor:
    """Standardises each 16×16 patch of [B, H, W], as `losses.standardise(over='patch')`."""
    b, h, w = image.shape
    patches = image.reshape(b, h // PATCH, PATCH, w // PATCH, PATCH)
    var, mean = torch.var_mean(patches, (2, 4), keepdim=True)
    return ((patches - mean) / (var + 1e-6).sqrt()).reshape(b, h, w)


def cmunet_entries() -> list[Entry]:
    """The names of the trained part of `CMUNet` against those of ours."""
    entries = torch_names.encoder_entries("encoder.")
    for name in ("pixel_decoder", "feature_decoder"):
        entries += torch_names.decoder_entries(f"{name}.", name)
    for name in ("projector", "predictor"):
        entries += torch_names.projector_entries(f"{name}.", name)
    return entries
