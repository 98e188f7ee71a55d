"""Compares pre-training methods at several label counts: a study as a set of trials.

    python -m cmunet_jax.main --config configs/sweep.py --workdir runs/sweep
    python -m cmunet_jax.main --config configs/sweep.py:size=small,data=arcade \
        --config.methods=scratch,cmunet --config.labels=18,500
    python -m cmunet_jax.main --config configs/sweep.py --dry-run     # what it would do

methods × labels × draws × seeds, with one pre-training for each method and seed, a search of the
learning rate for each method and label count, and one evaluation on the test split for each
fine-tuning. The same command continues where it stopped and does only what is missing; several at
once share the work. Arguments after the colon: size=small|paper|demo|tiny, data=NAME,
protocol=fair|paper. A list is given once, with commas: a flag that is repeated adds to it. Protocol
`fair`: the same number of steps at every label count, the same search for every method, the same
number of images in every pre-training (pretrain_for, which overrules pretrain.METHOD.train_for;
pretrain_for=own gives each recipe its own time), nothing chosen on test images. What a study under
it lacks (fewer than three draws, epochs instead of steps) is said and kept in sweep.json. Protocol
`paper`: 128 epochs, its image-level splits, learning rates by 3-fold cross-validation, the
checkpoint selected on the test split. Where a data set has no test split: --config.test_split=val
--config.data.splits=holdout:100 --config.search.split=holdout. A day or two on two cores with
size=small, minutes with size=tiny; --dry-run measures it.
"""

import ml_collections

from cmunet_jax.sweep.runners import kubernetes, slurm, tpu_vm
from configs import common, evaluate, finetune, pretrain

SIZES = ("small", "paper", "demo", "tiny")
RATES = {"fair": (3e-4, 1e-3, 3e-3), "paper": (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)}
# Images that every pre-training of `fair` sees, each as often as it comes up. At the paper's size
# about the 300 epochs of CM-UNet on its 1,300 images; else the steps of configs/pretrain.py.
PRETRAIN_FOR = {
    "paper": "400000 examples",
    "small": "48000 examples",
    "demo": "8000 examples",
    "tiny": "192 examples",
}
SCALES = {
    "paper": "the paper's: U-Net-64 at 256²",
    "small": "small: U-Net-16 at 128², a few hundred steps",
    "demo": "a demonstration: U-Net-8 at 96², a few hundred steps",
    "tiny": "tiny: U-Net-4 at 64², a few steps, to see that everything works",
}
# What the released code does and a `fixed` run does not, one at a time (method.md, section 7; the
# numbers are its rows). {test} stands for config.test_split.
DEFECTS = {
    "hard_dice": {"finetune": {"objective": {"soft_dice": False}}},  # 1
    "epochs": {"finetune": {"train_for": "128 epochs"}},  # 2
    "select_on_test": {  # 3
        "finetune": {
            "eval_split": "{test}",
            "eval_images": 0,
            "eval_every": "5%",
            "checkpoint": {"best": "{test}/dice"},
        },
        "evaluate": {"step": "best"},
    },
    "shared_mask": {"pretrain": {"cmunet": {"objective": {"mask_per_sample": False}}}},  # 7
    "fresh_adapter": {"pretrain": {"cmunet": {"objective": {"adapter": "fresh"}}}},  # 8
    "row_target": {"pretrain": {"cmunet": {"objective": {"reconstruction_target": "row"}}}},  # 9
}


def get_config(arg=None):
    """Returns the config of a sweep."""
    arg = common.parse_arg(arg, size=SIZES, data=common.EMBEDDED_DATA, protocol=("fair", "paper"))
    preset = "paper" if arg.protocol == "paper" else "fixed"
    base = f"size={arg.size},data={arg.data},preset={preset}"
    config = ml_collections.ConfigDict()
    config.stage = "sweep"
    config.title = "Labels that pre-training saves"
    config.scale = SCALES[arg.size]
    config.protocol = arg.protocol
    config.methods = ("scratch", *pretrain.OBJECTIVES)
    config.labels = (18, 0)  # 0: all
    config.draws = (0, 1, 2)  # nested subsets of the labelled images
    config.seeds = (0,)
    config.learning_rates = RATES[arg.protocol]  # of the fine-tuning; one: no search
    # A search trains on the first draw, with the first seed.
    config.search = ml_collections.ConfigDict()
    config.search.split = "val"  # scores; never the test split under protocol fair
    config.search.metric = "dice"
    config.search.folds = 3 if arg.protocol == "paper" else 0  # > 0: scored by cross-validation
    config.search.fraction = 1.0 if arg.protocol == "paper" else 0.25  # of the steps
    config.search.variants = True  # False: variants take the rates found without them
    config.test_split = "test"
    # Names from known_variants, or 'NAME: finetune.key=VALUE pretrain.METHOD.key=VALUE'.
    config.variants = ()
    config.variant_methods = ("scratch", "cmunet")  # that they are tried with; (): all
    config.variant_labels = ()  # (): those of the sweep
    config.main_variant = True  # False: only the variants
    config.known_variants = ml_collections.ConfigDict(DEFECTS)
    # The same duration for every method, or 'own': as its recipe says.
    config.pretrain_for = "own" if arg.protocol == "paper" else PRETRAIN_FOR[arg.size]
    config.data = common.data(arg.data, arg.size)
    config.pretrain = ml_collections.ConfigDict()
    for name in pretrain.OBJECTIVES:
        config.pretrain[name] = pretrain.get_config(f"{base},objective={name}")
    config.finetune = finetune.get_config(f"{base},init=scratch")
    config.finetune.eval_split = ""  # Nothing is watched: it would cost time and select nothing.
    config.finetune.checkpoint.keep = 1
    config.finetune.checkpoint.every = "25%"
    config.evaluate = evaluate.get_config()
    if arg.protocol == "paper":
        config.data.splits = "paper"
        config.finetune.eval_split = "{test}"  # config.test_split
        config.finetune.eval_images = 0
        config.finetune.eval_every = "5%"
        config.finetune.checkpoint.best = "{test}/dice"
        config.evaluate.step = "best"
    config.runner = "local"  # or worker, or slurm, kubernetes, tpu_vm: start workers (launch/)
    for runner in (slurm, kubernetes, tpu_vm):
        config[runner.FOLDER] = ml_collections.ConfigDict(runner.default_options())
    config.lease_seconds = 120.0  # without a sign of life a trial is taken over after this
    config.max_attempts = 2  # failing ones, after which a trial has failed
    config.retry_failed = False
    config.keep = "needed"  # checkpoints: 'needed' deletes those of searches, 'all' none
    config.scratch = ""  # where workers of a gs:// sweep train; '': in the cache folder
    config.dry_run = False
    return config
