"""Evaluates a fine-tuned checkpoint per image at native resolution.

    python -m cmunet_jax.main --config configs/evaluate.py --config.checkpoint=runs/finetune

Writes summary.json, cases.csv and overlays of the best, median and worst case, by default into
`evaluation-<split>` in the training's workdir. The preprocessing is the checkpoint's, so is the
data set, unless --config.data.name says otherwise. Seconds to minutes. As in the paper:
--config.protocol=paper --config.resolution=network.
"""

import ml_collections

from configs import common


def get_config(arg=None):
    """Returns the config of an evaluation."""
    arg = common.parse_arg(arg, data="")
    config = ml_collections.ConfigDict()
    config.stage = "evaluate"
    config.checkpoint = "runs/finetune"
    config.step = "latest"  # latest, best or a number
    config.weights = "ema"  # averaged weights where the run kept them, or raw
    config.data = common.data(arg.data, "paper")
    config.data.dir = config.data.splits = ""  # like the name, those of the training
    config.split = "test"
    config.batch_size = 8
    config.protocol = "fixed"  # or paper: the released definitions, pooled over batches
    config.resolution = "native"  # or network: at the size that the network sees
    config.overlays = True
    return config
