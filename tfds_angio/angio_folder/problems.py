"""The list of everything irregular in a folder and what was done about it."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Sequence

SHOWN = 20
SEVERITIES = ("error", "warning", "info")  # left out; used after a repair; worth knowing


@dataclasses.dataclass(frozen=True)
class Problem:
    """One irregular thing: which file, what about it, what was done."""

    severity: str
    file: str
    problem: str
    action: str

    def __str__(self) -> str:
        """One line for the user."""
        return f"{self.severity}: {self.file}: {self.problem}: {self.action}"


def ordered(problems: Sequence[Problem]) -> list[Problem]:
    """Errors first, then warnings, then information; by file."""
    return sorted(problems, key=lambda p: (SEVERITIES.index(p.severity), p.file, p.problem))


def to_csv(problems: Sequence[Problem]) -> str:
    """All problems as CSV text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["severity", "file", "problem", "action"])
    for one in ordered(problems):
        # A name that is not valid UTF-8 is shown escaped; the file must stay readable.
        file = one.file.encode("utf-8", "backslashreplace").decode()
        writer.writerow([one.severity, file, one.problem, one.action])
    return out.getvalue()


def summary(problems: Sequence[Problem]) -> list[str]:
    """Lines for the terminal: errors and warnings one by one (capped), information counted."""
    if not problems:
        return ["nothing irregular found"]
    counts = Counter(p.severity for p in problems)
    lines = [str(p) for p in ordered(problems) if p.severity != "info"]
    rest = len(lines) - SHOWN
    lines = [line.encode("utf-8", "backslashreplace").decode() for line in lines[:SHOWN]]
    if rest > 0:
        lines.append(f"… and {rest} more")
    total = ", ".join(f"{counts[s]} {s}" for s in SEVERITIES if counts[s])
    lines.append(f"{total}; all of them, with what was done: {{directory}}/problems.csv")
    return lines
