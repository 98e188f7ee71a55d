"""Pre-trains CM-UNet on unlabelled angiograms.

    python -m cmunet_jax.main --config configs/pretrain.py
    python -m cmunet_jax.main --config configs/pretrain.py:size=small,data=arcade \
        --config.data.source=/path/to/arcade.zip

Arguments after the colon: size=paper|small|demo|tiny, preset=fixed|paper, preprocessing=fixed|paper
(where it differs from the preset), data=NAME, objective=NAME. The paper's size is for a GPU or TPU:
two CPU cores would take about two weeks; size=small takes them about 50 minutes. Without other data
it uses the embedded synthetic angiograms. Expect the contrastive term to fall in the first epochs
and the reconstruction to sharpen slowly; look at the pictures of the run.
"""

from cmunet_jax import objectives
from configs import common

BATCH = {"paper": 256, "small": 32, "demo": 16, "tiny": 8}
# The released run is 16 devices of 16 images; the same normalisation batch on one device.
ACCUMULATION = {"paper": 16}
TRAIN_FOR = {"paper": "300 epochs", "small": "1500 steps", "demo": "500 steps", "tiny": "24 steps"}


def get_config(arg=None):
    """Returns the config of a pre-training run."""
    arg = common.parse(arg, objective=("cmunet",))
    config = common.training(arg, view=objectives.OBJECTIVES[arg.objective].views[0])
    config.stage = "pretrain"
    config.objective = objectives.default_options(arg.objective, arg.preset)
    # Images whose labels are not used, and images without labels.
    config.data.split = "train+unlabelled"
    config.batch_size = BATCH[arg.size]
    config.accumulation = ACCUMULATION.get(arg.size, 1)
    config.train_for = TRAIN_FOR[arg.size]
    config.optim = common.optim(
        # Released: 1.5e-4 a batch of 256, times 16 devices. Linear scaling would starve the small
        # batches of the small presets.
        learning_rate=2.4e-3 if arg.size == "paper" else 1e-3,
        reference_batch=256 if arg.size == "paper" else 0,
        warmup="40 epochs" if arg.size == "paper" else "10%",
        b2=0.95,
        weight_decay=0.05,
    )
    config.eval_every = "0 steps"
    return config
