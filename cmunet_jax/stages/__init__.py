"""One file a stage; main dispatches on config.stage."""

from cmunet_jax.stages import evaluate, quickstart, train

STAGES = {
    "pretrain": train.run,
    "finetune": train.run,
    "evaluate": evaluate.run,
    "quickstart": quickstart.run,
}
"""config.stage -> (config, workdir) -> exit status."""
