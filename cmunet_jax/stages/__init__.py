"""One file a stage; main dispatches on config.stage."""

from collections.abc import Callable, Mapping
from typing import Any

from cmunet_jax.stages import (
    benchmark,
    evaluate,
    export,
    import_weights,
    predict,
    quickstart,
    report,
    select,
    sweep,
    train,
    view,
)

STAGES: Mapping[str, Callable[[Any, Any], int]] = {
    "pretrain": train.run,
    "finetune": train.run,
    "evaluate": evaluate.run,
    "predict": predict.run,
    "export": export.run,
    "quickstart": quickstart.run,
    "report": report.run,
    "sweep": sweep.run,
    "benchmark": benchmark.run,
    "import_weights": import_weights.run,
    "view": view.run,
    "select": select.run,
}
"""config.stage -> (config, workdir) -> exit status."""

WITHOUT_DEVICE = ("sweep", "report", "benchmark", "view")
"""Stages that compute nothing themselves, leave the accelerator to their processes, or set up the
devices when they have chosen how many cores JAX may use."""
