"""Sets up JAX's devices and the compilation cache, once a process."""

import functools
import os
from unittest import mock

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
    if jax.process_count() > 1 and devices[0].platform == "cpu":
        _let_every_process_write_the_cache()


def _let_every_process_write_the_cache() -> None:
    """Lets the processes of a run on CPUs keep what they compiled; without it, only the first does.

    JAX has process 0 write for all, which share its entries. On CPUs the keys of the others differ
    from its own: they would find nothing, compile anew at every start and have the first wait.
    JAX has no option for it. Where a version has other internals, the cache is colder, no more.
    """
    try:
        from jax._src import compiler, distributed

        write, told = compiler._cache_write, distributed.global_state
    except (ImportError, AttributeError):
        return

    @functools.wraps(write)
    def as_the_first(*args: object, **kwargs: object) -> None:
        with mock.patch.object(told, "process_id", 0):
            write(*args, **kwargs)

    compiler._cache_write = as_the_first
