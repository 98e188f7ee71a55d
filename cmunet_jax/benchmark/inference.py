"""The forward pass that evaluation uses, on images that are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from cmunet_jax.benchmark import cost as cost_lib
from cmunet_jax.benchmark import memory
from cmunet_jax.benchmark.cost import Cost
from cmunet_jax.benchmark.rows import Row
from cmunet_jax.benchmark.subject import Training
from cmunet_jax.benchmark.timing import Effort, Task, measure
from cmunet_jax.train import sharding

Forward = Callable[[Any, Any], Any]
MakeForward = Callable[[Any, jax.sharding.Mesh], Forward]
"""(objective, mesh) -> jitted (weights, images [B, S, S, 1]) -> logits."""


def images_of(training: Training) -> np.ndarray:
    """Standardised noise float32 [B, S, S, 1]: what the pixels are does not matter here."""
    side = training.config.preprocessing.size
    shape = (training.config.batch_size, side, side, 1)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def forward_task(
    training: Training, images: np.ndarray, make_forward: MakeForward
) -> tuple[Task, Cost]:
    """The forward pass on images that lie on the device, and its work."""
    weights = {"params": training.state.params, "batch_stats": training.state.batch_stats}
    batch = jax.device_put(images, sharding.by_example(training.mesh))
    lowered: Any = make_forward(training.objective, training.mesh)
    compiled = lowered.lower(weights, batch).compile()
    plain: Any = make_forward(training.plain, training.mesh)
    textbook = plain.lower(weights, batch)
    last: dict[str, Any] = {}

    def call() -> None:
        last["logits"] = compiled(weights, batch)

    work = cost_lib.count(compiled, textbook=textbook, dtype=training.config.model.dtype)
    return Task(call, lambda: jax.block_until_ready(last)), work


def inference_rows(training: Training, make_forward: MakeForward, effort: Effort) -> Iterator[Row]:
    """Times the forward pass."""
    with memory.watch() as peak:
        task, work = forward_task(training, images_of(training), make_forward)
        samples = measure(task, effort)
    images = training.config.batch_size
    yield Row("inference", "inference", samples, images=images, cost=work, peak=peak)
