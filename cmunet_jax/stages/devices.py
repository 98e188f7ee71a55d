"""Sets up JAX's devices and the compilation cache, once a process."""

import os

import jax
import ml_collections
from absl import logging

from cmunet_jax.stages import hosts
from tfds_angio.errors import UserError


def set_up(config: ml_collections.ConfigDict | None = None) -> None:
    """Turns on the compilation cache, joins the other processes of the run and finds the devices.

    Args:
      config: of a training stage, which says whether there are other processes.

    Raises:
      UserError: if there is no device, or the others cannot be joined.
    """
    cache = os.environ.get("CMUNET_JAX_CACHE", os.path.expanduser("~/.cache/cmunet_jax/xla"))
    # Compiling a step takes longer than many of its runs; the key includes program and hardware.
    # A study starts hundreds of processes, so small programs are kept too.
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    hosts.start(config or ml_collections.ConfigDict())
    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise UserError(f"no device: {' '.join(str(error).split())}") from None
    logging.info("%d x %s", len(devices), devices[0].device_kind)
