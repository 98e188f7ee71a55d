"""The data sets by name: one line each. Imported only when asked for."""

from __future__ import annotations

import importlib

from tfds_angio.builder import AngioBuilder
from tfds_angio.errors import UserError

BUILDERS = {
    "angio_synthetic": "tfds_angio.angio_synthetic.builder:AngioSynthetic",
    "arcade": "tfds_angio.arcade.builder:Arcade",
    "angio_folder": "tfds_angio.angio_folder.builder:AngioFolder",
}


def builder_class(name: str) -> type[AngioBuilder]:
    """The TFDS builder class of `name` (without `/config`). UserError for an unknown name."""
    if name not in BUILDERS:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(BUILDERS)}")
    module, attribute = BUILDERS[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def split_name(name: str) -> tuple[str, str]:
    """'name/config' -> (name, config); config '' when there is none. UserError if malformed."""
    parts = name.split("/")
    if len(parts) > 2 or not all(p.replace("_", "").replace("-", "").isalnum() for p in parts):
        raise UserError(f"data set name {name!r} is not NAME or NAME/CONFIG")
    return parts[0], parts[1] if len(parts) == 2 else ""
