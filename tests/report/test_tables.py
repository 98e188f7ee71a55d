"""Tables hold the numbers of the study, as CSV and as LaTeX, each traced to its files."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cmunet_jax.report import study_tables, tables
from cmunet_jax.report.study import Number, Study, read_study
from cmunet_jax.report.tables import Entry, Table
from tests.report import fake_sweep, latex_reader
from tfds_angio.errors import UserError


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    root = tmp_path_factory.mktemp("sweeps")
    return read_study(fake_sweep.build(root).all, resamples=300)


@pytest.fixture(scope="module")
def all_tables(study) -> list[Table]:
    return study_tables.tables_of(study)


def named(found: list[Table], name: str) -> Table:
    return next(table for table in found if table.name == name)


def rows_of(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.to_csv())))


def test_the_issue_asks_for_all_of_these(all_tables):
    names = {table.name for table in all_tables}
    for name in (
        "dice-fair", "metrics-18-fair", "differences-fair", "calibre-fair", "calibration-fair",
        "drops", "variants", "paper-fair", "failures", "learning-rates", "cost",
        "every-difference", "calibration-bins", "per-image", "runs", "test-reads", "problems",
        "sources",
    ):  # fmt: skip
        assert name in names
    assert len(names) == len(all_tables)


def test_every_csv_is_a_rectangle_of_the_studys_numbers(study, all_tables):
    for table in all_tables:
        header, *rows = csv.reader(io.StringIO(table.to_csv()))
        assert len(set(header)) == len(header), table.name
        assert rows and all(len(row) == len(header) for row in rows), table.name
    row = next(r for r in rows_of(named(all_tables, "dice-fair")) if r["method"] == "CM-UNet")
    number = study.cell("fair", "cmunet", 18).primary
    assert float(row["18 labels"]) == pytest.approx(number.value, rel=1e-9)
    assert float(row["18 labels high"]) == pytest.approx(number.high, rel=1e-9)
    assert row["18 labels key"] == number.key in study.provenance


def test_every_key_in_a_table_is_traced(study, all_tables):
    keys = [entry.value.key for table in all_tables for row in table.rows for entry in row
            if isinstance(entry.value, Number) and math.isfinite(entry.value.value)]  # fmt: skip
    assert len(keys) > 500 and set(keys) <= set(study.provenance)


def test_every_printed_table_is_sound_latex(all_tables):
    for table in all_tables:
        if table.in_latex:
            rows = latex_reader.check(table.to_latex())
            assert len(rows) == len(table.rows) + 1


def test_bold_is_the_best_where_the_intervals_allow_it_and_nothing_else(study, all_tables):
    text = named(all_tables, "dice-fair").to_latex()
    bold = [line.split(" & ")[0] for line in text.splitlines() if r"\textbf" in line]
    assert bold == ["CM-UNet"]
    line = next(line for line in text.splitlines() if line.startswith("CM-UNet"))
    expected = [study.leaders.get(("fair", n, "dice")) == "cmunet" for n in (18, 100, 500)]
    assert [r"\textbf" in cell for cell in line.split(" & ")[1:4]] == expected
    assert expected[0] and not expected[2]


def test_a_missing_number_is_empty_in_csv_and_a_dash_in_print():
    table = Table("t", "c", ("a", "b"), ((Entry(math.nan), Entry(Number("k", math.nan))),))
    assert rows_of(table) == [{"a": "", "b": "", "b low": "", "b high": "", "b key": "k"}]
    assert latex_reader.check(table.to_latex())[1] == ["--", "--"]


def test_names_from_files_are_escaped_in_print():
    table = Table("t", "50 % & more", ("a_b",), ((Entry("x_1 & \\input{y}"),),))
    rows = latex_reader.check(table.to_latex())
    assert rows[1] == [r"x\_1 \& \textbackslash{}input\{y\}"]


def test_percent_and_sign_are_printed_but_csv_keeps_fractions():
    number = Number("k", -0.125, -0.2, 0.05)
    table = Table("t", "c", ("a",), ((Entry(number, 1, is_signed=True, percent=True),),))
    assert r"\ensuremath{-}12.5 \%" in table.to_latex() and "+5.0" in table.to_latex()
    assert rows_of(table)[0]["a"] == "-0.125"


def test_the_papers_half_is_labelled_as_another_data_set(all_tables):
    table = named(all_tables, "paper-fair")
    assert "Another data set" in table.caption and "2507.17779" in table.caption
    assert rows_of(table)[-2]["CM-UNet"] == "0.627"
    for row in table.rows:
        numbers = [entry for entry in row if _is_known(entry)]
        assert numbers and all(entry.percent for entry in numbers)  # one unit in print
    cells = latex_reader.check(table.to_latex())[-2]  # 18 labels
    assert all(r"\%" in cell for cell in cells if re.match(r"\\shortstack|\d+\.\d", cell))


def _is_known(entry: Entry) -> bool:
    value = entry.value.value if isinstance(entry.value, Number) else entry.value
    return isinstance(value, float) and math.isfinite(value)


def test_a_small_p_is_never_printed_as_zero(study, all_tables):
    assert any(d.test.p_images_holm < 5e-5 for d in study.differences if d.metric == "dice")
    for name in ("differences-fair", "variants"):
        text = named(all_tables, name).to_latex()
        assert r"\textless{} 0.001" in text and "0.0000" not in text
    assert Entry(0.0, is_p=True) != Entry(0.0)
    table = Table("t", "c", ("p",), ((Entry(0.0123, is_p=True),), (Entry(math.nan, is_p=True),)))
    assert latex_reader.check(table.to_latex())[1:] == [["0.012"], ["--"]]
    assert rows_of(table)[0]["p"] == "0.0123"


# --------------------------------------------------------------------------------------- files


def test_files_are_written_and_traced(study, all_tables, tmp_path):
    paths = tables.write(study, all_tables, tmp_path / "tables")
    assert all(path.is_file() for path in paths)
    index = json.loads((tmp_path / "tables" / "provenance.json").read_text())
    places = index["numbers"]["fair/cmunet/18/dice"]
    files = [index["files"][place] for place in places]
    assert {f["name"] for f in files} == set(study.provenance["fair/cmunet/18/dice"])
    assert all(len(f["sha256"]) == 64 for f in files)
    document = (tmp_path / "tables" / "all.tex").read_text()
    for path in paths:
        assert path.suffix != ".tex" or path.stem == "all" or f"{{{path.name}}}" in document
    assert not list((tmp_path / "tables").glob(".tables-*"))


def test_tables_of_an_earlier_report_are_removed_and_other_files_kept(study, all_tables, tmp_path):
    tables.write(study, all_tables, tmp_path)
    (tmp_path / "mine.csv").write_text("mine")
    tables.write(study, all_tables[:1], tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "mine.csv", "all.tex", "provenance.json", "dice-fair.csv", "dice-fair.tex",
    }  # fmt: skip


def test_an_index_cannot_name_files_elsewhere(study, all_tables, tmp_path):
    (tmp_path / "precious").write_text("x")
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "provenance.json").write_text('{"tables": ["../precious", 3]}')
    tables.write(study, all_tables[:1], folder)
    assert (tmp_path / "precious").exists()


def test_a_full_disk_leaves_the_old_tables(study, all_tables, tmp_path, monkeypatch):
    tables.write(study, all_tables[:1], tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="No space left"):
        tables.write(study, all_tables, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_that_is_a_file_is_named(study, all_tables, tmp_path):
    (tmp_path / "tables").write_text("")
    with pytest.raises(UserError, match="tables cannot be written"):
        tables.write(study, all_tables, tmp_path / "tables")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_pdflatex_prints_all_tables(study, all_tables, tmp_path):
    tables.write(study, all_tables, tmp_path)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
