"""From a weights file to our parameters, with what has to be remembered of where they are from."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cmunet_jax.interop import convert, state_dicts, torch_files
from cmunet_jax.interop.convert import Imported
from tfds_angio.errors import UserError


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where imported weights are from; JSON values.

    Attributes:
      file: its name, without the folder.
      bytes: its size.
      sha256: of its content, hex.
      kind: 'zip', 'legacy' or 'safetensors'.
      content: what it holds, in words.
      prefix: what was cut off all names.
      facts: what it tells about itself (epoch, versions); under 'export' what our own export says
        in its header.
    """

    file: str
    bytes: int
    sha256: str
    kind: str
    content: str
    prefix: str
    facts: dict[str, Any]


def _foreign(metadata: Mapping[str, str]) -> None:
    """Takes every header as that of another program."""


def read(
    path: Path,
    *,
    one_output: str = "genesis",
    read_header: Callable[[Mapping[str, str]], dict[str, Any] | None] = _foreign,
) -> tuple[Imported, Origin]:
    """Reads a weights file: of PyTorch (zip or legacy), or safetensors.

    Args:
      path: the file. It is not executed, whatever it holds.
      one_output: see `convert.convert`.
      read_header: texts of a header -> what our own export says in it ('network' with width and up,
        and more for `Origin.facts`), or None.

    Raises:
      UserError: naming the file, if it cannot be read, is no network of ours, or holds anything
        that only code could make.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder. Give the file of weights in it.")
    with torch_files.open_weights(path) as file:
        found = state_dicts.find(file.content)
        try:
            export = read_header(file.metadata) or {}
            imported = convert.convert(found, file.array, one_output=one_output)
            _check_network(export, imported)
        except UserError as error:
            raise UserError(f"{path} is not imported: {error}") from None
        kind, told = file.kind, [text for text in file.metadata.items() if text[0] not in export]
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    facts = {**found.facts, **({"export": export} if export else {})}
    if told:
        facts["metadata"] = {name[:80]: text[:80] for name, text in told[:20]}
    size = path.stat().st_size
    return imported, Origin(path.name, size, digest, kind, found.where, found.prefix, facts)


def _check_network(export: dict[str, Any], imported: Imported) -> None:
    """A header that tells of another network belongs to another file."""
    for key in ("width", "up"):
        told = export["network"][key] if export else getattr(imported, key)
        if told != getattr(imported, key):
            raise UserError(
                f"its header says {key} {told}, its tensors are of {key} "
                f"{getattr(imported, key)}: export it again"
            )


def summary(imported: Imported, origin: Origin) -> str:
    """What was imported, in a few lines: file, network, how many tensors, why others were not."""
    reasons = collections.Counter(imported.ignored.values())
    lines = [
        f"{origin.file}: {origin.bytes / 1e6:,.1f} MB, {origin.kind}, {origin.content}, "
        f"sha256 {origin.sha256[:12]}",
        f"read as {imported.layout}: width {imported.width}, {imported.up} up-sampling, "
        f"objective {imported.objective}",
        f"{len(imported.mapped)} tensors mapped, {len(imported.ignored)} entries ignored"
        + "".join(f"\n  {count} x {why}" for why, count in reasons.most_common()),
    ]
    return "\n".join([*lines, *imported.notes])
