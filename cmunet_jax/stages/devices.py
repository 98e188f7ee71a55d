"""Sets up JAX's devices and the compilation cache, once a process."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from absl import logging

from cmunet_jax.stages import hosts
from tfds_angio.errors import UserError

# To compile. A study starts hundreds of processes, so small programs are kept too.
_LEAST_SECONDS = 0.1


def set_up(config: ml_collections.ConfigDict | None = None) -> None:
    """Turns on the compilation cache, joins the other processes of the run and finds the devices.

    Args:
      config: of a training stage, which says whether there are other processes.

    Raises:
      UserError: if there is no device, or the others cannot be joined.
    """
    cache = os.environ.get("CMUNET_JAX_CACHE", os.path.expanduser("~/.cache/cmunet_jax/xla"))
    # Compiling a step takes longer than many of its runs; the key includes program and hardware.
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    hosts.start(config or ml_collections.ConfigDict())
    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise UserError(f"no device: {' '.join(str(error).split())}") from None
    logging.info("%d x %s", len(devices), devices[0].device_kind)
    if jax.process_index() > 0 and devices[0].platform == "cpu":
        _write_the_cache_here_too()


def _write_the_cache_here_too() -> None:
    """Has a process that is not the first of a run on CPUs keep what it compiled.

    JAX has process 0 write for all, which share its entries. On CPUs the keys of the others differ
    from its own: they would find nothing, compile anew at every start and have the first wait.
    JAX has no option for it. Where a version has other internals, the cache stays as JAX has it.
    """
    try:
        from jax._src import compilation_cache, compiler

        put = compilation_cache.put_executable_and_time
        compiler._cache_write  # noqa: B018
    except (ImportError, AttributeError):
        return

    def write(
        cache_key: str,
        compile_time_secs: float,
        module_name: str,
        backend: Any,
        executable: Any,
        host_callbacks: Sequence[Any],
    ) -> None:
        if host_callbacks or compile_time_secs < _LEAST_SECONDS:
            return
        try:
            put(cache_key, module_name, executable, backend, int(compile_time_secs))
        except Exception as error:  # as JAX does: a cache that cannot be written stops nothing
            warnings.warn(f"the compilation cache could not be written: {error}", stacklevel=2)

    compiler._cache_write = write
