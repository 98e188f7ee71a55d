"""What the processes of one run owe each other; with a single process all of it is free."""

import zlib

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from tfds_angio.errors import UserError

# One that has died is noticed by its heartbeat long before.
_PATIENCE_MS = 6 * 3600 * 1000


def is_first() -> bool:
    """Whether this process speaks for the run: it alone writes logs, pictures and records."""
    return jax.process_index() == 0


def require_same(facts: dict[str, str]) -> None:
    """Checks that all processes see the same, before they wait for each other on it.

    Args:
      facts: name -> value, with the same names in all processes.

    Raises:
      UserError: in every process, naming what differs.
    """
    if jax.process_count() == 1:
        return
    meet(f"comparing {', '.join(facts)}")
    sums = np.asarray([zlib.crc32(value.encode()) for value in facts.values()], np.uint32)
    everywhere = multihost_utils.process_allgather(sums)
    same = (everywhere == everywhere[0]).all(0)
    different = [name for name, equal in zip(facts, same) if not equal]
    if different:
        name = different[0]
        raise UserError(
            f"the {jax.process_count()} processes of this run differ in {name} (here: "
            f"{facts[name][:200] or 'nothing'}). Start all of them with one command, on file "
            "systems that show all of them the same --workdir and config.data.dir."
        )


def meet(place: str) -> None:
    """Waits until all processes are here; `place` names it, the same in all of them.

    A barrier of the coordination service, not of the devices: their first message gives up when
    the others, who may still be compiling or building the data set, are half a minute late.
    """
    if jax.process_count() > 1:
        multihost.get_barrier_sync_fn()(key=f"cmunet_jax: {place}", timeout_ms=_PATIENCE_MS)
