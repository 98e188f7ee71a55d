"""What the views share: their shape, option checks, and noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from cmunet_jax.data import augment
from tfds_angio.errors import UserError

Array = jax.Array
Example = Mapping[str, Array]
Options = Mapping[str, Any]
PATCH = 16  # pixels: the stride of the U-Net's bottleneck


@dataclasses.dataclass(frozen=True)
class View:
    """One way to look at an example.

    Attributes:
      make: (key, example, options, train) -> named arrays of one example. ``example`` holds image
        float32 [S, S, 1] and perhaps mask int32 [S, S].
      defaults: (size, preset) -> options.
      check: options -> None; raises a UserError.
    """

    make: Callable[[Array, Example, Options, bool], dict[str, Any]]
    defaults: Callable[[int, str], dict[str, Any]]
    check: Callable[[Options], None]


def noise(key: Array, image: Array, options: Options) -> Array:
    """Adds the noise that `noise` and `noise_fraction` ask for to image float32 [H, W, 1]."""
    if not options["noise"]:
        return image
    return augment.random_noise(
        key, image, fraction=options["noise_fraction"], probability=options["noise"]
    )


def check_side(options: Options, name: str, *, least: int = PATCH) -> None:
    """Raises UserError unless the named side, in pixels, is a multiple of PATCH from `least` on."""
    side = options[name]
    if side < least or side % PATCH:
        raise UserError(
            f"config.views.{name}={side} must be a multiple of {PATCH}, at least {least}. "
            "Unless it is set it follows config.preprocessing.size, which may be 32 or more"
        )


def check_fractions(options: Options, *names: str) -> None:
    """Raises UserError unless the named options lie in 0..1."""
    for name in names:
        if not 0 <= options[name] <= 1:
            raise UserError(f"config.views.{name}={options[name]} must lie in 0..1")


def check_ranges(options: Options, *names: str) -> None:
    """Raises UserError unless the named options are ranges (low, high) with 0 < low <= high."""
    for name in names:
        values = tuple(options[name])
        if len(values) != 2 or not 0 < values[0] <= values[1]:
            raise UserError(f"config.views.{name}={values} must be a range (low, high), low > 0")
