"""LaTeX of tables: booktabs, every character escaped, plain pdflatex with T1 fonts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "\u2212": r"\ensuremath{-}",
    "\u2013": "--",
    "\u2014": "---",
    "\u00d7": r"\ensuremath{\times}",
    "\u00b1": r"\ensuremath{\pm}",
    "\u00b0": r"\ensuremath{^\circ}",
    "\u00b2": r"\ensuremath{^2}",
    "\u2192": r"\ensuremath{\rightarrow}",
    "\u2264": r"\ensuremath{\leq}",
    "\u2265": r"\ensuremath{\geq}",
    "\u2248": r"\ensuremath{\approx}",
    "\u2026": r"\ldots{}",
    "\u2018": "`",
    "\u2019": "'",
    "\u201c": "``",
    "\u201d": "''",
    "\u00a0": "~",
    "\u202f": r"\,",
    "\u2009": r"\,",
    "\u03c4": r"\ensuremath{\tau}",
    "\u03c3": r"\ensuremath{\sigma}",
    "\u03bc": r"\ensuremath{\mu}",
    "\u00b5": r"\ensuremath{\mu}",
}
_USUAL = r"\footnotesize\setlength{\tabcolsep}{3pt}"
_SMALL = r"\scriptsize\setlength{\tabcolsep}{2pt}"
_MANY = 9  # columns that a page holds in the usual size
PREAMBLE = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage{textcomp}
\usepackage{booktabs}
\usepackage[a4paper,landscape,margin=15mm]{geometry}
"""


def escape(text: str) -> str:
    """Returns ASCII LaTeX that prints `text`; what T1 fonts lack becomes its nearest or its code.

    Line breaks and other control characters become spaces, so that a name from a file can neither
    end a row nor run a command.
    """
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character.isspace() or unicodedata.category(character)[0] == "C":
        return " "
    if character.isascii():
        return character
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(_SPECIAL.get(c, c) for c in plain) or f"[U+{ord(character):04X}]"


def table(
    name: str,
    caption: str,
    alignment: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> str:
    """A floating table.

    Args:
      name: of the label, tab:<name>.
      caption: plain text.
      alignment: one of l, c, r a column.
      header: plain text of each column.
      rows: LaTeX of each cell, already escaped.

    Raises:
      ValueError: if a row has another number of cells than the header.
    """
    if len(alignment) != len(header) or any(len(row) != len(header) for row in rows):
        raise ValueError(f"table {name}: rows, header and alignment differ in length")
    lines = [
        r"\begin{table}[htbp]",
        r"\centering" + (_SMALL if len(header) > _MANY else _USUAL),
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{tab:{slug(name)}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(escape(text) for text in header) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def document(names: Sequence[str]) -> str:
    """A document of all tables, to look at them: pdflatex all.tex."""
    body = "\n".join(rf"\input{{{name}.tex}}\clearpage" for name in names)
    return f"{PREAMBLE}\\begin{{document}}\n{body}\n\\end{{document}}\n"


def slug(name: str) -> str:
    """A file and label name: letters, digits and '-' only."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "table"


def stacked(first: str, second: str) -> str:
    """Two lines in one cell, the second small; both already escaped."""
    return rf"\shortstack[r]{{{first}\\{{\scriptsize {second}}}}}" if second else first


def bold(text: str) -> str:
    """Bold, for text that is already escaped."""
    return rf"\textbf{{{text}}}"
