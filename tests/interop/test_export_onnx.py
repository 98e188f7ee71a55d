"""ONNX through PyTorch's exporter, in onnxruntime. Skips without the extra `onnx`."""

import json

import numpy as np
import pytest

from cmunet_jax.stages import export, segment
from cmunet_jax.stages import train as train_stage
from cmunet_jax.train import sharding
from configs.export import get_config
from tests.stage_helpers import tiny

for name in ("torch", "onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason="the extra `onnx` is not installed")
from cmunet_jax.interop.pytorch import onnx_file  # noqa: E402

pytestmark = pytest.mark.slow


def test_onnx_gives_our_logits_at_any_batch_and_size(tiny_dataset, tmp_path):
    assert train_stage.run(tiny("finetune", tiny_dataset, 2), tmp_path / "tuned") == 0
    config = get_config()
    config.checkpoint, config.formats = str(tmp_path / "tuned"), "onnx"
    assert export.run(config, tmp_path / "out") == 0
    check = json.loads((tmp_path / "out" / "export.json").read_text())["checks"]["onnx"]
    assert check["largest_difference"] < 1e-4

    mesh = sharding.create_mesh()
    segmenter = segment.restore(config.checkpoint, step="latest", weights="ema", mesh=mesh)
    session = onnx_file.Session(tmp_path / "out" / "model.onnx")
    for batch, height, width in ((1, 64, 64), (3, 48, 80)):
        images = np.random.default_rng(batch).normal(size=(batch, height, width, 1))
        images = images.astype(np.float32)
        ours = segmenter.forward(segmenter.weights, images)
        np.testing.assert_allclose(session(images[..., 0]), ours, atol=1e-4)


def test_the_onnx_file_says_where_it_is_from(tiny_dataset, tmp_path):
    import onnx

    train_stage.run(tiny("finetune", tiny_dataset, 2), tmp_path / "tuned")
    config = get_config()
    config.checkpoint, config.formats = str(tmp_path / "tuned"), "onnx,safetensors"
    assert export.run(config, tmp_path / "out") == 0
    model = onnx.load(tmp_path / "out" / "model.onnx")
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    manifest = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["checkpoint"] == manifest["checkpoint"]
    assert facts["preprocessing"] == manifest["preprocessing"]
