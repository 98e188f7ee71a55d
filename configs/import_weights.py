"""Imports weights that PyTorch wrote as a checkpoint of ours; needs no PyTorch.

    python -m cmunet_jax.main --config configs/import_weights.py \
        --config.source=weights.pth --workdir runs/imported

Takes .pth, .pt and .ckpt (zip and legacy format: checkpoints, state_dicts, whole modules) and
.safetensors; nothing in the file is executed. docs/weights.md lists what it recognises. A
fine-tuned network can be evaluated at once, an encoder or a pre-training is what
configs/finetune.py takes as --config.init_from. Takes seconds; expect a line of counts, and
import.json with every name.
"""

import ml_collections
from ml_collections import config_dict

from configs import common


def get_config(arg=None):
    """Returns the config of an import."""
    common.parse_arg(arg)
    config = ml_collections.ConfigDict()
    config.stage = "import_weights"
    config.source = ""  # the file
    # What a U-Net with one output is, which its file does not tell: a pre-training (genesis, mae),
    # or a segmentation whose output is the artery's logit (artery).
    config.one_output = "genesis"
    config.width = 0  # 0: as the file says; another number must be the file's
    config.up = ""  # likewise: transposed or bilinear
    # What the images of the weights went through. null: as the header of our own export says, else
    # the released chain (paper) at 256. What is given here wins.
    config.preprocessing = {
        "name": config_dict.placeholder(str),
        "size": config_dict.placeholder(int),
        "centre_crop": config_dict.placeholder(int),
        "fill_contours": config_dict.placeholder(bool),
    }
    config.data = common.data("", "paper")  # a name of a data set: --config.data.name of consumers
    config.overwrite = False  # replace an earlier import in the same --workdir
    return config
