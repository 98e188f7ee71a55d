"""Reads LaTeX tables strictly: what TeX would refuse or misread raises an AssertionError."""

from __future__ import annotations

import re

# Commands that our tables use, all of which plain LaTeX with booktabs and textcomp knows.
KNOWN = set(
    "begin end centering footnotesize scriptsize setlength tabcolsep caption label toprule midrule "
    "bottomrule shortstack textbf textbackslash textasciitilde textasciicircum textless "
    "textgreater textbar textquotedbl textquotesingle textasciigrave ensuremath times pm circ "
    "rightarrow leq geq approx ldots tau sigma mu".split()
)


def tokens(text: str) -> list[str]:
    """Commands, escaped characters and single characters."""
    assert text.isascii(), [c for c in text if not c.isascii()]
    return re.findall(r"\\[A-Za-z]+|\\.|.|\n", text, flags=re.S)


def check(text: str) -> list[list[str]]:
    """Returns the cells of the rows of one table.

    Raises:
      AssertionError: unbalanced braces or environments, an unknown command, an active character in
        text, or rows of different length.
    """
    depth = 0
    environments: list[str] = []
    maths: list[int] = []
    found = tokens(text)
    for at, token in enumerate(found):
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
            assert depth >= 0, "a brace closes what was not opened"
            maths = [level for level in maths if level <= depth]
        elif token == r"\ensuremath":
            maths.append(depth + 1)
        elif token in ("^", "_"):
            assert maths, f"{token} outside mathematics: {''.join(found[at - 20 : at + 5])}"
        elif re.fullmatch(r"\\[A-Za-z]+", token):
            assert token[1:] in KNOWN, f"unknown command {token}"
        assert token not in ("$", "#", "%"), f"{token} is active"
    assert depth == 0, "a brace is left open"
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            environments.append(name)
        else:
            assert environments.pop() == name
    assert not environments
    body = re.search(r"\\begin\{tabular\}\{([lcr]+)\}\n(.*?)\\end\{tabular\}", text, flags=re.S)
    assert body, "no tabular"
    lines = [line for line in body[2].splitlines() if not line.endswith("rule")]
    assert all(line.endswith(r" \\") for line in lines), "a row does not end"
    rows = [re.split(r"(?<!\\)&", line.removesuffix(r" \\")) for line in lines]
    assert {len(row) for row in rows} == {len(body[1])}, "rows of different length"
    return [[cell.strip() for cell in row] for row in rows]
