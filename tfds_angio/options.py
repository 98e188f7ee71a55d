"""Typed `key=value` options of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfds_angio.builder import Option
from tfds_angio.errors import UserError

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _convert(key: str, value: Any, default: Any) -> Any:
    kind = type(default)
    try:
        if kind is bool:
            return value if isinstance(value, bool) else _BOOLEANS[str(value).lower()]
        if kind is int and isinstance(value, float) and value != int(value):
            raise ValueError
        return kind(value)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"option {key}={value!r} is not of type {kind.__name__}") from error


def explicit(declared: Mapping[str, Option], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The given options with their types. UserError for an unknown key or a wrong type."""
    out = {}
    for key, value in (given or {}).items():
        if key not in declared:
            known = ", ".join(declared) or "none"
            raise UserError(f"unknown option {key!r}; known: {known}")
        out[key] = _convert(key, value, declared[key].default)
    return out


def complete(declared: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults overlaid with the given options."""
    return {key: option.default for key, option in declared.items()} | dict(given)


def from_command_line(pairs: list[str]) -> dict[str, str]:
    """['k=v', …] -> {k: v}. UserError for a pair without '=' or a repeated key."""
    out: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--option {pair!r} is not key=value")
        if key in out:
            raise UserError(f"--option {key} is given twice")
        out[key] = value
    return out
