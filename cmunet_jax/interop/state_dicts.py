"""Finds the state_dict in what a weights file holds, be it a checkpoint or a whole module."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cmunet_jax.interop.inert import Opaque, Refused
from cmunet_jax.interop.torch_files import is_tensor

# Where checkpoints keep their weights, in order.
_PLACES = ("state_dict", "module", "model_state_dict", "model", "net", "network", "weights")
# Names that wrappers put before all others.
_WRAPPERS = ("module", "_orig_mod", "model", "net", "network", "unet")
_MAX_MODULES, _MAX_DEPTH = 10_000, 64
_MAX_VISITS, _NAMED_DEPTH, _MAX_TOLD = 100_000, 3, 5
_EPS = 1e-5
_FACTS = (
    "epoch", "iter", "global_step", "mmengine_version", "pytorch-lightning_version",
    "experiment_name", "arch",
)  # fmt: skip
_REASONS = (
    ("optim", "state of the optimiser"),
    ("sched", "state of the schedule"),
    ("loops", "state of the training loop"),
    ("callbacks", "state of the training loop"),
    ("message_hub", "log of the training"),
    ("hyper_parameters", "settings of the training"),
)
_RECORD, _NO_TENSOR = "a record of the training", "not a tensor"
_OF_TENSORS = ("state of the optimiser", "state of the schedule")  # and never weights


@dataclasses.dataclass(frozen=True)
class StateDict:
    """Tensors by name, without the prefix of a wrapper.

    Attributes:
      tensors: {name: `inert.Tensor` or array}.
      where: a description of where it was found.
      prefix: what was cut off all names, '' or for example 'module.'.
      left: {what else the file holds: why it is not used}.
      facts: numbers and short texts that say what the file is (epoch, versions).
      notes: that the file holds another set of weights, and where.
    """

    tensors: Mapping[str, Any]
    where: str
    prefix: str
    left: Mapping[str, str]
    facts: Mapping[str, Any]
    notes: Sequence[str] = ()


def find(content: Any) -> StateDict:
    """The state_dict in the content of a file.

    Raises:
      Refused: if there is none, or a module in it normalises otherwise than our network.
    """
    if isinstance(content, Opaque):
        return _made(_of_module(content), f"a whole module ({content.kind})")
    if not isinstance(content, dict):
        raise Refused(f"it holds a {type(content).__name__} and no weights")
    for place in _PLACES:
        inner = content.get(place)
        if isinstance(inner, Opaque) and isinstance(inner.state, dict):
            return _made(_of_module(inner), f"a module under {place!r}", content, place)
        if isinstance(inner, dict) and any(is_tensor(value) for value in inner.values()):
            return _made(inner, f"a checkpoint, weights under {place!r}", content, place)
    if any(is_tensor(value) for value in content.values()):
        return _made(content, "a state_dict")
    keys = ", ".join(_short(key) for key in list(content)[:8])
    raise Refused(f"it holds no weights that can be found (its keys: {keys or 'none'})")


def _made(
    found: Mapping[Any, Any], where: str, content: Mapping[Any, Any] | None = None, place: str = ""
) -> StateDict:
    """The tensors `found` under `place` of a checkpoint `content`, or by themselves."""
    tensors = {k: v for k, v in found.items() if isinstance(k, str) and is_tensor(v)}
    beside = [(key, value, _RECORD) for key, value in (content or {}).items() if key != place]
    inside = [(key, value, _NO_TENSOR) for key, value in found.items() if key not in tensors]
    left, notes = _left([*beside, *inside], where, len(tensors))
    prefix = ""
    while (first := _common_first(tensors)) is not None:
        prefix += f"{first}."
        tensors = {name[len(first) + 1 :]: value for name, value in tensors.items()}
    return StateDict(tensors, where, prefix, left, _facts(content or {}), notes)


def _common_first(tensors: Mapping[str, Any]) -> str | None:
    """The wrapper that all names begin with, if they do."""
    firsts = {name.split(".", 1)[0] if "." in name else None for name in tensors}
    first = firsts.pop() if len(firsts) == 1 else None
    return first if first in _WRAPPERS else None


def _facts(content: Mapping[Any, Any]) -> dict[str, Any]:
    """What a checkpoint tells about its weights."""
    facts: dict[str, Any] = {}
    meta = content.get("meta")
    for source in (content, meta if isinstance(meta, dict) else {}):
        for name in _FACTS:
            value = source.get(name)
            if isinstance(value, str):
                facts[name] = value[:80]
            elif isinstance(value, int | float) and abs(value) < 1 << 53:
                facts[name] = value
    return facts


def _left(
    entries: Iterable[tuple[Any, Any, str]], where: str, taken: int
) -> tuple[dict[str, str], list[str]]:
    """Why each entry is not used, and a note if one of them may be another set of the weights.

    Args:
      entries: key, value, and why it is left if nothing better is known.
      where: the weights are.
      taken: how many tensors they are.
    """
    left: dict[str, str] = {}
    others = []
    visits = iter(range(_MAX_VISITS))
    for key, value, otherwise in entries:
        name = _short(key)
        why = next((why for part, why in _REASONS if part in name), otherwise)
        counts = {} if why in _OF_TENSORS else _count(value, name, visits)
        known = why not in (_RECORD, _NO_TENSOR)
        sets = {place: count for place, count in counts.items() if count >= max(2, taken / 2)}
        others += [f"{place} ({count} tensors)" for place, count in sets.items()]
        for place, count in (sets if known else counts).items():
            kind = "of another set of weights" if place in sets else "beside the weights"
            left[place] = f"{count} tensor{'s' * (count > 1)} {kind}, not imported"
        if known or not counts:
            left.setdefault(name, why)
    if not others:
        return left, []
    listed = ", ".join(others[:_MAX_TOLD]) + ", ..." * (len(others) > _MAX_TOLD)
    return left, [
        f"taken: {where}. Not taken, another set: {listed}; an average (EMA) or a student, for "
        "example. To import that one, save it in a file of its own."
    ]


def _count(value: Any, name: str, visits: Iterable[int]) -> dict[str, int]:
    """{where: how many tensors} in an entry: dicts are told apart, down to a few levels."""
    counts: collections.Counter[str] = collections.Counter()
    todo, seen = [(name, value, 1)], set()
    # What is shared counts once, and a value that contains itself ends; so does a very large one.
    for _ in visits:
        if not todo:
            break
        place, one, depth = todo.pop()
        if is_tensor(one):
            counts[place] += 1
        elif isinstance(one, dict | list | tuple | Opaque) and id(one) not in seen:
            seen.add(id(one))
            if isinstance(one, Opaque):
                todo += [(place, part, depth) for part in (one.state, one.mapping, one.sequence)]
            elif isinstance(one, dict):
                for key, inner in one.items():
                    deeper = isinstance(inner, dict) and depth < _NAMED_DEPTH
                    below = f"{place}.{_short(key)}" if deeper else place
                    todo.append((below, inner, depth + deeper))
            else:
                todo += [(place, inner, depth) for inner in one]
    return dict(counts)


def _short(key: Any) -> str:
    return ascii(key)[1:-1][:80] if isinstance(key, str) else f"a {type(key).__name__}"


def _of_module(root: Opaque) -> dict[str, Any]:
    """The tensors of a pickled torch.nn.Module, by the names that its state_dict would have."""
    found: dict[str, Any] = {}
    todo: list[tuple[str, Any, int]] = [("", root, 0)]
    visited = 0
    while todo:
        prefix, module, depth = todo.pop()
        visited += 1
        if visited > _MAX_MODULES or depth > _MAX_DEPTH:
            raise Refused("the modules in it are nested without end")
        state = _state_of(module)
        _check_norm(module, state, prefix)
        buffers, unsaved = state["_buffers"], state.get("_non_persistent_buffers_set")
        for name, value in {**state["_parameters"], **buffers}.items():
            kept = not (isinstance(unsaved, set) and name in unsaved and name in buffers)
            if isinstance(name, str) and is_tensor(value) and kept:
                found[prefix + name] = value
        for name, value in state["_modules"].items():
            if isinstance(name, str) and value is not None:
                todo.append((f"{prefix}{name[:200]}.", value, depth + 1))
    return found


def _state_of(module: Any) -> dict[str, Any]:
    """The attributes of a module, with the three dicts that every module has."""
    state = module.state if isinstance(module, Opaque) else None
    parts = ("_parameters", "_buffers", "_modules")
    if not isinstance(state, dict) or not all(isinstance(state.get(p), dict) for p in parts):
        raise Refused(f"it holds an object ({_kind(module)}) that is no module of PyTorch")
    return state


def _kind(value: Any) -> str:
    return str(value.kind) if isinstance(value, Opaque) else type(value).__name__


def _check_norm(module: Opaque, state: dict[str, Any], prefix: str) -> None:
    """A state_dict does not tell the epsilon of a normalisation; a module does."""
    eps = state.get("eps", _EPS)
    if "BatchNorm" in module.kind.name and eps != _EPS:
        told = f"{eps:g}" if isinstance(eps, float) else "no number"
        raise Refused(f"its {prefix[:-1]} normalises with eps {told}, ours with {_EPS:g}")
