"""Fine-tunes the segmentation U-Net on a few labelled angiograms.

    python -m cmunet_jax.main --config configs/finetune.py --config.labels=18
    python -m cmunet_jax.main --config configs/finetune.py:init=scratch      # no pre-training

Arguments after the colon: size=paper|small|demo|tiny, preset=fixed|paper, preprocessing=fixed|paper
(where it differs from the preset), data=NAME, init=pretrained|scratch. Starts from runs/pretrain
(--config.init_from=WORKDIR for another). A fixed number of steps whatever the number of labels; the
last averaged weights are the result, so no test or validation image selects anything. Under twenty
minutes on two cores with size=small.
"""

from cmunet_jax import objectives
from configs import common

STEPS = {"paper": 2000, "small": 1200, "demo": 400, "tiny": 24}
BATCH = {"paper": 16, "small": 16, "demo": 16, "tiny": 8}


def get_config(arg=None):
    """Returns the config of a fine-tuning run."""
    arg = common.parse(arg, init=("pretrained", "scratch"))
    config = common.training(arg, view="supervised")
    config.stage = "finetune"
    config.objective = objectives.default_options("scratch", arg.preset)
    config.init_from = "runs/pretrain" if arg.init == "pretrained" else ""
    config.data.split = "train"
    config.labels = 18  # labelled images used; 0: all
    config.draw = 0  # which of the nested draws of labelled images
    # Instead of a draw: a file that lists images of train, e.g. the selection.csv of
    # configs/select.py. The first config.labels of them are used; 0: all.
    config.label_ids = ""
    # Cross-validation: the labels are divided into this many folds (0: not), and learnt without
    # one of them, which becomes the split `fold`.
    config.folds = 0
    config.fold = 0
    config.batch_size = BATCH[arg.size]
    config.train_for = f"{STEPS[arg.size]} steps"
    config.eval_split = "val"  # watched during training, never used to select; '' for none
    config.eval_images = 32  # of it, to keep the watching cheap; 0: all
    config.eval_every = "20%"
    config.optim = common.optim(weight_decay=1e-4, clip_norm=1.0)
    config.ema_decay = 0.99
    if arg.preset == "paper":
        # Released: Adam without a schedule for 128 epochs, whatever that is in steps.
        config.train_for = "128 epochs"
        config.optim = common.optim(name="adam", schedule="constant", warmup="0 steps")
        config.ema_decay = 0.0
    return config
