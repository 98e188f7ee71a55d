"""One file a stage; main dispatches on config.stage."""

from collections.abc import Callable, Mapping
from typing import Any

from cmunet_jax.stages import evaluate, quickstart, report, sweep, train

STAGES: Mapping[str, Callable[[Any, Any], int]] = {
    "pretrain": train.run,
    "finetune": train.run,
    "evaluate": evaluate.run,
    "quickstart": quickstart.run,
    "report": report.run,
    "sweep": sweep.run,
}
"""config.stage -> (config, workdir) -> exit status."""

WITHOUT_DEVICE = ("sweep", "report")
"""Stages that compute nothing themselves; a sweep leaves the accelerator to its processes."""
