"""The tables of docs/results.md are those of the study's files in docs/study."""

import csv

import pytest

from tests.conftest import ROOT

STUDY = ROOT / "docs/study"
CHANGES = {
    "epochs": "2: 19 updates instead of 300",
    "hard_dice": "1: Dice term without gradient",
    "select_on_test": "3: checkpoint chosen on the test images",
    "shared_mask": "7: one mask for the whole batch",
    "fresh_adapter": "8: a fresh random adapter at every step",
    "row_target": "9: target standardised per row",
}


def rows(name):
    with (STUDY / name).open(newline="") as file:
        return list(csv.DictReader(file))


def number(text, digits=3, *, sign=False, scale=1):
    value = round(float(text) * scale, digits)
    plus = "+" if sign and value > 0 else ""
    return f"{plus if value >= 0 else '−'}{abs(value):.{digits}f}"


def interval(row, column, digits=3, **how):
    low, high = (number(row[f"{column} {end}"], digits, **how) for end in ("low", "high"))
    return f"({low} to {high})"


def with_interval(row, column, **how):
    return f"{number(row[column], **how)} {interval(row, column, **how)}"


def percent(row, column):
    how = {"digits": 1, "scale": 100}
    return f"{number(row[column], **how)} % {interval(row, column, **how)}"


def fair():
    differences = {(r["method"], r["labels"]): r for r in rows("differences-fair.csv")}
    for row in rows("dice-fair.csv"):
        cells = [with_interval(row, f"{n} labels") for n in (18, 500)]
        cells.append(percent(row, "relative drop"))
        for labels in ("18 labels", "500 labels"):
            found = differences.get((row["method"], labels))
            cells.append("" if found is None else with_interval(found, "difference", sign=True))
        yield row["method"].replace("Scratch", "scratch"), cells


def paper():
    for row in rows("dice-paper.csv"):
        cells = [with_interval(row, f"{n} labels") for n in (18, 500)]
        yield row["method"].replace("Scratch", "scratch"), [*cells, percent(row, "relative drop")]


def variants():
    found = {(r["method"], r["change"]): r for r in rows("variants.csv")}
    for change, words in CHANGES.items():
        cells = []
        for method in ("Scratch", "CM-UNet"):
            row = found.get((method, change))
            cells += ["–", "–"] if row is None else [
                number(row["changed"]), with_interval(row, "difference", sign=True)
            ]  # fmt: skip
        yield words, cells


@pytest.mark.parametrize("table", [fair, paper, variants], ids=lambda table: table.__name__)
def test_tables_are_those_of_the_files(table):
    lines = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in (ROOT / "docs/results.md").read_text().splitlines()
        if line.startswith("|")
    ]
    for name, cells in table():
        assert [name, *cells] in lines, name


def test_no_file_of_the_study_names_a_machine():
    for path in STUDY.iterdir():
        assert "/tmp" not in path.read_text() and path.stat().st_size < 1_000_000
