"""What every config shares: typed arguments, durations, checks, serialisation.

Configs are plain `ml_collections.ConfigDict`s; nothing else encodes hyper-parameters. A config file
defines `get_config(arg)`, where `arg` is what follows the colon in
`--config configs/pretrain.py:size=small,data=arcade`.
"""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from tfds_angio.errors import UserError

STAGES = (
    "pretrain",
    "finetune",
    "evaluate",
    "quickstart",
    "sweep",
    "report",
    "benchmark",
    "import_weights",
    "predict",
    "view",
    "export",
    "select",
)
_TRAINING = ("objective", "model", "data", "preprocessing", "views", "optim", "checkpoint")
# Keys that do not change results: a resumed run may set them anew, a trial is known without them.
FREE = (
    "data.dir",
    "data.source",
    "data.workers",
    "log_every",
    "pictures_every",
    "checkpoint.keep",
    "model.fast",
    "model.remat",
    "sharding",
    "distributed",
    "hosts.coordinator",
    "hosts.processes",
    "hosts.process",
    "hosts.wait_seconds",
    "optim.on_nan",  # differs only where the run would have stopped, which it may then survive
)
_REQUIRED = {
    "pretrain": _TRAINING,
    "finetune": (*_TRAINING, "labels", "draw", "eval_split"),
    "evaluate": ("checkpoint", "data", "split"),
    "predict": ("checkpoint", "input", "fit", "threshold"),
    "export": ("checkpoint", "step", "weights", "formats", "overwrite"),
    "quickstart": ("pretrain", "finetune", "scratch", "evaluate"),
    "report": ("sweep", "title", "resamples"),
    "benchmark": ("cases", "batch_size", "dtype", "finetune", "pretrain"),
    "import_weights": ("source", "preprocessing", "data"),
    "view": ("input", "compare", "images", "labels", "overwrite", "port", "open_browser"),
    "select": ("checkpoint", "data", "split", "k", "method"),
    "sweep": ("methods", "labels", "data", "test_split", "pretrain", "finetune", "evaluate"),
}
_RANGES = {
    "batch_size": (1, math.inf),
    "accumulation": (1, math.inf),
    "model.width": (1, math.inf),
    "preprocessing.size": (16, math.inf),
    "checkpoint.keep": (1, math.inf),
    "hosts.processes": (0, math.inf),
    "hosts.process": (0, math.inf),
    "hosts.wait_seconds": (1, math.inf),
    "labels": (0, math.inf),
    "draw": (0, math.inf),
    "folds": (0, math.inf),
    "fold": (0, math.inf),
    "eval_images": (0, math.inf),
    "ema_decay": (0, 0.999999),
    "seed": (0, 2**31 - 1),
    "repetitions": (1, math.inf),
    "slow_repetitions": (1, math.inf),
    "seconds": (0, math.inf),
    "threads": (0, math.inf),
    "metrics.images": (1, math.inf),
    "tile": (0, math.inf),
    "threshold": (0, 1),
    "keep_components": (0, math.inf),
    "spacing": (0, math.inf),
    "workers": (0, math.inf),
    "port": (0, 65535),
    "k": (1, math.inf),
    "per_patient": (0, math.inf),
}
_DURATION = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*(steps?|epochs?|examples?|%)\s*$")


def suggestion(word: str, known: list[str]) -> str:
    """Returns ", did you mean 'x'?" for the closest of `known`, or '.': the end of a sentence."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else "."


def choose(key: str, value: str, choices: tuple[str, ...]) -> str:
    """Returns `value` if it is one of `choices`.

    Raises:
      UserError: naming the key, the value and what it may be.
    """
    if value not in choices:
        raise UserError(
            f"{key}='{value}' is not known{suggestion(str(value), list(choices))} "
            f"Choose one of: {', '.join(choices)}."
        )
    return value


def parse_arg(arg: str | None, **spec: Any) -> ml_collections.ConfigDict:
    """Parses `a=1,b=x` after the colon of a config path against typed defaults.

    Args:
      arg: the text after the colon, or None.
      **spec: for each name its default, whose type is the type of the argument, or a tuple of
        strings: the choices, of which the first is the default.

    Returns:
      A ConfigDict with a value for each name of `spec`.

    Raises:
      UserError: on an unknown name, a missing '=', a wrong type or a value that is no choice.
    """
    values = {k: (v[0] if isinstance(v, tuple) else v) for k, v in spec.items()}
    for part in filter(None, (arg or "").split(",")):
        name, equals, text = (piece.strip() for piece in part.partition("="))
        if name not in spec:
            raise UserError(
                f"config argument '{name}' is not known{suggestion(name, list(spec))} "
                f"Known: {', '.join(spec)}."
            )
        if not equals:
            raise UserError(f"config argument '{name}' needs a value: write {name}=VALUE.")
        values[name] = _typed(name, text, spec[name])
    return ml_collections.ConfigDict(values)


def _typed(name: str, text: str, default: Any) -> Any:
    if isinstance(default, tuple):
        return choose(f"config argument {name}", text, default)
    if isinstance(default, bool):
        choose(f"config argument {name}", text.lower(), ("true", "false"))
        return text.lower() == "true"
    try:
        return type(default)(text)
    except ValueError:
        raise UserError(
            f"config argument {name}='{text}' must be a {type(default).__name__}, "
            f"for example {name}={default}."
        ) from None


def steps_of(
    duration: str, *, key: str, batch_size: int, examples: int, total: int | None = None
) -> int:
    """Converts a duration to optimiser steps: the one place where epochs become steps.

    Args:
      duration: '300 epochs', '2000 steps', '50000 examples' or '10%' (of `total`); '0 steps' is
        never.
      key: the config key, for messages.
      batch_size: examples a step.
      examples: examples an epoch; an epoch has `examples // batch_size` steps, because a batch
        never holds an example twice.
      total: steps that '%' refers to.

    Returns:
      Steps, at least 1 unless the duration is zero.

    Raises:
      UserError: if the text is not a duration, or is a percentage where none makes sense.
    """
    match = _DURATION.match(str(duration))
    if not match:
        raise UserError(
            f"config.{key}='{duration}' is not a duration. "
            "Write it as '300 epochs', '2000 steps', '50000 examples' or '10%'."
        )
    number, unit = float(match[1]), match[2].rstrip("s")
    if unit == "%" and total is None:
        raise UserError(f"config.{key}='{duration}': a percentage has nothing to refer to here.")
    per_unit = {
        "step": 1.0,
        "epoch": float(max(examples // batch_size, 1)),
        "example": 1.0 / batch_size,
        "%": (total or 0) / 100.0,
    }[unit]
    return max(1, math.floor(number * per_unit + 0.5)) if number else 0


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every leaf of a nested config."""
    for key, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the resolved config as JSON-able nested dicts (tuples become lists)."""
    return json.loads(config.to_json_best_effort())


def from_dict(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns the ConfigDict of a resolved config that was stored as JSON."""
    return ml_collections.ConfigDict(dict(values))


def digest(values: Mapping[str, Any]) -> str:
    """Returns the SHA-256 (hex) of a JSON-able dict, independent of key order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Returns 'key: a -> b' for each leaf in which two resolved configs differ."""
    left, right = dict(flatten(ours)), dict(flatten(theirs))
    keys = sorted(left.keys() | right.keys())
    return [
        f"{key}: {left.get(key, '(absent)')} -> {right.get(key, '(absent)')}"
        for key in keys
        if left.get(key) != right.get(key)
    ]


def check(config: ml_collections.ConfigDict, prefix: str = "") -> None:
    """Checks what can be known before any data is read.

    Args:
      config: of any stage.
      prefix: of the keys in messages, for a config inside another: 'pretrain.'.

    Raises:
      UserError: naming the first key that cannot work, and the remedy.
    """
    if "stage" not in config:
        raise UserError(f"config.{prefix}stage is missing. Choose one of: {', '.join(STAGES)}.")
    choose(f"config.{prefix}stage", config.stage, STAGES)
    for key in _REQUIRED[config.stage]:
        if key not in config:
            raise UserError(
                f"config.{prefix}{key} is missing, which stage {config.stage} needs: start from "
                f"configs/{config.stage}.py"
            )
    if config.stage == "quickstart":
        for part in ("pretrain", "finetune", "scratch"):
            check(config[part], f"{prefix}{part}.")
        _check_values(dict(flatten(config.evaluate)), f"{prefix}evaluate.")
        return
    if config.stage in ("sweep", "benchmark"):
        for name in config.pretrain:
            check(config.pretrain[name], f"{prefix}pretrain.{name}.")
        check(config.finetune, f"{prefix}finetune.")
        if "evaluate" in config:
            _check_values(dict(flatten(config.evaluate)), f"{prefix}evaluate.")
        else:
            _check_values(dict(flatten(config)), prefix)
        return
    _check_values(dict(flatten(config)), prefix)
    if config.get("accumulation") and config.batch_size % config.accumulation:
        raise UserError(
            f"config.{prefix}batch_size={config.batch_size} is not a multiple of "
            f"config.{prefix}accumulation={config.accumulation}."
        )


def _check_values(values: Mapping[str, Any], prefix: str) -> None:
    """Ranges of single values, by dotted key."""
    for key, value in values.items():
        last = key.rsplit(".", 1)[-1]
        if last in ("size", "crop", "image_size") and isinstance(value, int) and value % 16:
            lower, upper = value // 16 * 16, value // 16 * 16 + 16
            raise UserError(
                f"config.{prefix}{key}={value} is not divisible by 16, which the four poolings of "
                f"the U-Net need. Use {max(lower, 16)} or {upper}."
            )
    for key, (low, high) in _RANGES.items():
        value = values.get(key)
        # The same word may name a folder elsewhere: labels of a training are a number.
        if isinstance(value, int | float) and not low <= value <= high:
            limit = f"at least {low}" if math.isinf(high) else f"in {low}..{high}"
            raise UserError(f"config.{prefix}{key}={value} must be {limit}.")
    rate = values.get("optim.learning_rate")
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise UserError(f"config.{prefix}optim.learning_rate={rate} must be a positive number.")
