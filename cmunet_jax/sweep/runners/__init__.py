"""What starts workers, by name; `config.runner` chooses.

A runner is a function (plan, config, workdir) -> exit status: the trials, the resolved config of
the sweep stage, and the sweep's folder or URL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import ml_collections

from cmunet_jax.sweep.plan import Trial
from cmunet_jax.sweep.runners import kubernetes, local, slurm, tpu_vm

Runner = Callable[[Sequence[Trial], ml_collections.ConfigDict, Path | str], int]

RUNNERS: Mapping[str, Runner] = MappingProxyType(
    {
        "local": local.run,
        "worker": local.run_worker,
        "slurm": slurm.run,
        "kubernetes": kubernetes.run,
        "tpu_vm": tpu_vm.run,
    }
)
"""Name in `config.runner` -> runner. `worker` does free trials until none is left; the others but
`local` start workers elsewhere."""
