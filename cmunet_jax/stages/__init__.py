"""One file a stage; main dispatches on config.stage."""

from collections.abc import Callable, Mapping
from typing import Any

from cmunet_jax.stages import benchmark, evaluate, quickstart, report, select, sweep, train

STAGES: Mapping[str, Callable[[Any, Any], int]] = {
    "pretrain": train.run,
    "finetune": train.run,
    "evaluate": evaluate.run,
    "quickstart": quickstart.run,
    "report": report.run,
    "sweep": sweep.run,
    "benchmark": benchmark.run,
    "select": select.run,
}
"""config.stage -> (config, workdir) -> exit status."""

WITHOUT_DEVICE = ("sweep", "report", "benchmark")
"""Stages that compute nothing themselves, leave the accelerator to their processes, or set up the
devices when they have chosen how many cores JAX may use."""
