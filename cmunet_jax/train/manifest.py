"""What a checkpoint says about itself: every leaf by name with its checksum, and the run's JSON.

Orbax restores most flipped bits of a payload silently, so each checkpoint carries a manifest of its
own: SHA-256 of every leaf, a digest over the leaves, the config and the preprocessing, and a seal
over the manifest itself. Leaves are named by their path in the train state, which also makes a
checkpoint readable without the code that built the state.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

FORMAT = 1
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "cmunet-jax")


class Damaged(Exception):
    """A checkpoint whose content is not what was saved; the message is the reason."""


class Unsupported(Exception):
    """An intact checkpoint in a format of a later version of this package."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a checkpoint.

    Attributes:
      path: names from the root of the train state, joined by '/'.
      dtype: NumPy (or ml_dtypes) name, for example 'bfloat16'.
      shape: its global shape.
      sha256: hex digest over path, dtype, shape and the bytes in C order.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Flattens a pytree into {path: leaf}; None and empty containers have no leaves.

    Names are escaped where they contain '/' (which joins them), '.' (which joins them in Orbax)
    or '%', so that two leaves never share a path.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(_name(entry) for entry in path): leaf for path, leaf in flat}


def _name(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            text = str(getattr(entry, attribute))
            return text.replace("%", "%25").replace("/", "%2F").replace(".", "%2E")
    raise TypeError(f"cannot name the pytree entry {entry!r}")


def nest(leaves: Mapping[str, Any], *, unescape: bool = False) -> dict[str, Any]:
    """Turns {path: leaf} into nested dicts; `unescape` gives the names as they were."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        parts = path.split("/")
        if unescape:
            replaced = (p.replace("%2E", ".").replace("%2F", "/") for p in parts)
            parts = [p.replace("%25", "%") for p in replaced]
        node = tree
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = leaf
    return tree


def host_value(leaf: Any) -> np.ndarray:
    """The whole value of a leaf in host memory, without a copy where that is possible.

    Raises:
      TypeError: for typed PRNG keys, which have no bytes of their own.
    """
    if isinstance(leaf, jax.Array):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise TypeError("PRNG keys cannot be saved: derive them from (seed, step)")
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def describe(leaf: Any) -> tuple[str, tuple[int, ...]]:
    """The dtype name and shape of an array, a jax.ShapeDtypeStruct or a Python scalar."""
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return np.dtype(leaf.dtype).name, tuple(int(n) for n in leaf.shape)


def hash_leaves(leaves: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """Checksums of all leaves, sorted by path. Hashing releases the GIL, so threads help."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        # Values are fetched here, one after the other: gathering over processes needs one order.
        jobs = [pool.submit(_hash, p, host_value(leaves[p])) for p in sorted(leaves)]
        return tuple(job.result() for job in jobs)


def _hash(path: str, value: np.ndarray) -> Leaf:
    dtype, shape = describe(value)
    hasher = hashlib.sha256(json.dumps([path, dtype, list(shape)]).encode())
    hasher.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return Leaf(path, dtype, shape, hasher.hexdigest())


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The record of one checkpoint.

    Attributes:
      step: optimiser steps done.
      leaves: all arrays, sorted by path.
      config: the resolved configuration, as JSON holds it (tuples are lists).
      preprocessing: what turns a native image into the network's input.
      versions: of the libraries, this package and Python that wrote it.
      metrics: scalars at this step; may be empty.
      selection: {'metric': name or None, 'mode': 'max' or 'min'}: what "best" means.
    """

    step: int
    leaves: tuple[Leaf, ...]
    config: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    versions: Mapping[str, str]
    metrics: Mapping[str, float]
    selection: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the leaves, the config, the preprocessing and the step."""
        leaves = [leaf.sha256 for leaf in self.leaves]
        return _sha256([self.step, leaves, dict(self.config), dict(self.preprocessing)])

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` verifies."""
        body = {
            "format": FORMAT,
            "digest": self.digest,
            "step": self.step,
            "config": dict(self.config),
            "preprocessing": dict(self.preprocessing),
            "versions": dict(self.versions),
            # JSON has no NaN; float() reads these words back.
            "metrics": {k: v if math.isfinite(v) else repr(v) for k, v in self.metrics.items()},
            "selection": dict(self.selection),
            "leaves": [[leaf.path, leaf.dtype, leaf.shape, leaf.sha256] for leaf in self.leaves],
        }
        return body | {"seal": _sha256(body)}

    @classmethod
    def from_json(cls, data: Any) -> "Manifest":
        """Reads and verifies what `to_json` wrote.

        Raises:
          Damaged: if it is not what was written.
          Unsupported: if a later version of this package wrote it.
        """
        if not isinstance(data, dict) or "seal" not in data:
            raise Damaged("its manifest is incomplete")
        body = {key: value for key, value in data.items() if key != "seal"}
        if _sha256(body) != data["seal"]:
            raise Damaged("its manifest does not match its checksum")
        try:
            if int(body["format"]) > FORMAT:
                raise Unsupported(f"it has format {body['format']}; this version reads {FORMAT}")
            made = cls(
                step=int(body["step"]),
                leaves=tuple(_leaf(*entry) for entry in body["leaves"]),
                config=dict(body["config"]),
                preprocessing=dict(body["preprocessing"]),
                versions=dict(body["versions"]),
                metrics={name: float(value) for name, value in body["metrics"].items()},
                selection={key: body["selection"][key] for key in ("metric", "mode")},
            )
            if made.selection["mode"] not in ("max", "min"):
                raise ValueError(f"mode {made.selection['mode']!r}")
            hash(made.selection["metric"])
            return made
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            # The seal fits, so nothing was damaged by chance: somebody wrote it by hand.
            raise Damaged(f"its manifest is none of ours ({error})") from error

    def find_damage(self, leaves: Mapping[str, Any]) -> None:
        """Compares restored leaves (any part of all) with their checksums.

        Raises:
          Damaged: naming the first leaf that differs.
        """
        expected = {leaf.path: leaf for leaf in self.leaves}
        wrong = [leaf.path for leaf in hash_leaves(leaves) if leaf != expected[leaf.path]]
        if wrong:
            others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise Damaged(f"the content of {wrong[0]}{others} does not match its checksum")


def _leaf(path: Any, dtype: Any, shape: Any, sha256: Any) -> Leaf:
    """A leaf as JSON gives it.

    Raises:
      TypeError, ValueError: if it cannot be the record of an array.
    """
    sizes = tuple(int(size) for size in shape)
    if (
        not all(isinstance(text, str) for text in (path, dtype, sha256))
        or min(sizes, default=0) < 0
    ):
        raise ValueError(f"leaf {path!r}")
    jax.numpy.dtype(dtype)
    return Leaf(path, dtype, sizes, sha256)


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def as_json(value: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    """A copy of a mapping as JSON would return it.

    Raises:
      TypeError: naming `what` when a value is not JSON.
    """
    try:
        return json.loads(json.dumps(dict(value), default=_plain))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} cannot be written as JSON: {error}") from error


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):  # ConfigDict
        return value.to_dict()
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} {value!r}")


def versions() -> dict[str, str]:
    """Versions of the libraries that shape a result."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"  # A source tree on PYTHONPATH.
    return found | {"python": platform.python_version()}
