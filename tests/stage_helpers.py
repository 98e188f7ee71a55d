"""Tiny configs of real stages, shared by the tests that run them."""

import importlib


def tiny(stage, dataset, steps, *, preset="fixed", objective="cmunet", **overrides):
    """The config of a training stage at its tiny size, on a built data set, for a few steps."""
    kind = "init=scratch" if stage == "finetune" else f"objective={objective}"
    argument = f"size=tiny,preset={preset},{kind}"
    config = importlib.import_module(f"configs.{stage}").get_config(argument)
    config.data.dir = str(dataset.directory.parents[2])
    config.data.name = dataset.name
    config.data.workers = 1
    config.train_for = f"{steps} steps"
    config.log_every = "2 steps"
    config.eval_every = "0 steps"
    config.pictures_every = "0 steps"
    config.checkpoint.every = "100%"
    if stage == "finetune":
        config.eval_split = ""
    config.update_from_flattened_dict(overrides)
    return config
