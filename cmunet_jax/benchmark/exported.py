"""One frame through an exported network, beside the same on the host, at native size."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from cmunet_jax.benchmark.inference import MakeForward
from cmunet_jax.benchmark.rows import Row
from cmunet_jax.benchmark.subject import Training
from cmunet_jax.benchmark.timing import Effort, Task, alternate
from cmunet_jax.data import preprocessing
from cmunet_jax.interop import export_loader, export_stablehlo
from cmunet_jax.train import sharding

Native = Callable[[Any, Any, preprocessing.Preprocessing, np.ndarray], np.ndarray]
"""(forward, weights, chain, frames [B, H, W]) -> probabilities [B, H, W]."""


def exported_rows(
    training: Training, make_forward: MakeForward, native: Native, *, side: int, effort: Effort
) -> Iterator[Row]:
    """Times one frame of side² through StableHLO, ONNX (where it is installed) and our chain."""
    chain = preprocessing.create(training.config.preprocessing)
    params, batch_stats = jax.device_get((training.state.params, training.state.batch_stats))
    weights = {"params": params, "batch_stats": batch_stats}
    # A random walk: smooth like an angiogram, with structure of every size.
    walk = np.random.default_rng(0).normal(size=(1, side, side)).cumsum(1).cumsum(2)
    frame = (255 * (walk - walk.min()) / np.ptp(walk)).astype(np.uint8)
    forward: Any = make_forward(training.objective, training.mesh)
    prepared = chain.apply(frame[0]).float()[None, ..., None]
    placed = jax.device_put(weights, sharding.replicated(training.mesh))
    network = lambda: np.asarray(forward(placed, prepared))  # noqa: E731
    objective: Any = training.objective
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.stablehlo")
        exported = export_stablehlo.export(objective.network, weights, chain.to_dict())
        export_stablehlo.write(exported, path)
        segment = export_loader.load(path)
        tasks = {
            "frame to probability, our chain": lambda: native(forward, placed, chain, frame),
            "frame to probability, StableHLO": lambda: segment(frame),
            "network only, ours": network,
        }
        sizes = {"frame to probability, StableHLO": path.stat().st_size}
        if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("torch"):
            onnx_file = importlib.import_module("cmunet_jax.interop.pytorch.onnx_file")
            onnx = Path(folder, "model.onnx")
            size = chain.size
            onnx_file.write(onnx, params, batch_stats, size=size, metadata={})
            session = onnx_file.Session(onnx)
            tasks["network only, ONNX"] = lambda: session(prepared[..., 0])
            sizes["network only, ONNX"] = onnx.stat().st_size
        samples = alternate({name: Task(call) for name, call in tasks.items()}, effort)
    for name, taken in samples.items():
        note = f"{sizes[name]:,} bytes" if name in sizes else ""
        yield Row("export", f"export: {name}", taken, images=1, note=note)
