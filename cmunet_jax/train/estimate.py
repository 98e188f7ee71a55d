"""Says what a run will need before and while it runs: memory, time, and the smaller preset."""

import contextlib
import re
import time
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from tfds_angio.errors import UserError

LONG_SECONDS = 2 * 3600
SMALLER = "--config configs/{stage}.py:size=small --workdir runs/{stage}-small"


def duration(seconds: float) -> str:
    """Writes a duration the way a person would: '45 s', '12 min', '3.5 h', '29 days'."""
    for limit, unit, per in ((90, "s", 1), (90 * 60, "min", 60), (48 * 3600, "h", 3600)):
        if seconds < limit:
            value = seconds / per
            return f"{value:.1f} {unit}" if unit == "h" and value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86400:,.0f} days"


def _fitting(batch_size: int, ratio: float, multiple: int) -> int:
    """The largest batch that needs 0.8 of `ratio` of the memory, in whole multiples, at least one.

    The margin is for what grows with the batch without being counted, and for fragmentation.
    """
    return max(int(batch_size * ratio * 0.8) // multiple, 1) * multiple


_REMAT_SHARES = MappingProxyType({"norms": 0.55, "blocks": 0.45})
"""What rematerialisation leaves of the temporary memory (docs/performance.md), and a margin."""


def _remedy(
    batch_size: int, ratio: float, *, accumulation: int, stage: str, remat: str = ""
) -> str:
    """What to change so that a step, or a batch of an evaluation (no stage), fits."""
    multiple = accumulation * jax.device_count()
    fits, options = _fitting(batch_size, ratio, multiple), []
    enough = [mode for mode, share in _REMAT_SHARES.items() if share <= ratio]
    if remat == "none" and enough:
        options.append(f"set config.model.remat={enough[0]}, which changes no result")
    if fits < batch_size:
        options.append(f"lower config.batch_size (about {fits} fits)")
    if stage and batch_size > multiple:
        options.append("raise config.accumulation")
    if stage:
        options.append(f"take a smaller preset: {SMALLER.format(stage=stage)}")
    if not options:
        return "Use a device with more memory."
    text = ", or ".join([", ".join(options[:-1]), options[-1]] if options[1:] else options)
    return text[0].upper() + text[1:]


@contextlib.contextmanager
def memory_errors(
    *, batch_size: int, accumulation: int = 1, stage: str = "", remat: str = "", need: int = 0
) -> Iterator[None]:
    """Turns "out of device memory", from the compiler or a running step, into one line.

    Args:
      batch_size: that was asked for.
      accumulation: parts of it that are computed one after the other.
      stage: names the config file with smaller presets; '' for an evaluation, which has none.
      remat: the network's; '' where there is no gradient.
      need: bytes that a step takes as far as the compiler knows, 0 for unknown.

    Raises:
      UserError: with a batch size that would fit, in place of XLA's RESOURCE_EXHAUSTED.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        ratio = _share_that_fits(str(error), need)
        sizes: dict[str, Any] = dict(accumulation=accumulation, stage=stage, remat=remat)
        what = "one step" if stage else "one batch"
        raise UserError(
            f"the device ran out of memory: {what} of config.batch_size={batch_size} does not "
            f"fit. {_remedy(batch_size, ratio, **sizes)}"
        ) from error


def _share_that_fits(message: str, need: int) -> float:
    """Memory there is / memory that was needed, from the message or from the compiler's count."""
    said = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])", message)  # a TPU's compiler
    if said:
        used, have = (float(said[i]) * 1024.0 ** "KMGT".index(said[i + 1]) for i in (1, 3))
    else:
        used, have = float(need), float(available_bytes())
    # Where the counts say that it fits, something else takes the memory: try half.
    return have / used if 0 < have < used else 0.5 / 0.8


def check_memory(
    compiled: Any, *, batch_size: int, stage: str, accumulation: int = 1, remat: str = ""
) -> None:
    """Refuses a step that cannot fit into this machine, before the system kills the process.

    Args:
      compiled: the ahead-of-time compiled step.
      batch_size: for the remedy.
      stage: names the config file with smaller presets.
      accumulation: of the step, for the remedy.
      remat: the network's, likewise.

    Raises:
      UserError: with the need, what there is, and a batch size that would fit.
    """
    need = step_bytes(compiled)
    have = available_bytes()
    if have and need > have:
        sizes: dict[str, Any] = dict(accumulation=accumulation, stage=stage, remat=remat)
        raise UserError(
            f"one step needs about {need / 2**30:.0f} GiB and this machine has "
            f"{have / 2**30:.0f} GiB free. "
            f"{_remedy(batch_size, have / need, **sizes)}"
        )


def step_bytes(compiled: Any) -> int:
    """What a compiled step takes beside its arguments, which are in memory already; 0: unknown."""
    analysis = compiled.memory_analysis()
    return analysis.temp_size_in_bytes if analysis else 0


def available_bytes() -> int:
    """Memory that a step can use on the first device; 0 where that is not known."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return psutil.virtual_memory().available
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", 0)


def flops_per_second(*, size: int = 1536, seconds: float = 0.5) -> float:
    """Measures the matrix-product rate of the first device (float32, FLOP/s)."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((size, size), np.float32))
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        product(x).block_until_ready()
        count += 1
    return 2.0 * size**3 * count / (time.perf_counter() - start)


def forecast(compiled: Any, *, steps: int, accumulation: int, stage: str) -> str | None:
    """Predicts, without running a step, whether a run on a CPU will take very long.

    Returns:
      A line for the user if the run is predicted to take over two hours on a CPU, else None.
    """
    if jax.default_backend() != "cpu":
        return None
    cost = compiled.cost_analysis() or {}
    # XLA counts the body of the accumulation loop once; convolutions reach about the matmul rate.
    flops = float(cost.get("flops", 0.0)) * accumulation
    seconds = flops / flops_per_second()
    if seconds * steps < LONG_SECONDS:
        return None
    total = duration(seconds * steps)
    return (
        f"No accelerator: expect at least {duration(seconds)} a step, {total} for "
        f"{steps:,} steps. A smaller preset exists: {SMALLER.format(stage=stage)}"
    )


def measured(seconds_per_step: float, *, remaining: int, stage: str) -> str | None:
    """Says after the first steps how long the rest takes, if that is long and there is only a CPU.

    Returns:
      A line for the user, or None.
    """
    total = seconds_per_step * remaining
    if jax.default_backend() != "cpu" or total < LONG_SECONDS:
        return None
    return (
        f"No accelerator: at {duration(seconds_per_step)} a step (measured) the remaining "
        f"{remaining:,} steps take {duration(total)}. Stop with Ctrl-C (progress is kept) and take "
        f"a smaller preset: {SMALLER.format(stage=stage)}"
    )
