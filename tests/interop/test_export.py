"""The export stage: what it writes, what it says of it, and what it refuses."""

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

from cmunet_jax.data import geometry, preprocessing, released
from cmunet_jax.interop import export_loader, safetensors_file
from cmunet_jax.stages import export, export_header, import_weights, segment
from cmunet_jax.stages import train as train_stage
from cmunet_jax.train import checkpoint, sharding
from configs.export import get_config
from configs.import_weights import get_config as get_import_config
from tests.conftest import ROOT
from tests.data.fakes import angiogram
from tests.stage_helpers import tiny
from tfds_angio.errors import UserError


@pytest.fixture(scope="module")
def tuned(tiny_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    assert train_stage.run(tiny("finetune", tiny_dataset, 2), folder) == 0
    return folder


def config_for(checkpoint, **changes):
    config = get_config()
    config.checkpoint = str(checkpoint)
    config.update(changes)
    return config


def test_safetensors_hold_the_weights_and_the_manifest_their_digest(tuned, tmp_path, capsys):
    target = tmp_path / "new" / "folder"
    assert export.run(config_for(tuned, formats="safetensors"), target) == 0
    assert sorted(p.name for p in target.iterdir()) == ["export.json", "model.safetensors"]
    loaded = checkpoint.load(tuned)
    params, batch_stats, header = safetensors_file.read(target / "model.safetensors")
    same = jax.tree.map(np.array_equal, (params, batch_stats), loaded.weights())
    assert jax.tree.all(same)
    manifest = json.loads((target / "export.json").read_text())
    content = (target / "model.safetensors").read_bytes()
    described = manifest["files"]["model.safetensors"]
    assert described == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert manifest["checkpoint"]["digest"] == loaded.digest
    assert export_header.read(header)["preprocessing"] == dict(loaded.preprocessing)
    assert str(tuned) not in (target / "export.json").read_text()
    assert capsys.readouterr().out.splitlines()[-1] == str(target / "export.json")

    # Imported again, it is the same network with the same preprocessing, and exported again.
    imported = get_import_config()
    imported.source = str(target / "model.safetensors")
    assert import_weights.run(imported, tmp_path / "imported") == 0
    again = checkpoint.load(tmp_path / "imported")
    assert dict(again.preprocessing) == dict(loaded.preprocessing)
    assert again.config["model"]["dtype"] == loaded.config["model"]["dtype"]
    assert export.run(config_for(tmp_path / "imported", formats="safetensors"), None) == 0


def test_results_are_replaced_only_on_request(tuned, tmp_path):
    config = config_for(tuned, formats="safetensors")
    (tmp_path / "model.onnx").write_text("older")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"model.onnx exists: .*--config.overwrite=True"):
        export.run(config, tmp_path)
    config.overwrite = True
    assert export.run(config, tmp_path) == 0
    # What is no longer described does not stay; what is not ours does.
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["export.json", "model.safetensors", "notes.txt"]


def test_frames_of_the_check_have_dark_corners_of_8_and_of_16_bits():
    chain = preprocessing.create({"name": "paper", "size": 64})
    filled = []
    for frame in (frame for frames in export._probes() for frame in frames):
        crop = geometry.extract(released.to_uint8(frame), chain.geometry(*frame.shape), fill=None)
        changed = released.inpaint_corners(crop) != crop
        filled.append((frame.dtype.itemsize, changed.mean() > 0.05))
    assert (1, True) in filled and (2, True) in filled


@pytest.mark.parametrize("formats", ["stablehlo,tflite", "", ","])
def test_unknown_formats_are_refused(tuned, tmp_path, formats):
    with pytest.raises(UserError, match="config.formats.*safetensors, onnx"):
        export.run(config_for(tuned, formats=formats), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_onnx_without_its_extra_says_what_to_install(tuned, tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx needs torch, .*pip install '.\[onnx\]'"):
        export.run(config_for(tuned, formats="onnx"), tmp_path / "out")


def test_a_failure_leaves_nothing(tuned, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.safetensors_file, "write", fail)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        export.run(config_for(tuned, formats="safetensors"), tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_files_and_missing_checkpoints_are_named(tuned, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file. Choose a folder"):
        export.run(config_for(tuned, formats="safetensors"), tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        export.run(config_for(tuned, formats="safetensors"), tmp_path / "file" / "below")
    with pytest.raises(UserError, match="nowhere"):
        export.run(config_for(tmp_path / "nowhere"), tmp_path / "out")


def test_a_pretraining_is_not_exported(tiny_dataset, tmp_path):
    train_stage.run(tiny("pretrain", tiny_dataset, 2), tmp_path / "pretrain")
    with pytest.raises(UserError, match="Fine-tune it first"):
        export.run(config_for(tmp_path / "pretrain"), None)
    assert not (tmp_path / "pretrain" / "export").exists()


# What installing jax installs; nothing of ours, no Flax, no OpenCV, no flatbuffers.
ALONE = (
    "jax", "jaxlib", "numpy", "numpy.libs", "ml_dtypes", "opt_einsum", "scipy", "scipy.libs",
)  # fmt: skip


def run_alone(folder, packages, *arguments):
    """Runs load.py, model, frames and result, where only `ALONE` can be imported."""
    packages.mkdir()
    site = pathlib.Path(np.__file__).parent.parent
    for name in ALONE:
        if (site / name).exists():
            (packages / name).symlink_to(site / name)
    code = (
        f"import sys; sys.path[:0] = [{str(folder)!r}]; sys.path.append({str(packages)!r})\n"
        "for name in ('cmunet_jax', 'flax', 'cv2', 'tfds_angio', 'flatbuffers'):\n"
        "    try: __import__(name)\n"
        "    except ImportError: continue\n"
        "    raise SystemExit(name + ' can be imported')\n"
        "import load, numpy\n"
        "model, frames, made = sys.argv[1:]\n"
        "numpy.save(made, load.load(model)(numpy.load(frames)))\n"
    )
    command = [sys.executable, "-I", "-S", "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, cwd=packages, capture_output=True, text=True, timeout=400, env=dict(os.environ)
    )


@pytest.mark.slow
def test_the_loader_alone_gives_the_same_probabilities(tuned, tmp_path):
    out = tmp_path / "out"
    assert export.run(config_for(tuned, formats="stablehlo"), out) == 0
    manifest = json.loads((out / "export.json").read_text())
    assert manifest["checks"]["stablehlo"]["platforms"] == ["cpu", "cuda", "tpu"]
    for path in (p for p in out.iterdir() if p.is_file()):
        content = path.read_bytes()
        for place in (ROOT, pathlib.Path(sys.prefix), pathlib.Path.home(), tmp_path):
            assert f"{place}/".encode() not in content, f"{path.name} names {place}"
    assert manifest["checks"]["stablehlo"]["dice"] > 0.99
    lines = [x.strip() for x in (out / "load.py").read_text().splitlines()]
    assert len([x for x in lines if x and x[0] not in '#"']) <= 20

    frames = np.stack([angiogram(210, 150, seed) for seed in range(3)]).astype(np.uint16) * 16
    np.save(tmp_path / "frames.npy", frames)
    names = (out / "model.stablehlo", tmp_path / "frames.npy", tmp_path / "made.npy")
    done = run_alone(out, tmp_path / "site", *names)
    assert done.returncode == 0, done.stderr
    made = np.load(tmp_path / "made.npy")
    mesh = sharding.create_mesh()
    segmenter = segment.restore(tuned, step="latest", weights="ema", mesh=mesh)
    ours = export.probabilities(
        segmenter.forward, segmenter.weights, segmenter.preprocessing, frames
    )
    assert made.shape == frames.shape and made.dtype == np.float32
    assert np.abs(made - ours).max() < 0.02
    assert ((made > 0.5) == (ours > 0.5)).mean() > 0.999

    # jax's own reader takes the same file, where flatbuffers is installed.
    model = out / "model.stablehlo"
    theirs = jax.export.deserialize(bytearray(model.read_bytes())).call
    assert np.array_equal(theirs(frames.astype(np.float32), np.bool_(False)), made)

    segmented = export_loader.load(model)
    with pytest.raises(ValueError, match="Expected value >= 1 for dimension variable 'b'"):
        segmented(frames[:0])
    for bad in (frames[0], frames * 1j, np.full((1, 32, 32), 1e300)):
        with pytest.raises(ValueError, match="not grey, finite"):
            segmented(bad)
    whole = model.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # a bit of a weight
    pickled = b"\x80\x04K\x01."  # is not run
    for damaged in (whole[: len(whole) // 2], bytes(flipped), pickled, b""):
        model.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{re.escape(str(model))} is damaged"):
            export_loader.load(model)
