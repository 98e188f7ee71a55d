"""Variants: a study's configs with one thing changed, by name."""

from __future__ import annotations

import ast
import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from cmunet_jax import config as config_lib
from tfds_angio.errors import UserError

TEST = "{test}"  # stands for config.test_split
OWN = "own"  # as config.pretrain_for: every pre-training as long as its recipe says
_OWN_DATA = ("split",)  # what a stage says of its data; the rest is the sweep's


@dataclasses.dataclass(frozen=True)
class Parts:
    """Configs of the stages: `pretrain` by method, `finetune`, `evaluate`."""

    pretrain: Mapping[str, ConfigDict]
    finetune: ConfigDict
    evaluate: ConfigDict


def parts_of(sweep: ConfigDict) -> Parts:
    """The configs of the stages, with what the sweep says of all of them filled in."""
    # Copies that keep references, so that what follows a key also follows a variant's.
    pretrain = {name: copy.deepcopy(sweep.pretrain[name]) for name in sweep.pretrain}
    finetune = copy.deepcopy(sweep.finetune)
    for part in (*pretrain.values(), finetune):
        with part.unlocked():
            part.data.update({k: v for k, v in sweep.data.items() if k not in _OWN_DATA})
    for part in pretrain.values():
        if sweep.pretrain_for not in ("", OWN):
            part.train_for = sweep.pretrain_for
    _name_test(finetune, sweep.test_split)
    return Parts(pretrain, finetune, copy.deepcopy(sweep.evaluate))


def _name_test(config: ConfigDict, split: str) -> None:
    """Puts the name of the test split where a config says '{test}'."""
    for key, value in dict(config_lib.flatten(config)).items():
        if isinstance(value, str) and TEST in value:
            config.update_from_flattened_dict({key: value.replace(TEST, split)})


def of(sweep: ConfigDict, method: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name, {dotted key: value}); first ('', {}), the study itself.

    Raises:
      UserError: if a variant is neither known nor written as 'name: key=value key=value'.
    """
    if sweep.main_variant:
        yield "", {}
    if sweep.variant_methods and method not in _strings(sweep.variant_methods):
        return
    for text in _strings(sweep.variants):
        name, colon, rest = (piece.strip() for piece in text.partition(":"))
        if colon:
            yield name, dict(_parse(piece, name) for piece in rest.split())
            continue
        known = sweep.known_variants
        config_lib.choose("config.variants", name, tuple(known.keys()))
        yield (
            name,
            {
                key: value.replace(TEST, sweep.test_split) if isinstance(value, str) else value
                for key, value in config_lib.flatten(known[name])
            },
        )


def _strings(values: Any) -> tuple[str, ...]:
    """As in plan.strings, but a variant that is spelled out may hold commas."""
    parts = [values] if isinstance(values, str) else list(values)
    found = [p for part in parts for p in ([part] if ":" in part else str(part).split(","))]
    return tuple(p.strip() for p in found if p.strip())


def _parse(text: str, name: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"variant '{name}': '{text}' needs a value: write {text}=VALUE.")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value.replace("_", " ") if value[:1].isdigit() else value


def apply(base: Parts, changes: Mapping[str, Any], method: str) -> Parts:
    """The configs with the changes of a variant.

    Keys start with 'finetune.', 'evaluate.', 'pretrain.' (of every method) or 'pretrain.METHOD.'.

    Raises:
      UserError: if a key does not exist or its value has another type.
    """
    pretrain = {name: copy.deepcopy(part) for name, part in base.pretrain.items()}
    finetune, evaluate = copy.deepcopy(base.finetune), copy.deepcopy(base.evaluate)
    for dotted, value in changes.items():
        part, _, key = dotted.partition(".")
        config_lib.choose("part of a variant", part, ("pretrain", "finetune", "evaluate"))
        targets = {"finetune": [finetune], "evaluate": [evaluate]}.get(part)
        if targets is None:
            named, _, rest = key.partition(".")
            chosen = [named] if named in pretrain else list(pretrain)
            key = rest if named in pretrain else key
            targets = [pretrain[name] for name in chosen if name == method]
        for target in targets:
            _set(target, key, value, dotted)
    return Parts(pretrain, finetune, evaluate)


def _set(config: ConfigDict, key: str, value: Any, dotted: str) -> None:
    known = dict(config_lib.flatten(config))
    if key not in known:
        near = config_lib.suggestion(key, list(known))
        raise UserError(f"a variant sets {dotted}, which is not a key{near}")
    if isinstance(known[key], str) and not isinstance(value, str):
        value = str(value)
    try:
        config.update_from_flattened_dict({key: value})
    except (TypeError, ValueError) as error:
        raise UserError(f"a variant sets {dotted}={value!r}: {error}") from None


def same_for(method: str, parts: Parts, base: Parts) -> bool:
    """Whether a variant changes nothing for a method."""
    pairs = [(parts.finetune, base.finetune), (parts.evaluate, base.evaluate)]
    if method != "scratch":
        pairs.append((parts.pretrain[method], base.pretrain[method]))
    return all(config_lib.to_dict(a) == config_lib.to_dict(b) for a, b in pairs)
