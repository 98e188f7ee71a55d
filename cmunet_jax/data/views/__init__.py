"""Views: what an objective sees of a batch, made on the device.

Every entry of ``VIEWS`` makes named arrays from one example and one key; ``make_views`` maps it
over a batch. The key of an example is a function of (seed, view, step, index) alone, so a batch can
be made again at any time, on any number of devices, and microbatches do not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from cmunet_jax.data.keys import example_keys
from cmunet_jax.data.views import genesis, masked, online_target, supervised, two_views
from cmunet_jax.data.views.common import PATCH, Array, Example, Options, View
from tfds_angio.errors import UserError

__all__ = ["PATCH", "VIEWS", "View", "check", "default_options", "make_views"]

VIEWS: dict[str, View] = {
    "supervised": supervised.VIEW,
    "online_target": online_target.VIEW,
    "masked": masked.VIEW,
    "two_views": two_views.VIEW,
    "genesis": genesis.VIEW,
}
"""Name in `Objective.views` -> view; a new view is one file here and one line."""


def default_options(name: str, size: int, *, preset: str = "fixed") -> dict[str, Any]:
    """What ``config.views`` starts from for one view.

    Args:
      name: of ``VIEWS``.
      size: side of the prepared images in pixels.
      preset: ``paper`` or ``fixed``.
    """
    return _view(name).defaults(size, preset)


def check(names: Sequence[str], config: Options) -> None:
    """Raises a UserError that names the option if a view cannot be made from ``config.views``."""
    for name in names:
        view, options = _view(name), _options_of(name, names, config)
        for key in view.defaults(256, "fixed"):
            if key not in options:
                raise UserError(f"config.views.{key} is missing, which the view '{name}' needs")
        view.check(options)


def make_views(
    names: Sequence[str],
    batch: Mapping[str, Array],
    *,
    seed: int | Array,
    step: int | Array,
    config: Options,
    train: bool,
) -> dict[str, Array]:
    """Makes the named views of a decoded batch; jit-able in batch, seed and step.

    Args:
      names: of ``VIEWS``; their arrays must have different names.
      batch: image float32 [B, S, S, 1], index int32 [B] and perhaps mask int32 [B, S, S].
      seed: of the run.
      step: optimiser step; ignored when not training, so that validation always sees the same.
      config: ``config.views``: the options of the one view, or a dict of them by name.
      train: whether to augment.

    Returns:
      The arrays of all views, leading dimension B.

    Raises:
      UserError: on unusable options or missing masks.
    """
    check(names, config)
    made: dict[str, Array] = {}
    for name in names:
        view, options = VIEWS[name], _options_of(name, names, config)
        stream = f"view/{name}/{'train' if train else 'evaluation'}"
        keys = example_keys(seed, stream, step if train else 0, batch["index"])
        example = {key: batch[key] for key in ("image", "mask") if key in batch}

        def one(key: Array, example: Example, view=view, options=options) -> dict[str, Array]:
            return view.make(key, example, options, train)

        arrays = jax.vmap(one)(keys, example)
        repeated = made.keys() & arrays.keys()
        if repeated:
            raise ValueError(f"views {list(names)} both make {sorted(repeated)}")
        made.update(arrays)
    return made


def _view(name: str) -> View:
    if name not in VIEWS:
        raise UserError(f"view '{name}' is unknown; there are {', '.join(VIEWS)}")
    return VIEWS[name]


def _options_of(name: str, names: Sequence[str], config: Options) -> Options:
    return config[name] if len(names) > 1 else config
