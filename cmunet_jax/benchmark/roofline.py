"""The two ceilings of the roofline model, measured: matrix product and stream through memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from cmunet_jax.benchmark.cost import Ceilings
from cmunet_jax.benchmark.timing import Effort, Task, measure

Array = jax.Array

# Sides of the matrix products and bytes of the streamed arrays: large against every cache, small
# against every memory.
SIDES = {"cpu": (512, 1024, 2048), "accelerator": (4096, 8192)}
STREAM_BYTES = {"cpu": 128 * 2**20, "accelerator": 2**30}


def product_flops(side: int) -> float:
    """Operations of the product of two matrices [side, side]."""
    return 2.0 * side**3


def stream_bytes(elements: int) -> float:
    """Bytes that `a = s·a + b` moves for two float32 arrays [elements]: two read, one written."""
    return 3.0 * 4 * elements


def measure_ceilings(dtypes: tuple[str, ...], effort: Effort) -> tuple[Ceilings, dict[str, Any]]:
    """Measures what one device reaches, times the number of devices.

    A ceiling is the best sample: what slows a sample down is not the machine's limit.

    Args:
      dtypes: of the matrix products.
      effort: for each.

    Returns:
      The ceilings, and every sample as JSON values: {'product': {dtype: {side: [FLOP/s]}},
      'stream': [bytes/s]}, of one device.
    """
    devices = jax.device_count()
    kind = "cpu" if jax.default_backend() == "cpu" else "accelerator"
    products: dict[str, dict[str, list[float]]] = {}
    for dtype in dtypes:
        products[dtype] = {
            str(side): [product_flops(side) / s for s in measure(_product(side, dtype), effort)]
            for side in SIDES[kind]
        }
    elements = STREAM_BYTES[kind] // 4
    stream = [stream_bytes(elements) / s for s in measure(_stream(elements), effort)]
    best = {
        dtype: devices * max(rate for rates in by_side.values() for rate in rates)
        for dtype, by_side in products.items()
    }
    return Ceilings(best, devices * max(stream)), {"product": products, "stream": stream}


def _product(side: int, dtype: str) -> Task:
    x = jnp.full((side, side), 1.0 / side, jnp.dtype(dtype))
    multiply = jax.jit(lambda a: a @ a)
    last: dict[str, Array] = {"y": x}

    def call() -> None:
        last["y"] = multiply(x)

    return Task(call, lambda: jax.block_until_ready(last["y"]))


def _stream(elements: int) -> Task:
    # In place: with a fresh result the system's work of handing out pages would be measured.
    update = jax.jit(lambda a, b: 0.5 * a + b, donate_argnums=0)
    arrays: dict[str, Array] = {"a": jnp.zeros(elements), "b": jnp.ones(elements)}

    def call() -> None:
        arrays["a"] = update(arrays["a"], arrays["b"])

    return Task(call, lambda: jax.block_until_ready(arrays["a"]))
