"""Writes the fixtures of test_import.py with the real torch.save. Needs PyTorch; run by hand.

    python -m tests.interop.make_fixtures tests/interop/fixtures

Each is a file as its method's program writes one, of width 2, with values from `patterns`, so that
a test knows them without PyTorch, and the files compress well.
"""

import argparse
import collections
import gzip
import io
import pathlib
import sys
import types

import numpy as np
import torch
from torch import nn

from tests.interop.patterns import pattern

WIDTH = 2


def module(name, *classes):
    """Lets classes say that they come from a module of this name, and be pickled so."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        parent = ".".join(parts[:count])
        made = sys.modules.setdefault(parent, types.ModuleType(parent))
    for cls in classes:
        cls.__module__ = name
        setattr(made, cls.__name__, cls)


class DoubleConv(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        layers = []
        for channels in (inputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
            layers += [nn.ReLU(inplace=True)]
        self.double_conv = nn.Sequential(*layers)


class DownBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.double_conv = DoubleConv(inputs, outputs)
        self.down_sample = nn.MaxPool2d(2)


class UpBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.up_sample = nn.ConvTranspose2d(inputs, outputs, kernel_size=2, stride=2)
        self.double_conv = DoubleConv(inputs, outputs)


class Encoder(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        for level in range(4):
            block = DownBlock(width << (level - 1) if level else 1, width << level)
            self.add_module(f"down_conv{level + 1}", block)
        self.double_conv = DoubleConv(8 * width, 16 * width)


class Decoder(nn.Module):
    def __init__(self, outputs, width=WIDTH):
        super().__init__()
        for level in (3, 2, 1, 0):
            self.add_module(f"up_conv{level + 1}", UpBlock(width << (level + 1), width << level))
        self.conv_last = nn.Conv2d(width, outputs, 1)


class UNet(Encoder):
    """As released: one module with all blocks, a mode as text, no `encoder`."""

    def __init__(self, outputs=2, width=WIDTH):
        super().__init__(width)
        self.up_sample_mode = "conv_transpose"
        for name, block in Decoder(outputs, width).named_children():
            self.add_module(name, block)


class Projector(nn.Module):
    def __init__(self, inputs, width=WIDTH):
        super().__init__()
        self.fc0 = nn.Linear(inputs, 24 * width)
        self.bn0 = nn.BatchNorm1d(24 * width, eps=1e-6)
        self.fc1 = nn.Linear(24 * width, 4 * width, bias=False)


class CMUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.target_backbone = Encoder(), Encoder()
        self.pixel_decoder, self.feature_decoder = Decoder(2), Decoder(2)
        self.projector, self.target_projector = Projector(256), Projector(256)
        self.head = nn.Module()
        self.head.predictor = Projector(4 * WIDTH)


class SparK(nn.Module):
    def __init__(self):
        super().__init__()
        self.sparse_encoder = nn.Module()
        self.sparse_encoder.sp_cnn = Encoder()
        self.dense_decoder = Decoder(1)
        widths = [WIDTH << level for level in (4, 3, 2, 1, 0)]
        self.densify_norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths)
        self.densify_projs = nn.ModuleList(nn.Conv2d(w, 4, 1) for w in widths[1:])
        self.mask_tokens = nn.ParameterList(nn.Parameter(torch.zeros(1, w, 1, 1)) for w in widths)
        for name in ("imn_m", "imn_s", "norm_black"):
            self.register_buffer(name, torch.zeros(1, 3, 1, 1))


class MoCo(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder_q, self.encoder_k = Encoder(), Encoder()
        for name in ("queue", "val_queue"):
            self.register_buffer(name, torch.zeros(16 * WIDTH, 8))
            self.register_buffer(f"{name}_ptr", torch.zeros(1, dtype=torch.long))


class HistoryBuffer:
    """As mmengine keeps the log: NumPy arrays in an object."""

    def __init__(self):
        self.max_length = 1_000_000
        self._log_history = np.array([0.5, 0.25])
        self._count_history = np.array([1, 1])


class AttributeDict(dict):
    """As Lightning keeps hyper-parameters."""


class ModelCheckpoint:
    """As Lightning names the state of its callbacks."""


module("model", UNet, DownBlock, UpBlock, DoubleConv)
module("mmengine.logging.history_buffer", HistoryBuffer)
module("pytorch_lightning.utilities.parsing", AttributeDict)
module("pytorch_lightning.callbacks.model_checkpoint", ModelCheckpoint)


def filled(made, *, dtype=torch.float32, prefix=""):
    """The module with patterns as weights, by the names of its state_dict."""
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                value.copy_(torch.from_numpy(pattern(prefix + name, tuple(value.shape))))
    return made.to(dtype)


def optimiser(made):
    """The state of an optimiser after a step."""
    made = nn.Linear(3, 2)
    adam = torch.optim.AdamW(made.parameters(), lr=1e-3)
    made(torch.ones(1, 3)).sum().backward()
    adam.step()
    return adam.state_dict()


def contents():
    """Yields (name of the fixture, what is saved, options of torch.save)."""
    cmunet = filled(CMUNet())
    yield "cmunet.pth", {
        "meta": {"epoch": 300, "iter": 9000, "mmengine_version": "0.10.3", "cfg": "model = ...",
                 "experiment_name": "cmunet", "seed": np.int64(3), "dataset_meta": None},
        "state_dict": cmunet.state_dict(),
        "optimizer": optimiser(cmunet),
        "param_schedulers": [{"last_step": 9000, "milestones": collections.Counter([3, 4])}],
        "message_hub": {"log_scalars": collections.OrderedDict(loss=HistoryBuffer()),
                        "runtime_info": {"epoch": 299, "names": {"a", "b"}},
                        "resumed_keys": collections.defaultdict(bool, loss=True)},
    }, {}  # fmt: skip
    spark = filled(SparK())
    state = spark.state_dict()
    state["config"] = {"mask_ratio": 0.6, "sbn": False, "dense_decoder.width": 32}
    yield "spark.pth", {"args": "Args(...)", "arch": "unet", "epoch": 1599, "module": state,
                        "optimizer": optimiser(spark), "is_pretrain": True}, {}  # fmt: skip
    moco = filled(MoCo())
    yield "moco.ckpt", {
        "epoch": 499, "global_step": 6000, "pytorch-lightning_version": "1.6.5",
        "state_dict": moco.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(0.5),
                                        "dirpath": pathlib.Path("runs")}},
        "optimizer_states": [optimiser(moco)],
        "hparams_name": "kwargs",
        "hyper_parameters": AttributeDict(learning_rate=0.03, args=argparse.Namespace(gpus=2)),
    }, {}  # fmt: skip
    genesis = nn.DataParallel(filled(UNet(1)))
    yield "genesis.pt", {
        "epoch": 256, "state_dict": genesis.state_dict(),
        "optimizer_state_dict": optimiser(genesis),
    }, {"_use_new_zipfile_serialization": False}  # fmt: skip
    yield "ratio.pth", filled(UNet()), {}
    yield (
        "ratio_legacy.pth",
        nn.DataParallel(filled(UNet())),
        {"_use_new_zipfile_serialization": False},
    )
    yield "unet_half.pth", filled(UNet(), dtype=torch.float16).state_dict(), {}
    yield "unet_bfloat16.pth", filled(UNet(), dtype=torch.bfloat16).state_dict(), {}
    yield (
        "unet_double_legacy.pth",
        filled(UNet(), dtype=torch.float64).state_dict(),
        {"_use_new_zipfile_serialization": False},
    )
    yield "encoder.pth", filled(Encoder()).state_dict(), {}


def main(folder):
    """Writes all fixtures; sources of classes, which the legacy format keeps, are replaced."""
    torch.serialization.get_source_lines_and_file = lambda *_: (["class Any: ..."], 1, "model.py")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content, options in contents():
        buffer = io.BytesIO()
        torch.save(content, buffer, **options)
        packed = gzip.compress(buffer.getvalue(), mtime=0)
        (folder / f"{name}.gz").write_bytes(packed)
        print(f"{name}: {len(buffer.getvalue()):,} bytes, {len(packed):,} compressed")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
