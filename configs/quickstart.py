"""The whole chain, small: pre-train, fine-tune on 18 labels with and without it, evaluate, report.

    python -m cmunet_jax.main --config configs/quickstart.py

Under ten minutes on two cores, on embedded synthetic angiograms. The last line is the path of the
report. Arguments: size=demo|small|tiny (small: hours; tiny: minutes, to see that everything
works), data=NAME, labels=N.
"""

import ml_collections

from configs import common, evaluate, finetune, pretrain


def get_config(arg=None):
    """Returns the config of the demonstration."""
    arg = common.parse_arg(
        arg, size=("demo", "small", "tiny"), data=common.EMBEDDED_DATA, labels=18
    )
    config = ml_collections.ConfigDict()
    config.stage = "quickstart"
    config.title = "CM-UNet quickstart"
    config.scale = "a demonstration: a small network, few steps"
    base = f"size={arg.size},data={arg.data}"
    config.pretrain = pretrain.get_config(base)
    config.finetune = finetune.get_config(base)
    config.scratch = finetune.get_config(f"{base},init=scratch")
    for part in (config.finetune, config.scratch):
        part.labels = arg.labels
    config.evaluate = evaluate.get_config()
    del config.evaluate.checkpoint, config.evaluate.data  # those of the two arms
    return config
