"""Sets up JAX's devices and the compilation cache, once a process."""

import os

import jax
from absl import logging

from tfds_angio.errors import UserError


def set_up() -> None:
    """Turns on the compilation cache and finds the devices.

    Raises:
      UserError: if there is no device.
    """
    cache = os.environ.get("CMUNET_JAX_CACHE", os.path.expanduser("~/.cache/cmunet_jax/xla"))
    # Compiling a step takes longer than many of its runs; the key includes program and hardware.
    # A study starts hundreds of processes, so small programs are kept too.
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise UserError(f"no device: {' '.join(str(error).split())}") from None
    logging.info("%d x %s", len(devices), devices[0].device_kind)
