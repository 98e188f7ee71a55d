"""What all pages share: templates, names of files, and writing a page as a whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from cmunet_jax import __version__
from cmunet_jax.report import findings
from tfds_angio.errors import UserError


def render(template: str, page: Path, context: Mapping[str, Any]) -> str:
    """Returns a page as text.

    Args:
      template: name of a file in templates/ that extends frame.html.
      page: where the page will lie; files below its folder are named as seen from there.
      context: what the template shows; text in it is data and becomes escaped.
    """
    shared = {
        "package_version": __version__,
        "name_of": lambda file: name(Path(file), page),
        "plain": findings.plain,
        "signed": findings.signed,
        "count": findings.count,
    }
    return _templates().get_template(template).render({**shared, **context})


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cmunet_jax.report"),
        autoescape=True,  # everything from a file is data, never markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["joined"] = lambda folder, name: folder / name
    environment.filters["thousands"] = lambda number: f"{number:,}".replace(",", "\u202f")
    return environment


def name(file: Path, page: Path) -> str:
    """The path as seen from the page where it lies below it, else in full."""
    try:
        return file.absolute().relative_to(page.absolute().parent).as_posix()
    except ValueError:
        return str(file)


def write(path: Path, content: str) -> Path:
    """Writes a page, replaced as a whole or not at all.

    Returns:
      The path.

    Raises:
      UserError: if the page cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide the page from colleagues
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise UserError(
            f"{path} cannot be written ({error.strerror}): choose another folder or free space."
        ) from None
    return path
