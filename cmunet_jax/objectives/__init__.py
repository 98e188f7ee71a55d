"""Training objectives, one file a method, and the table that names them.

A new method is one file with a frozen dataclass that implements `base.Objective`, one line in
OBJECTIVES and one config.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

from cmunet_jax.models.unet import REMAT, UPSAMPLING
from cmunet_jax.objectives import base, cmunet, genesis, mae, moco, scratch, spark
from cmunet_jax.objectives.cmunet import CMUNet
from cmunet_jax.objectives.genesis import Genesis
from cmunet_jax.objectives.mae import MAE
from cmunet_jax.objectives.moco import MoCo
from cmunet_jax.objectives.scratch import Scratch
from cmunet_jax.objectives.spark import SparK
from tfds_angio.errors import UserError

OBJECTIVES = MappingProxyType(
    {
        "scratch": Scratch,
        "cmunet": CMUNet,
        "moco": MoCo,
        "mae": MAE,
        "genesis": Genesis,
        "spark": SparK,
    }
)
"""Name in `config.objective.name` -> class."""

PRESETS = MappingProxyType(
    {
        "scratch": scratch.preset_options,
        "cmunet": cmunet.preset_options,
        "moco": moco.preset_options,
        "mae": mae.preset_options,
        "genesis": genesis.preset_options,
        "spark": spark.preset_options,
    }
)
"""Name in `config.objective.name` -> (preset) -> options."""

DTYPES = ("float32", "bfloat16")
_NOT_OPTIONS = ("name", "preset")


def default_options(name: str, preset: str) -> dict[str, Any]:
    """Returns `config.objective` for an objective and a preset; UserError if either is unknown."""
    base.check_choice("name", name, tuple(OBJECTIVES))
    return {"name": name, "preset": preset, **PRESETS[name](preset)}


def view_options(name: str, preset: str) -> dict[str, Any]:
    """What an objective changes in its view's default options; nothing, for most.

    A class says so in `view_options`, a mapping of preset -> options.
    """
    base.check_choice("name", name, tuple(OBJECTIVES))
    return dict(getattr(OBJECTIVES[name], "view_options", {}).get(preset, {}))


def create(config: Any) -> base.Objective:
    """Makes the objective of a config.

    Args:
      config: has `objective` (`name`, optionally `preset` for the record, and any of the options of
        the objective's class) and `model` (any of `width`, `dtype`, `up`, `fast`,
        `remat`).

    Raises:
      UserError: names the key that is unknown or has a value that does not exist.
    """
    name = config["objective"].get("name")
    base.check_choice("name", name, tuple(OBJECTIVES))
    cls = OBJECTIVES[name]
    known = {f.name for f in dataclasses.fields(cls)}
    model = dict(config["model"])
    options = {k: v for k, v in dict(config["objective"]).items() if k not in _NOT_OPTIONS}
    shared = {"width", "dtype", "up", "fast", "remat"}
    for section, given, allowed in (
        ("model", model, shared),
        ("objective", options, known - shared),
    ):
        for key in sorted(set(given) - allowed):
            raise UserError(
                f"config.{section}.{key} is not known to objective {name!r}; "
                f"known are: {', '.join(sorted(allowed))}"
            )
    base.check_choice("dtype", model.get("dtype", "float32"), DTYPES, section="model")
    base.check_choice("up", model.get("up", "transposed"), UPSAMPLING, section="model")
    base.check_choice("remat", model.get("remat", "none"), tuple(REMAT), section="model")
    return cls(**model, **options)
