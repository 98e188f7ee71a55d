"""Keeps the books: which files were read, which number came from which, what was left out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from cmunet_jax.report.results import describe
from cmunet_jax.report.study.measures import Number
from cmunet_jax.report.study.model import Problem, SourceFile


class Ledger:
    """Filled while a study is read and computed; its content becomes part of the study.

    Attributes:
      sources: name of a file -> the file.
      provenance: key of a number -> names of its files.
      problems: what was left out, in the order of discovery.
    """

    def __init__(self) -> None:
        self.sources: dict[str, SourceFile] = {}
        self.provenance: dict[str, tuple[str, ...]] = {}
        self.problems: list[Problem] = []

    def source(self, label: str, directory: Path, path: Path) -> str:
        """Notes a file of the sweep `label` that was read and returns its name.

        Raises:
          UserError: if it cannot be read any more.
        """
        name = f"{label}/{path.relative_to(directory).as_posix()}"
        if name not in self.sources:
            found = describe(path)
            self.sources[name] = SourceFile(name, path, found.size, found.digest)
        return name

    def number(
        self,
        key: str,
        value: float,
        low: float = math.nan,
        high: float = math.nan,
        *,
        files: Iterable[str],
    ) -> Number:
        """Returns a number that is traced to its files.

        Raises:
          ValueError: if the key is taken or a file was never noted: then a number of the report
            could not be traced.
        """
        names = tuple(sorted(set(files)))
        unknown = [name for name in names if name not in self.sources]
        if key in self.provenance or not names or unknown:
            raise ValueError(f"number {key}: its key is taken or its files are unknown {unknown}")
        self.provenance[key] = names
        return Number(key, float(value), float(low), float(high))

    def problem(self, kind: str, where: str, text: str) -> None:
        """Notes what was left out and why."""
        self.problems.append(Problem(kind, where, text))
