"""Pre-trains a U-Net on unlabelled angiograms: CM-UNet or a method it is compared with.

    python -m cmunet_jax.main --config configs/pretrain.py
    python -m cmunet_jax.main --config configs/pretrain.py:objective=spark
    python -m cmunet_jax.main --config configs/pretrain.py:size=small,data=arcade \
        --config.data.source=/path/to/arcade.zip

Arguments after the colon: objective=cmunet|mae|genesis|moco|spark, size=paper|small|demo|tiny,
preset=fixed|paper, preprocessing=fixed|paper (where it differs from the preset), data=NAME. The
paper's size is for a GPU or TPU and follows each method's own recipe; two CPU cores would take
weeks. The smaller sizes give every method the same optimiser and the same number of steps:
size=small takes two cores about 50 minutes. Without other data it uses the embedded synthetic
angiograms. Expect the loss to fall in the first epochs and reconstructions to sharpen slowly; look
at the pictures of the run.
"""

from cmunet_jax import objectives
from configs import common

OBJECTIVES = ("cmunet", *sorted(set(objectives.OBJECTIVES) - {"cmunet", "scratch"}))
# Sizes below the paper's: one recipe for all methods.
BATCH = {"small": 32, "demo": 16, "tiny": 8}
TRAIN_FOR = {"small": "1500 steps", "demo": "500 steps", "tiny": "24 steps"}
# MoCo, sized down: its queue; the images normalised together, where its preset has groups; and a
# momentum that forgets in a fifth of the run, as 0.999 does in the paper's 5,000 steps.
MOCO = {
    "small": dict(queue=1024, bn_group=8, momentum=0.997),
    "demo": dict(queue=512, bn_group=4, momentum=0.99),
    "tiny": dict(queue=64, bn_group=4, momentum=0.99),
}
SMALL_OPTIM = dict(learning_rate=1e-3, warmup="10%", b2=0.95, weight_decay=0.05)

# The released recipes (method.md, sections 3 and 4).
_GENESIS = dict(
    batch_size=64,
    train_for="256 epochs",
    optim=dict(
        name="sgd", learning_rate=1e-2, momentum=0.9, schedule="step", halve_every=40 / 256,
        warmup="0 steps",
    ),
)  # fmt: skip
RECIPES = {
    "cmunet": dict(
        batch_size=256,
        # The released run is 16 devices of 16 images; the same normalisation batch on one device.
        accumulation=16,
        train_for="300 epochs",
        # Released: 1.5e-4 a batch of 256, times 16 devices.
        optim=dict(
            learning_rate=2.4e-3, reference_batch=256, warmup="40 epochs", b2=0.95,
            weight_decay=0.05,
        ),
    ),
    "mae": _GENESIS,
    "genesis": _GENESIS,
    "moco": dict(
        batch_size=128,
        train_for="500 epochs",
        optim=dict(
            name="sgd", learning_rate=0.03, momentum=0.9, weight_decay=1e-4, warmup="0 steps"
        ),
    ),
    "spark": dict(
        batch_size=128,
        train_for="1600 epochs",
        optim=dict(
            name="lamb", learning_rate=2e-4, reference_batch=256, warmup="40 epochs",
            warmup_from=5e-3, b2=0.95, weight_decay=0.04, weight_decay_end=0.2, clip_norm=5.0,
        ),
    ),
}  # fmt: skip


def get_config(arg=None):
    """Returns the config of a pre-training run."""
    arg = common.parse(arg, objective=OBJECTIVES)
    objective = objectives.OBJECTIVES[arg.objective]
    config = common.training(arg, view=objective.views[0])
    config.views.update(objectives.view_options(arg.objective, arg.preset))
    config.stage = "pretrain"
    config.objective = objectives.default_options(arg.objective, arg.preset)
    # Images whose labels are not used, and images without labels.
    config.data.split = "train+unlabelled"
    if arg.size == "paper":
        recipe = dict(RECIPES[arg.objective])
        config.optim = common.optim(**recipe.pop("optim"))
        config.update(recipe)
    else:
        config.batch_size, config.train_for = BATCH[arg.size], TRAIN_FOR[arg.size]
        config.optim = common.optim(**SMALL_OPTIM)
        if arg.objective == "moco":
            grouped = config.objective.bn_group > 0
            config.objective.update(MOCO[arg.size])
            config.objective.bn_group *= grouped
    config.eval_every = "0 steps"
    return config
