"""From a weights file to our parameters, with what has to be remembered of where they are from."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
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
      facts: what it tells about itself (epoch, versions).
    """

    file: str
    bytes: int
    sha256: str
    kind: str
    content: str
    prefix: str
    facts: dict[str, Any]


def read(path: Path, *, one_output: str = "genesis") -> tuple[Imported, Origin]:
    """Reads a weights file: of PyTorch (zip or legacy), or safetensors.

    Args:
      path: the file. It is not executed, whatever it holds.
      one_output: see `convert.convert`.

    Raises:
      UserError: naming the file, if it cannot be read, is no network of ours, or holds anything
        that only code could make.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder. Give the file of weights in it.")
    with torch_files.open_weights(path) as file:
        found = state_dicts.find(file.content)
        try:
            imported = convert.convert(found, file.array, one_output=one_output)
        except UserError as error:
            raise UserError(f"{path} is not imported: {error}") from None
        kind, metadata = file.kind, {k[:80]: v[:80] for k, v in list(file.metadata.items())[:20]}
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    facts = {**found.facts, **({"metadata": metadata} if metadata else {})}
    size = path.stat().st_size
    return imported, Origin(path.name, size, digest, kind, found.where, found.prefix, facts)


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
