"""Names and layouts of the authors' PyTorch weights against ours. Needs no PyTorch.

A state_dict is any mapping from names to numpy arrays. One `Entry` ties one of its tensors to one
leaf of our trees; a list of entries is a network. Conversion is strict: every entry must be there
with the right shape, and every tensor under the prefix must be used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfds_angio.errors import UserError

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor.

    Attributes:
      torch: name in the state_dict.
      collection: 'params' or 'batch_stats'.
      path: place in our tree, '/'-separated.
      layout: 'conv', 'up' (2×2 transposed convolution), 'dense', 'pointwise' (a 1×1 convolution
        that we keep as a matrix), 'token' (a vector that broadcasts over images) or 'vector'.
    """

    torch: str
    collection: str
    path: str
    layout: str


_TO_OURS = {
    "conv": lambda w: w.transpose(2, 3, 1, 0),
    "up": lambda w: w.transpose(2, 3, 0, 1)[::-1, ::-1],
    "dense": lambda w: w.T,
    "pointwise": lambda w: w[:, :, 0, 0].T,
    "token": lambda w: w[0, :, 0, 0],
    "vector": lambda w: w,
}
_TO_TORCH = {
    "conv": lambda w: w.transpose(3, 2, 0, 1),
    "up": lambda w: w[::-1, ::-1].transpose(2, 3, 0, 1),
    "dense": lambda w: w.T,
    "pointwise": lambda w: w.T[:, :, None, None],
    "token": lambda w: w[None, :, None, None],
    "vector": lambda w: w,
}


def encoder_entries(torch: str = "", ours: str = "encoder") -> list[Entry]:
    """Entries of the contracting path. `torch` is a prefix such as 'backbone.'; `ours` a path."""
    blocks = {f"down{i}": f"down_conv{i}.double_conv.double_conv" for i in range(1, 5)}
    blocks["bottleneck"] = "double_conv.double_conv"
    return [e for path, name in blocks.items() for e in _block(torch + name, f"{ours}/{path}")]


def decoder_entries(
    torch: str = "", ours: str = "decoder", *, up: str = "transposed"
) -> list[Entry]:
    """Entries of the expanding path and of its 1×1 head; 'bilinear' up-sampling has no weights."""
    entries = []
    for i in (4, 3, 2, 1):
        if up == "transposed":
            entries += _affine(f"{torch}up_conv{i}.up_sample", f"{ours}/upsample{i}", "up")
        entries += _block(f"{torch}up_conv{i}.double_conv.double_conv", f"{ours}/up{i}")
    return entries + _affine(f"{torch}conv_last", f"{ours}/head", "conv")


def unet_entries(torch: str = "", *, up: str = "transposed") -> list[Entry]:
    """Entries of the whole segmentation network."""
    return encoder_entries(torch) + decoder_entries(torch, up=up)


def spark_entries(torch: str = "", *, up: str = "transposed") -> list[Entry]:
    """Entries of SparK's network: sparse encoder, densifying norms and tokens, dense decoder."""
    entries = encoder_entries(f"{torch}sparse_encoder.sp_cnn.")
    for i in range(5):  # from the bottleneck up
        ours = f"densify/level{5 - i}"
        entries += _norm(f"{torch}densify_norms.{i}", f"{ours}/norm")
        entries.append(Entry(f"{torch}mask_tokens.{i}", "params", f"{ours}/token", "token"))
    return entries + decoder_entries(f"{torch}dense_decoder.", up=up)


def projector_entries(torch: str, ours: str) -> list[Entry]:
    """Entries of a projector or predictor: `fc0`, `bn0`, `fc1` (without bias)."""
    return [
        *_affine(f"{torch}fc0", f"{ours}/fc0", "dense"),
        *_norm(f"{torch}bn0", f"{ours}/bn0"),
        Entry(f"{torch}fc1.weight", "params", f"{ours}/fc1/kernel", "dense"),
    ]


def adapter_entries(torch: str = "adapter.", ours: str = "adapter") -> list[Entry]:
    """Entries of the 1×1 convolution between the target encoder and its projector."""
    return [
        Entry(f"{torch}weight", "params", f"{ours}/kernel", "pointwise"),
        Entry(f"{torch}bias", "params", f"{ours}/bias", "vector"),
    ]


def _block(torch: str, ours: str) -> list[Entry]:
    entries = []
    for i, (conv, norm) in enumerate(((0, 1), (3, 4)), start=1):
        entries += _affine(f"{torch}.{conv}", f"{ours}/conv{i}", "conv")
        entries += _norm(f"{torch}.{norm}", f"{ours}/bn{i}")
    return entries


def _affine(torch: str, ours: str, layout: str) -> list[Entry]:
    return [
        Entry(f"{torch}.weight", "params", f"{ours}/kernel", layout),
        Entry(f"{torch}.bias", "params", f"{ours}/bias", "vector"),
    ]


def _norm(torch: str, ours: str) -> list[Entry]:
    return [
        Entry(f"{torch}.weight", "params", f"{ours}/scale", "vector"),
        Entry(f"{torch}.bias", "params", f"{ours}/bias", "vector"),
        Entry(f"{torch}.running_mean", "batch_stats", f"{ours}/mean", "vector"),
        Entry(f"{torch}.running_var", "batch_stats", f"{ours}/var", "vector"),
    ]


def torch_shape(entry: Entry, shape: Sequence[int]) -> tuple[int, ...]:
    """The PyTorch shape of the tensor whose shape in our tree is `shape`."""
    return _TO_TORCH[entry.layout](np.empty(tuple(shape), np.bool_)).shape


def from_torch(state_dict: Mapping[str, np.ndarray], entries: Iterable[Entry]) -> tuple[Tree, Tree]:
    """Converts tensors to (params, batch_stats).

    Tensors that no entry names are an error, except PyTorch's `num_batches_tracked` counters.

    Raises:
      UserError: names the tensors that are missing, left over or of the wrong rank.
    """
    entries = list(entries)
    names = {e.torch for e in entries}
    missing = sorted(names - set(state_dict))
    left = sorted(n for n in set(state_dict) - names if not n.endswith("num_batches_tracked"))
    if missing or left:
        raise UserError(
            f"the PyTorch weights are of another network: missing {missing[:5]}"
            f"{_more(missing)}, not expected {left[:5]}{_more(left)}"
        )
    trees: dict[str, Tree] = {"params": {}, "batch_stats": {}}
    ranks = {"conv": 4, "up": 4, "pointwise": 4, "token": 4, "dense": 2, "vector": 1}
    for entry in entries:
        value = np.asarray(state_dict[entry.torch])
        if value.ndim != ranks[entry.layout]:
            raise UserError(
                f"PyTorch tensor {entry.torch} has shape {value.shape}; "
                f"{ranks[entry.layout]} axes were expected"
            )
        _put(trees[entry.collection], entry.path, np.array(_TO_OURS[entry.layout](value)))
    return trees["params"], trees["batch_stats"]


def to_torch(params: Tree, batch_stats: Tree, entries: Iterable[Entry]) -> dict[str, np.ndarray]:
    """Converts our trees to a state_dict; the inverse of `from_torch`."""
    trees = {"params": params, "batch_stats": batch_stats}
    return {
        e.torch: np.array(_TO_TORCH[e.layout](np.asarray(get(trees[e.collection], e.path))))
        for e in entries
    }


def get(tree: Tree, path: str) -> Any:
    """The leaf (or branch) of nested dicts at a '/'-separated path; KeyError if absent."""
    for part in path.split("/"):
        tree = tree[part]
    return tree


def _put(tree: Tree, path: str, value: np.ndarray) -> None:
    *parents, last = path.split("/")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = value


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 5} more" if len(names) > 5 else ""
