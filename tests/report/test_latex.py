"""Whatever a name holds, LaTeX prints it and runs nothing."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cmunet_jax.report import latex
from tests.report import latex_reader

NASTY = "50 % of a_b & $x^2$ #1 {~} \\input{/etc/passwd} <|> \"'` "
NASTY += "\u2212\u2013\u00d7\u2265 \u00e9\u0142\u4e2d"


@given(st.text(max_size=40))
@example(NASTY)
@example("\\\\ \n & \r\x00\u2028\u202e")
def test_any_text_is_one_cell(text):
    written = latex.table("t", text, "lr", ("a", "b"), [(latex.escape(text), "1")])
    rows = latex_reader.check(written)
    assert len(rows) == 2 and len(rows[1]) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 5 %", r"a\_b \& 5 \%"),
        ("\u22120.5", r"\ensuremath{-}0.5"),
        ("caf\u00e9", "cafe"),
        ("\u4e2d", "[U+4E2D]"),
        ("a\nb", "a b"),
        ("\\end{table}", r"\textbackslash{}end\{table\}"),
    ],
)
def test_what_it_becomes(text, expected):
    assert latex.escape(text) == expected


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        latex.table("t", "c", "ll", ("a", "b"), [("1",)])


@pytest.mark.parametrize("text", ["50 %", "a_b", "{", "x & y", "$", "\\unknowncommand", "\u00e9"])
def test_the_reader_can_fail(text):
    with pytest.raises(AssertionError):
        latex_reader.check(latex.table("t", "c", "lr", ("a", "b"), [(text, "1")]))


def test_names_of_files_and_labels_are_plain():
    assert latex.slug("a b/../c_d%") == "a-b-c-d"
    assert latex.slug("///") == "table"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_pdflatex_prints_it(tmp_path):
    table = latex.table("t", NASTY, "lr", ("a", NASTY), [(latex.escape(NASTY), latex.bold("1"))])
    (tmp_path / "t.tex").write_text(table)
    (tmp_path / "all.tex").write_text(latex.document(["t"]))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
