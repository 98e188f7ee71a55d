"""The little Markdown of the cards, as parts that a template shows without trusting any markup."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Passage:
    """A paragraph, a list or lines of code.

    Attributes:
      kind: 'text', 'list' or 'code'.
      lines: of a list, its entries; of the others, one. Each is runs of (text, whether bold).
    """

    kind: str
    lines: list[list[tuple[str, bool]]]


def passages(text: str) -> Iterator[Passage]:
    """Yields the parts of `text`: paragraphs, '- ' lists, code indented by four; '**' is bold."""
    for block in text.split("\n\n"):
        lines = block.rstrip().split("\n")
        if not block.strip():
            continue
        if all(line.startswith("    ") for line in lines):
            yield Passage("code", [[("\n".join(line[4:] for line in lines), False)]])
        elif all(line.startswith("- ") for line in lines):
            yield Passage("list", [_runs(line[2:]) for line in lines])
        else:
            yield Passage("text", [_runs(" ".join(line.strip() for line in lines))])


def _runs(line: str) -> list[tuple[str, bool]]:
    parts = line.split("**")
    if len(parts) % 2 == 0:  # an asterisk pair that is never closed is text
        return [(line, False)]
    return [(part, at % 2 == 1) for at, part in enumerate(parts) if part]
