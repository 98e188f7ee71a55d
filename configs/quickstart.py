"""The whole chain, small: pre-train, fine-tune on 18 labels with and without it, evaluate, report.

    python -m cmunet_jax.main --config configs/quickstart.py

Under ten minutes on two cores, on embedded synthetic angiograms. The last line is the path of the
report. Arguments: size=demo|tiny (tiny: a minute, to see that everything works).
"""

import ml_collections

from configs import common, evaluate, finetune, pretrain

WIDTH = {"demo": 8, "tiny": 4}
PRETRAIN_FOR = {"demo": "600 steps", "tiny": "24 steps"}
FINETUNE_FOR = {"demo": "400 steps", "tiny": "24 steps"}


def get_config(arg=None):
    """Returns the config of the demonstration."""
    arg = common.parse_arg(arg, size=("demo", "tiny"), labels=18)
    base = "small" if arg.size == "demo" else "tiny"
    config = ml_collections.ConfigDict()
    config.stage = "quickstart"
    config.title = "CM-UNet quickstart"
    config.scale = "demonstration on synthetic angiograms: a small network, few steps"
    config.pretrain = pretrain.get_config(f"size={base}")
    config.pretrain.batch_size = 16 if arg.size == "demo" else 8
    config.pretrain.train_for = PRETRAIN_FOR[arg.size]
    config.finetune = finetune.get_config(f"size={base}")
    config.scratch = finetune.get_config(f"size={base},init=scratch")
    for part in (config.pretrain, config.finetune, config.scratch):
        part.data.name = f"{common.EMBEDDED_DATA}/{arg.size}"
        part.model.width = WIDTH[arg.size]
    for part in (config.finetune, config.scratch):
        part.train_for = FINETUNE_FOR[arg.size]
        part.labels = arg.labels
    config.evaluate = evaluate.get_config()
    return config
