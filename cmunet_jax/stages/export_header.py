"""What our export says about a network in the header of a file, written and read.

Texts of JSON by name. Whatever is read may have been changed or made by anyone, so every value is
checked before it is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from cmunet_jax import objectives
from cmunet_jax.data import preprocessing
from tfds_angio.errors import UserError

FORMAT = 1
MAX_SIZE = 8192  # pixels a side; a header must not make anybody allocate more
_SIGNS = ("checkpoint", "network", "preprocessing")
_MAX_TEXT, _MAX_WORD, _MAX_KEYS = 1 << 14, 200, 40
_NETWORK = ("width", "up", "dtype")
_CHECKPOINT = ("digest", "step", "weights")


def write(facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts of an export as texts, for headers of safetensors and ONNX."""
    return {key: json.dumps(value, sort_keys=True) for key, value in facts.items()}


def read(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The inverse of `write`, or None for a header that is not of our export.

    Returns:
      'checkpoint', 'network' (width, up, dtype), 'preprocessing' (what `preprocessing.create`
      takes), and 'data' and 'versions' where they are told, as flat dicts; 'format', a number.

    Raises:
      UserError: if it is of our export but damaged or of another release, without the file's name.
    """
    if sum(name in metadata for name in _SIGNS) < 2:
        return None
    try:
        return _read(metadata)
    except ValueError as error:
        raise UserError(
            f"its header is that of an export of this project, but damaged ({error}): export it "
            "again"
        ) from None


def _read(metadata: Mapping[str, str]) -> dict[str, Any]:
    written = _value(metadata, "format")
    if type(written) is not int or written < 1:
        raise ValueError(f"format is {written!r:.40}, no number from 1 on")
    if written != FORMAT:
        raise UserError(
            f"its header has format {str(written):.20}, and this release reads {FORMAT}: use the "
            "release that wrote it"
        )
    facts: dict[str, Any] = {name: _plain(metadata, name) for name in _SIGNS}
    facts["format"] = written
    for name in ("data", "versions"):
        if metadata.get(name, "null") != "null":
            facts[name] = _plain(metadata, name)
    network, checkpoint = facts["network"], facts["checkpoint"]
    _require_keys("network", network, _NETWORK)
    _require_keys("checkpoint", checkpoint, _CHECKPOINT)
    width = network["width"]
    if type(width) is not int or width < 1:
        raise ValueError(f"network.width is {width!r}")
    for name, values in (("up", ("transposed", "bilinear")), ("dtype", objectives.DTYPES)):
        if network[name] not in values:
            raise ValueError(f"network.{name} is {network[name]!r}, none of {', '.join(values)}")
    digest = checkpoint["digest"]
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError("checkpoint.digest is no SHA-256")
    if type(checkpoint["step"]) is not int or checkpoint["weights"] not in ("ema", "raw"):
        raise ValueError("checkpoint.step or checkpoint.weights is none of an export")
    _check_preprocessing(facts["preprocessing"])
    return facts


def _check_preprocessing(values: Mapping[str, Any]) -> None:
    name, size, version = (values.get(key) for key in ("name", "size", "version"))
    if not isinstance(name, str) or type(size) is not int or type(version) is not int:
        raise ValueError("preprocessing has no name, size and version")
    if size > MAX_SIZE:
        raise ValueError(f"preprocessing.size={size} is above {MAX_SIZE}")
    try:
        chain = preprocessing.create(values)
    except UserError as error:
        if name in preprocessing.VERSIONS and version > preprocessing.VERSIONS[name]:
            raise  # not damage, but of a later release, which it says
        raise ValueError(str(error).replace("config.preprocessing", "preprocessing")) from None
    if missing := chain.to_dict().keys() - values.keys():
        raise ValueError(f"preprocessing lacks {', '.join(sorted(missing))}")


def _require_keys(name: str, values: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    if set(values) != set(keys):
        raise ValueError(f"{name} has not just {', '.join(keys)}")


def _plain(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """A flat dict of short words and numbers: nothing else is ever written."""
    value = _value(metadata, name)
    if not isinstance(value, dict) or len(value) > _MAX_KEYS:
        raise ValueError(f"{name} is no group of values")
    for key, one in value.items():
        if not re.fullmatch(r"[a-zA-Z0-9_.-]{1,40}", key):
            raise ValueError(f"{name} has a key that is no name")
        number = isinstance(one, int | float) and abs(one) < 1 << 53  # also false for NaN
        word = isinstance(one, str) and len(one) <= _MAX_WORD and one.isprintable()
        if not number and not word and one is not None:
            raise ValueError(f"{name}.{key} is no number and no short text")
    return value


def _value(metadata: Mapping[str, str], name: str) -> Any:
    text = metadata.get(name)
    if text is None:
        raise ValueError(f"{name} is missing")
    if len(text) > _MAX_TEXT:
        raise ValueError(f"{name} has more than {_MAX_TEXT} characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is no JSON") from None
