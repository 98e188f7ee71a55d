"""What the checkers share: the result of a check, the formula weights, the case's name."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cmunet_jax.interop import torch_names
from cmunet_jax.interop.torch_names import Entry

Case = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Check:
    """One compared quantity.

    Attributes:
      name: of the quantity in the case.
      error: in the unit that its tolerance has (relative, or absolute for logits); not negative,
        NaN and infinity count as failures.
      tolerance: the largest error that passes.
    """

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; False for NaN."""
        return bool(self.error <= self.tolerance)

    @property
    def severity(self) -> float:
        """Error in units of the tolerance, NaN as infinity."""
        if self.error == 0:
            return 0.0  # also where nothing but equality passes
        ratio = self.error / self.tolerance if self.tolerance else np.inf
        return float(np.nan_to_num(ratio, nan=np.inf, posinf=np.inf))


def absolute(name: str, ours: Any, theirs: Any, tolerance: float) -> Check:
    """Largest absolute difference of two arrays of one shape; NaN on either side fails."""
    ours, theirs = _same_shape(name, ours, theirs)
    return Check(name, float(np.abs(ours - theirs).max()), tolerance)


def relative(name: str, ours: Any, theirs: Any, tolerance: float) -> Check:
    """Largest absolute difference, divided by the largest magnitude of `theirs`."""
    ours, theirs = _same_shape(name, ours, theirs)
    scale = max(float(np.abs(theirs).max()), float(np.finfo(np.float32).tiny))
    return Check(name, float(np.abs(ours - theirs).max()) / scale, tolerance)


def _same_shape(name: str, ours: Any, theirs: Any) -> tuple[np.ndarray, np.ndarray]:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"{name}: ours has shape {ours.shape}, the case {theirs.shape}")
    return ours, theirs


def width_of(stem: str) -> int:
    """The width w in a stem such as 'public_unet_w8'."""
    match = re.search(r"_w(\d+)(?:_|$)", stem)
    if not match:
        raise ValueError(f"the file name {stem!r} has no width such as _w8")
    return int(match[1])


def formula(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The weights that both sides make: a function of PyTorch name, PyTorch shape and seed."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    n = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return (1 + 0.1 * np.abs(n)).astype(np.float32)
    if name.endswith("running_mean"):
        return (0.1 * n).astype(np.float32)
    if n.ndim >= 2:
        return (n * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    return (1 + 0.1 * n if name.endswith("weight") else 0.1 * n).astype(np.float32)


def formula_weights(
    entries: Iterable[Entry], params: Any, batch_stats: Any, seed: int
) -> tuple[Any, Any]:
    """Formula weights in our layout; `params` and `batch_stats` give the shapes only."""
    entries = list(entries)
    trees = {"params": params, "batch_stats": batch_stats}
    state_dict = {}
    for entry in entries:
        shape = torch_names.get(trees[entry.collection], entry.path).shape
        state_dict[entry.torch] = formula(entry.torch, torch_names.torch_shape(entry, shape), seed)
    return torch_names.from_torch(state_dict, entries)
