"""No file makes its reader crash, hang or run code: each is fuzzed for a few seconds from seeds.

`CMUNET_JAX_FUZZ_SECONDS=600 make test-faults PYTEST_ARGS='-k fuzz'` looks for longer.
"""

import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from cmunet_jax.train.manifest import hash_leaves
from tests.conftest import ROOT
from tests.imaging import xa
from tests.interop import torch_writer
from tests.train.states import make_state, open_run
from tfds_angio import images
from tfds_angio.angio_folder.dummy_data import picture, save, stripe, write_folder
from tfds_angio.base import build

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(
        importlib.util.find_spec("atheris") is None,
        reason="atheris is not installed (x86_64 Linux)",
    ),
]

SECONDS = int(os.environ.get("CMUNET_JAX_FUZZ_SECONDS", "10"))
TARGETS = (
    "images", "dataset", "manifests", "weights", "torch_files", "runs", "trials", "flags", "dicoms",
)  # fmt: skip


class Canary:
    """Unpickled, it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def image_seeds(folder, canary):
    for number, suffix in enumerate(images.SUFFIXES):
        for name, array in (("image", picture(1)), ("mask", stripe())):
            path = folder / f"{name}{suffix}"
            save(path, array)
            yield bytes([number]) + path.read_bytes()
    for array in (
        picture(1).astype(np.float32) / 7,
        picture(2)[None],
        np.float64(3),
        picture(3) > 9,
    ):
        buffer = io.BytesIO()
        np.save(buffer, array)
        yield b"\0" + buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, np.array([Canary(canary)], object), allow_pickle=True)
    yield b"\0" + buffer.getvalue()
    yield b"\0" + pickle.dumps(Canary(canary))


def torch_seeds(folder, canary):
    """Files of both formats and of safetensors, and pickles alone: good ones and a hostile one."""
    weights = {"down_conv1.double_conv.double_conv.0.weight": np.ones((2, 1, 3, 3), np.float32)}
    for write in (torch_writer.write_zip, torch_writer.write_legacy):
        yield b"\0" + write(folder / "a", {"state_dict": weights, "epoch": 3}).read_bytes()
    safetensors.numpy.save_file(weights, folder / "a")
    yield b"\0" + (folder / "a").read_bytes()
    storages = torch_writer.Storages()
    tensor = storages.tensor(np.zeros(6, np.float32))
    parts = {"_parameters": {"w": tensor}, "_buffers": {}, "_modules": {}, "eps": 1e-5}
    module = torch_writer.Object(torch_writer.Global("model", "UNet"), parts)
    other = [
        1.5,
        "x",
        b"y",
        {1, 2},
        np.arange(4),
        np.float32(1),
        None,
        (True, 2**70),
        Canary(canary),
    ]
    for content in (module, {"model": module, "w": tensor}):
        yield from (kind + torch_writer.pickled(content) for kind in (b"\1", b"\2"))
    for value in other:
        yield from (b"\1" + pickle.dumps(value, protocol) for protocol in (2, 4))


def dicom_seeds(folder):
    """A run of two frames in every syntax that can be encoded, packed or not."""
    lossy = {name: row[:2] for name, row in xa.LOSSY.items()}
    for name, (syntax, bits) in ({n: (s, 12) for n, s in xa.EXACT.items()} | lossy).items():
        path = xa.write(folder, xa.run(2, bits=bits), syntax=syntax, bits=bits)
        yield b"\0" + path.read_bytes()
        if name == "explicit":
            yield b"\1" + path.read_bytes()
    yield b"\1" + xa.write(folder, xa.run(2), bits=12, zipped=True).read_bytes()
    yield b"\0" + xa.write(folder, xa.run(2), bits=12, preamble=False).read_bytes()


def seeds(target, folder, canary):
    """Good files, from which the fuzzer starts; `folder` is its own."""
    folder.mkdir()
    if target == "images":
        yield from image_seeds(folder, canary)
    elif target == "dataset":
        made = build("angio_folder", data_dir=folder / "data", source=write_folder(folder / "src"),
                     workers=0, progress=False)  # fmt: skip
        yield (made.directory / "index.json").read_bytes()
        yield (made.directory / "splits" / "labelled_draw0.json").read_bytes()
    elif target in ("manifests", "weights"):
        with open_run(folder, best_metric="dice") as checkpointer:
            checkpointer.save(1, make_state(1), metrics={"dice": 0.5})
        assert len(hash_leaves({"a": np.zeros(1)})) == 1
        if target == "manifests":
            yield (folder / "1" / "manifest" / "metadata").read_bytes()
        else:
            files = sorted(p for p in (folder / "1" / "state").rglob("*") if p.is_file())
            yield from (bytes([n]) + path.read_bytes() for n, path in enumerate(files))
    elif target == "torch_files":
        yield from torch_seeds(folder, canary)
    elif target == "runs":
        facts = {"data": {"fingerprint": "f"}, "init_from": None, "seen": {}}
        yield json.dumps({"config": {"stage": "pretrain", "seed": 0}} | facts).encode()
        yield b'{"step": 2, "train/loss": 0.5}\n{"step": 4, "val/dice": "NaN"}\n'
        yield b"id,patient,centre,empty,dice\nimage0,,,,0.5\nimage1,p,c,both,1\n"
        row = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 1, "pooled": 0.5}
        yield json.dumps({"n": 1, "metrics": {"dice": row}, "checkpoint": {"step": 1}}).encode()
    elif target == "trials":
        result = {"key": "a", "version": 1, "status": "done", "data": {"fingerprint": "f" * 64}}
        yield json.dumps(result).encode()
        claim = {"owner": "me", "machine": "here 1", "lease_seconds": 60.0, "pid": 1}
        claim |= {"started": 2.0, "beat": 3, "released": True, "seconds": 1.0}
        yield json.dumps(claim).encode()
        yield json.dumps({"error": "it broke", "time": "2026-01-01T00:00:00+00:00"}).encode()
    elif target == "dicoms":
        yield from dicom_seeds(folder)
    else:
        yield from (b"size=tiny,objective=mae", b"300 epochs", b"seed=3 share=0.5 on=true",
                    b"batch_size=3\n--workdir=x", b"data.workers=2", b"10%")  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_fuzz(target, tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "corpus").mkdir()
    work = tmp_path / "work"
    for number, data in enumerate(seeds(target, tmp_path / "seeds", canary)):
        (tmp_path / "corpus" / f"{number:02d}").write_bytes(data)
    work.mkdir()
    if target == "weights":
        (tmp_path / "seeds").rename(work / "seed_run")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz", target, str(tmp_path), str(SECONDS)],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS + 240, check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    found = [
        p.name for p in tmp_path.iterdir() if p.name.startswith(("crash-", "timeout-", "oom-"))
    ]
    text = done.stdout[-3000:] + done.stderr[-5000:]
    assert done.returncode == 0 and not found, f"{found}\n{text}"
    assert not canary.exists(), "a file made its reader run code"
    assert "stat::number_of_executed_units" in text
