"""Lets clu's metric writers and periodic actions be imported without TensorFlow.

`clu.metric_writers` imports its summary writer, and that one TensorFlow, at module level. Importing
this module puts a writer over tensorboardX in that one place, which is all that clu needs: the
rest of clu then works unchanged, and TensorFlow is not loaded even where it is installed. The
package `cmunet_jax.train` imports it first.
"""

import sys
import types
from typing import Any

_SUMMARY_WRITER = "clu.metric_writers.summary_writer"


def _summary_writer(logdir: str) -> Any:
    """Stands for clu.metric_writers.SummaryWriter."""
    from cmunet_jax.train.tensorboard import TensorBoardWriter  # It imports clu.

    return TensorBoardWriter(logdir)


def install() -> None:
    """Registers the replacement unless clu's own module was imported before."""
    if _SUMMARY_WRITER not in sys.modules:
        module = types.ModuleType(_SUMMARY_WRITER, __doc__)
        vars(module)["SummaryWriter"] = _summary_writer
        sys.modules[_SUMMARY_WRITER] = module


install()
