"""Weights as safetensors, under the names and in the layouts of PyTorch. Needs no PyTorch.

One file, one U-Net. What is written can be read with `safetensors.torch.load_file` and given to
`load_state_dict` of a PyTorch U-Net of these names (`interop.torch_names`), without anything that
could run code.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy  # noqa: F401  (with it NumPy knows bfloat16)
import numpy as np
import safetensors
import safetensors.numpy

from cmunet_jax.interop import torch_names
from tfds_angio.errors import UserError

Tree = dict[str, Any]


def write(
    path: Path, params: Tree, batch_stats: Tree, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a segmentation network; the file appears whole or not at all.

    Args:
      path: of the file; its folder is made, an existing file is replaced.
      params: {'encoder': ..., 'decoder': ...}, nested dicts of arrays.
      batch_stats: the running statistics beside them.
      metadata: texts for the header, for example where the weights are from.

    Raises:
      UserError: if the file cannot be written.
    """
    up = "transposed" if "upsample1" in params["decoder"] else "bilinear"
    state_dict = torch_names.to_torch(params, batch_stats, torch_names.unet_entries(up=up))
    # The library copies memory from the first byte on, whatever the strides of an array are.
    tensors = {name: np.ascontiguousarray(value) for name, value in state_dict.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode & 0o777  # of any new file here; the library's is 0600
        safetensors.numpy.save_file(tensors, temporary, dict(metadata or {}))
        temporary.chmod(mode)
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} cannot be written: {reason}.") from None


def read(path: Path) -> tuple[Tree, Tree, dict[str, str]]:
    """Reads what `write` wrote: (params, batch_stats, metadata), equal bit for bit.

    Raises:
      UserError: if the file cannot be read or holds another network, with the names that differ.
    """
    state_dict, metadata = read_tensors(path)
    up = "transposed" if "up_conv1.up_sample.weight" in state_dict else "bilinear"
    entries = torch_names.unet_entries(up=up)
    return (*torch_names.from_torch(state_dict, entries), metadata)


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads all tensors of any safetensors file, as {name: array}, and the texts of its header.

    Raises:
      UserError: if the file cannot be read, is none of that format, or has numbers of a kind that
        NumPy has not.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            state_dict = {name: _tensor(file, name, path) for name in file.keys()}
            return state_dict, dict(file.metadata() or {})
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (safetensors.SafetensorError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is no complete safetensors file ({reason}). Download it again."
        ) from None


def _tensor(file: Any, name: str, path: Path) -> np.ndarray:
    """One tensor of an open file, whose header is whole by now."""
    try:
        return file.get_tensor(name)
    except (AttributeError, TypeError) as error:  # a dtype that NumPy has no name for
        dtype = file.get_slice(name).get_dtype()
        raise UserError(
            f"{path}: the dtype of {ascii(name)[1:-1]:.100}, {dtype}, is not supported. Save the "
            "weights as float32: where PyTorch is, tensor.float() of each, times its scale if the "
            "file has scales."
        ) from error
