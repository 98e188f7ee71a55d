"""Exports a fine-tuned checkpoint: StableHLO with its preprocessing, safetensors, ONNX.

    python -m cmunet_jax.main --config configs/export.py --config.checkpoint=runs/finetune
    python -m cmunet_jax.main --config configs/export.py --config.checkpoint=runs/finetune \
        --config.formats=stablehlo,safetensors,onnx --workdir runs/exported

Writes model.stablehlo with load.py, which needs only jax, model.safetensors under PyTorch's names,
model.onnx (needs `pip install '.[onnx]'`; the network only) and export.json with their digests, by
default into `export` in the training's workdir. Each file is checked against the network. A minute
on two cores; see docs/export.md.
"""

import ml_collections

from configs import common


def get_config(arg=None):
    """Returns the config of an export."""
    common.parse_arg(arg)
    config = ml_collections.ConfigDict()
    config.stage = "export"
    config.checkpoint = "runs/finetune"
    config.step = "latest"  # latest, best or a number
    config.weights = "ema"  # averaged weights where the run kept them, or raw
    config.formats = "stablehlo,safetensors"  # and onnx
    config.overwrite = False  # whether files of an earlier export are replaced
    return config
