"""Initialises a network with the weights of another run, and says exactly what was done.

What goes where is an objective's `Transfer`. Nothing is guessed: any leaf that the transfer speaks
of and that does not fit stops the run before its first step.
"""

import dataclasses
import difflib
import io
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from cmunet_jax.train.manifest import describe, leaves_by_path
from tfds_angio.errors import UserError

if TYPE_CHECKING:
    from cmunet_jax.objectives.base import Transfer

Tree = Any
_LISTED = 12  # problems shown of each kind


@dataclasses.dataclass(frozen=True)
class Report:
    """What a transfer did, by leaf path; shapes give the counts.

    Attributes:
      loaded: target path -> shape, taken from the source.
      reinitialised: target path -> shape, left at its fresh initialisation.
      left: source path -> shape, not used.
      origin: target path -> source path, for what was loaded.
    """

    loaded: Mapping[str, tuple[int, ...]]
    reinitialised: Mapping[str, tuple[int, ...]]
    left: Mapping[str, tuple[int, ...]]
    origin: Mapping[str, str]


def transfer(
    target_params: Tree,
    target_stats: Tree,
    source_params: Tree,
    source_stats: Tree,
    plan: "Transfer",
) -> tuple[Tree, Tree, Report]:
    """Puts source weights into a freshly initialised target.

    Args:
      target_params: nested dict of arrays, not changed.
      target_stats: the batch statistics beside them, not changed.
      source_params: nested dict of arrays, for example of a `Loaded`.
      source_stats: the batch statistics beside them.
      plan: prefixes '/'-separated; `mapping` is source -> target (the longest match counts, ''
        matches everything), `reinit` lists target prefixes that keep their fresh values.

    Returns:
      (params, batch_stats, report); both trees are shaped like the target, in new buffers.

    Raises:
      UserError: if a mapped leaf is missing on either side, differs in shape or dtype, if a prefix
        matches nothing, or if nothing would be loaded; all such leaves are listed.
    """
    source = _leaves(source_params, source_stats)
    target = _leaves(target_params, target_stats)
    _require_prefixes(plan, source, target)
    chosen, problems = _match(plan, source, target)
    if problems:
        _refuse("the weights do not fit the network", problems)
    if not chosen:
        raise UserError(
            "nothing to transfer: no weight of the source has a place in the network "
            f"(mapping {dict(plan.mapping)}, re-initialised {list(plan.reinit)})."
        )
    report = _report(chosen, source, target)
    params, stats = (
        _rebuild(tree, kind, chosen, source)
        for kind, tree in (("params", target_params), ("batch_stats", target_stats))
    )
    return params, stats, report


def _leaves(params: Tree, stats: Tree) -> dict[str, Any]:
    """Leaves by path, parameters first: they are what a reader looks for in a list."""
    return leaves_by_path({"params": params}) | leaves_by_path({"batch_stats": stats})


def _below(path: str, prefix: str) -> bool:
    return not prefix or path == prefix or path.startswith(prefix + "/")


def _split(path: str) -> tuple[str, str]:
    """'params/encoder/k' -> ('params', 'encoder/k')."""
    kind, _, rest = path.partition("/")
    return kind, rest


def _map(path: str, mapping: Mapping[str, str]) -> str | None:
    """Where a source leaf belongs in the target; None if the mapping does not speak of it."""
    prefixes = [p for p in mapping if _below(path, p)]
    if not prefixes:
        return None
    longest = max(prefixes, key=len)
    rest = path[len(longest) :].lstrip("/")
    return "/".join(part for part in (mapping[longest], rest) if part)


def _match(
    plan: "Transfer", source: Mapping[str, Any], target: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """{target path: source path} for what can be loaded, and the problems by kind."""
    chosen: dict[str, str] = {}
    problems: dict[str, list[str]] = {"missing": [], "unexpected": [], "different": [], "twice": []}
    fresh = {p for p in target if any(_below(_split(p)[1], r) for r in plan.reinit)}
    for path in source:
        kind, name = _split(path)
        mapped = _map(name, plan.mapping)
        place = f"{kind}/{mapped}"
        if mapped is None or place in fresh or any(_below(mapped, r) for r in plan.reinit):
            continue
        if place not in target:
            problems["unexpected"].append(f"{path} {_text(source[path])}{_close(place, target)}")
        elif place in chosen:
            problems["twice"].append(f"{place}: from {chosen[place]} and from {path}")
        elif describe(source[path]) != describe(target[place]):
            texts = f"source {_text(source[path])}, network {_text(target[place])}"
            problems["different"].append(f"{place}: {texts}")
            chosen[place] = path
        else:
            chosen[place] = path
    for path in target:
        spoken_of = any(_below(_split(path)[1], t) for t in plan.mapping.values())
        if spoken_of and path not in chosen and path not in fresh:
            problems["missing"].append(f"{path} {_text(target[path])}{_close(path, source)}")
    return chosen, {kind: lines for kind, lines in problems.items() if lines}


def _require_prefixes(
    plan: "Transfer", source: Mapping[str, Any], target: Mapping[str, Any]
) -> None:
    """A prefix that matches nothing is a misspelling, which would silently load less."""
    sides = (
        ("source", plan.mapping, source),
        ("network", plan.mapping.values(), target),
        ("network", plan.reinit, target),
    )
    lines = [
        f"'{prefix}' in the {side}{_close(prefix, _prefixes(leaves))}"
        for side, prefixes, leaves in sides
        for prefix in prefixes
        if not any(_below(_split(path)[1], prefix) for path in leaves)
    ]
    if lines:
        _refuse("the weights do not fit the network", {"no such part": lines})


def _prefixes(leaves: Iterable[str]) -> set[str]:
    parts = [_split(path)[1].split("/") for path in leaves]
    return {"/".join(p[:n]) for p in parts for n in range(1, len(p))}


def _close(name: str, candidates: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f" (closest: {found[0]})" if found else ""


def _text(leaf: Any) -> str:
    dtype, shape = describe(leaf)
    return f"{dtype}{list(shape)}"


def _refuse(summary: str, problems: Mapping[str, list[str]]) -> None:
    titles = {
        "missing": "in the network, not in the source",
        "unexpected": "in the source, not in the network",
        "different": "of another shape or dtype",
        "twice": "mapped from two places",
    }
    lines = []
    for kind, entries in problems.items():
        more = [f"... and {len(entries) - _LISTED} more"] if len(entries) > _LISTED else []
        lines.append(f"  {titles.get(kind, kind)} ({len(entries)}):")
        lines += [f"    {entry}" for entry in entries[:_LISTED] + more]
    raise UserError(
        f"{summary}: use the model settings (width, up-sampling) that they were trained with, or "
        "other weights.\n" + "\n".join(lines)
    )


def _rebuild(tree: Tree, kind: str, chosen: Mapping[str, str], source: Mapping[str, Any]) -> Tree:
    """The target's tree with loaded leaves, each in a buffer of its own (training donates it)."""
    values = [
        _place(leaf, source[chosen[path]] if path in chosen else leaf)
        for path, leaf in leaves_by_path({kind: tree}).items()
    ]
    return jax.tree_util.tree_unflatten(jax.tree.structure(tree), values)


def _place(like: Any, value: Any) -> Any:
    if not isinstance(like, jax.Array):
        return np.array(value)
    return jax.device_put(jnp.array(value, copy=True), like.sharding)


def _report(
    chosen: Mapping[str, str], source: Mapping[str, Any], target: Mapping[str, Any]
) -> Report:
    used = set(chosen.values())
    return Report(
        loaded={p: np.shape(target[p]) for p in target if p in chosen},
        reinitialised={p: np.shape(target[p]) for p in target if p not in chosen},
        left={p: np.shape(source[p]) for p in source if p not in used},
        origin=dict(chosen),
    )


def format_report(report: Report, *, width: int = 88) -> str:
    """A compact table of a report: one row a part of the network, arrays and numbers counted.

    Args:
      report: what `transfer` returned.
      width: columns of the table.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "part"):
        table.add_column(column, overflow="fold")
    for column in ("arrays", "parameters", "statistics"):
        table.add_column(column, justify="right")
    titles = {"loaded": "loaded", "reinitialised": "re-initialised", "left": "left unused"}
    for kind, title in titles.items():
        groups = _groups(report, kind)
        for part, (arrays, parameters, statistics) in groups.items():
            table.add_row(title, part, f"{arrays:,}", f"{parameters:,}", f"{statistics:,}")
            title = ""
        if not groups:
            table.add_row(title, "nothing", "0", "0", "0")
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")


def _groups(report: Report, kind: str) -> dict[str, tuple[int, int, int]]:
    """{part: (arrays, parameters, statistics)} of one kind of leaves.

    What was loaded is shown by its top-level parts; the rest by the largest parts of which nothing
    was loaded, which names the exceptions.
    """
    chosen: Mapping[str, tuple[int, ...]] = getattr(report, kind)
    others = set(report.origin.values() if kind == "left" else report.origin)
    groups: dict[str, tuple[int, int, int]] = {}
    for path, shape in chosen.items():
        if kind == "loaded":
            ends = [_split(p)[1].split("/")[0] for p in (report.origin[path], path)]
            part = " → ".join(dict.fromkeys(ends))
        else:
            part = _part(path, others)
        arrays, parameters, statistics = groups.get(part, (0, 0, 0))
        size, learned = math.prod(shape), path.startswith("params/")
        groups[part] = (
            arrays + 1,
            parameters + (size if learned else 0),
            statistics + (0 if learned else size),
        )
    return groups


def _part(path: str, others: set[str]) -> str:
    """The shortest prefix of a path under which no leaf of `others` lies, at least one name."""
    names = _split(path)[1].split("/")
    for n in range(1, len(names)):
        prefix = "/".join(names[:n])
        if not any(_below(_split(other)[1], prefix) for other in others):
            return prefix
    return "/".join(names)
