"""PyTorch itself as the oracle: what it saves gives the same logits here. Skips without PyTorch."""

from typing import Any

import jax
import numpy as np
import pytest

from cmunet_jax.interop import importing, safetensors_file
from cmunet_jax.models.unet import UNet
from tests.golden.case import formula

torch = pytest.importorskip("torch", reason="the extra `bench` is not installed")
nn: Any = torch.nn
pytestmark = pytest.mark.slow
WIDTH = 3


def randomised(module):
    """Weights that keep maps of unit size, and running statistics as if it had been trained."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.from_numpy(formula(name, tuple(value.shape), 5)))
    return module.eval()


def block(inputs, outputs, bias):
    layers = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=bias), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU()]
    made = nn.Module()
    made.double_conv = nn.Sequential(*layers)
    return made


class Common(nn.Module):
    """The widespread U-Net: inc, down1-4, up1-4, outc; [skip, up-sampled]; biases or none."""

    def __init__(self, outputs=2, bias=False):
        super().__init__()
        self.inc = block(1, WIDTH, bias)
        for level in range(4):
            down, up = nn.Module(), nn.Module()
            inner = block(WIDTH << level, WIDTH << (level + 1), bias)
            down.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), inner)
            wide = WIDTH << (4 - level)
            up.up, up.conv = nn.ConvTranspose2d(wide, wide // 2, 2, 2), block(wide, wide // 2, bias)
            setattr(self, f"down{level + 1}", down)
            setattr(self, f"up{level + 1}", up)
        self.outc = nn.Module()
        self.outc.conv = nn.Conv2d(WIDTH, outputs, 1)

    def forward(self, x):
        """Logits [B, outputs, H, W]."""
        maps = [self.inc.double_conv(x)]
        for level in range(4):
            pool, inner = getattr(self, f"down{level + 1}").maxpool_conv
            maps.append(inner.double_conv(pool(maps[-1])))
        x = maps.pop()
        for level in range(4):
            up = getattr(self, f"up{level + 1}")
            x = up.conv.double_conv(torch.cat([maps.pop(), up.up(x)], 1))
        return self.outc.conv(x)


def ours(path, x, **options):
    imported, _ = importing.read(path, **options)
    network = UNet(imported.width, up=imported.up)
    weights = {"params": imported.params, "batch_stats": imported.batch_stats}
    forward = jax.jit(lambda weights, x: network.apply(weights, x, train=False))
    return np.moveaxis(np.asarray(forward(weights, x[..., None])), -1, 1), imported


def theirs(module, x):
    with torch.no_grad():
        return module(torch.from_numpy(x)[:, None]).numpy()


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).standard_normal((2, 32, 48)).astype(np.float32)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_what_pytorch_saves_gives_the_same_logits(tmp_path, x, legacy, whole):
    from cmunet_jax.benchmark import torch_unet

    module = randomised(torch_unet.UNet(WIDTH))
    content = module if whole else {"state_dict": module.state_dict(), "epoch": 3}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    logits, imported = ours(tmp_path / "a.pth", x)
    np.testing.assert_allclose(logits, theirs(module, x), atol=1e-4)
    assert imported.layout == "U-Net of an encoder and a decoder"


@pytest.mark.parametrize("bias", [False, True])
def test_the_widespread_unet_gives_the_same_logits(tmp_path, x, bias):
    module = randomised(Common(bias=bias))
    torch.save(module.state_dict(), tmp_path / "a.pth")
    logits, imported = ours(tmp_path / "a.pth", x)
    np.testing.assert_allclose(logits, theirs(module, x), atol=1e-4)
    assert any("no bias" in note for note in imported.notes) == (not bias)


def test_one_output_is_the_logit_of_the_artery(tmp_path, x):
    module = randomised(Common(outputs=1))
    torch.save(module, tmp_path / "a.pth")
    logits, imported = ours(tmp_path / "a.pth", x, one_output="artery")
    probability = 1 / (1 + np.exp(-theirs(module, x)[:, 0]))
    np.testing.assert_allclose(jax.nn.softmax(logits, 1)[:, 1], probability, atol=1e-5)
    assert imported.objective == "scratch"


def test_pytorch_loads_our_safetensors(tmp_path, x):
    safetensors_torch = pytest.importorskip("safetensors.torch")
    torch.save(randomised(Common(bias=True)).state_dict(), tmp_path / "a.pth")
    logits, imported = ours(tmp_path / "a.pth", x)
    path = tmp_path / "b.safetensors"
    safetensors_file.write(path, imported.params, imported.batch_stats)
    state = safetensors_torch.load_file(path)
    from cmunet_jax.benchmark import torch_unet

    split = {
        ("decoder." if name.startswith(("up_conv", "conv_last")) else "encoder.") + name: value
        for name, value in state.items()
    }
    module = torch_unet.UNet(WIDTH).eval()
    missing = module.load_state_dict(split, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    np.testing.assert_allclose(logits, theirs(module, x), atol=1e-4)
