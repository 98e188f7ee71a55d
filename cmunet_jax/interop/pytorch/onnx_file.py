"""Writes the network as ONNX with PyTorch's exporter, and runs it in onnxruntime to check it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from cmunet_jax.interop import torch_names
from cmunet_jax.interop.pytorch import unet

INPUT, OUTPUT = "image", "logits"


def write(
    path: Path,
    params: torch_names.Tree,
    batch_stats: torch_names.Tree,
    *,
    size: int,
    metadata: Mapping[str, str],
) -> None:
    """Writes the network only: prepared images [B, 1, S, S] to logits [B, 2, S, S], float32.

    Batch and size are free; 16 divides both sides. Preprocessing is not in it.

    Args:
      path: of the file, which is replaced.
      params: {'encoder': ..., 'decoder': ...} with transposed convolutions.
      batch_stats: the running statistics beside them.
      size: S that the network was trained at, for the example that the exporter follows.
      metadata: texts that are kept in the file.
    """
    state_dict = torch_names.to_torch(params, batch_stats, unet.unet_entries())
    width = params["encoder"]["down1"]["conv1"]["kernel"].shape[-1]
    network = unet.UNet(width).eval()
    tensors = {name: torch.from_numpy(value) for name, value in state_dict.items()}
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    left = [name for name in missing if not name.endswith("num_batches_tracked")]
    if left or unexpected:
        raise ValueError(f"missing {left}, not expected {unexpected}")
    free = {0: torch.export.Dim("batch")}
    # Poolings halve both sides four times.
    free |= {axis: 16 * torch.export.Dim(name) for axis, name in ((2, "rows"), (3, "columns"))}
    with _quiet():
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 1, size, size),),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(free,),
        )
    model = program.model_proto
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


@contextlib.contextmanager
def _quiet():
    """Keeps what the exporter says of its own deprecations off the console."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class Session:
    """An ONNX file in onnxruntime on the CPU."""

    def __init__(self, path: Path, *, threads: int = 0):
        """Loads it; `threads` of one operation, 0 for onnxruntime's choice."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Prepared images float32 [B, S, S] to logits float32 [B, S, S, 2], the layout of ours."""
        (logits,) = self._session.run([OUTPUT], {INPUT: images[:, None]})
        return np.moveaxis(logits, 1, -1)
