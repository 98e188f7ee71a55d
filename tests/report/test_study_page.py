"""The page of a study: every number of it, each with its files; nothing where nothing is."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmunet_jax import report
from cmunet_jax.report import blocks, study_page
from cmunet_jax.report.study import Finding, Overlay, Problem, Study
from tests.report.test_html import NASTY, Page

SECTIONS = (
    "summary labels differences metrics images failures calibre calibration changes rates paper "
    "problems repeat cost card claim sources"
).split()


@pytest.fixture(scope="module")
def page(study_pages: dict[str, Path]) -> Page:
    return Page(study_pages["study"].read_text())


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Page]:
    """Writes the page of a study and reads it."""

    def write(study: Study, **options: Any) -> Page:
        return Page(report.write_study(tmp_path / "study.html", study, **options).read_text())

    return write


def emptied(study: Study, **kept: Any) -> Study:
    """The same study without anything but its sweeps and what is given."""
    names = (
        "cells differences drops variants searches costs failures papers test_reads problems "
        "findings caveats"
    ).split()
    return dataclasses.replace(study, **(dict.fromkeys(names, ()) | {"leaders": {}} | kept))


def named(page: Page) -> list[str]:
    return [attrs["aria-labelledby"] for attrs in page.all("section")]


def test_all_sections_are_there_and_in_the_contents(page: Page):
    assert named(page) == SECTIONS
    links = {attrs["href"] for attrs in page.all("a")}
    assert {f"#{name}" for name in SECTIONS} <= links


def test_every_mean_stands_with_its_interval_and_its_files(whole: Study, page: Page):
    hints = {attrs.get("title", "") for attrs in page.all("td")}
    for cell in whole.cells:
        for name, number in cell.metrics.items():
            if not math.isfinite(number.value):
                continue
            places = 2 if whole.metrics[name].unit == "px" else 3
            said = f"{number.value:.{places}f}"
            if number.has_interval:
                said += f" {number.low:.{places}f} to {number.high:.{places}f}"
            assert said in page.text
            first = whole.provenance[number.key][0]
            assert any(hint.startswith(f"{number.key}, from {first}") for hint in hints)


def test_every_comparison_stands_with_its_test(whole: Study, page: Page):
    for row in whole.differences:
        number = row.test.difference
        if row.metric != "dice" or not math.isfinite(number.value):
            continue
        said = f"{abs(number.value):.3f}"
        p, patients = (
            "< 0.001" if value < 0.001 else f"{value:.3f}"
            for value in (row.test.p_images_holm, row.test.p_patients_holm)
        )
        assert re.search(
            rf"{re.escape(said)} [+−\d].{{0,30}}{re.escape(p)} {re.escape(patients)}", page.text
        ), row


def test_both_tests_stand_wherever_a_verdict_does(page: Page):
    heads = [attrs["title"] for attrs in page.all("abbr") if "Wilcoxon" in attrs.get("title", "")]
    images = sum("over images" in text for text in heads)
    assert (
        images == sum("over patients" in text for text in heads) == 7
    )  # 2 for each sweep, changes
    # A row of changes: two p beside one another, after the difference and its interval.
    assert re.search(
        r"epochs .{0,200}▼? ?worse −0\.150 −[\d.]+ to −[\d.]+ < 0\.001 [<\d]", page.text
    )


def test_every_number_shown_leads_to_its_files(whole: Study, page: Page):
    shown = [number.key for cell in whole.cells for number in cell.metrics.values()]
    shown += [d.test.difference.key for d in whole.differences]
    shown += [d.drop.key for d in whole.drops] + [v.test.difference.key for v in whole.variants]
    for origin in blocks.origins(whole, shown):
        assert origin.numbers in page.text
        assert all(name in page.text for name in origin.files)
    sources = {attrs.get("title") for attrs in page.all("code")}
    assert {file.digest for file in whole.sources.values()} <= sources


def expand(text: str) -> list[str]:
    """What a shell makes of braces."""
    found = re.search(r"\{([^}]*)\}", text)
    if not found:
        return [text]
    parts = found[1].split(", ")
    return [e for p in parts for e in expand(text[: found.start()] + p + text[found.end() :])]


def test_folded_names_are_exactly_the_files(whole: Study):
    for key, files in whole.provenance.items():
        (origin,) = blocks.origins(whole, [key])
        assert sorted(name for text in origin.files for name in expand(text)) == sorted(files)
        assert expand(origin.numbers) == [key]


def test_nothing_comes_from_outside_and_the_page_can_be_mailed(study_pages: dict[str, Path]):
    text = study_pages["study"].read_text()
    assert len(text) < 5_000_000
    for forbidden in ("@import", "<link", "srcset", 'src="//', 'src="http', 'href="http'):
        assert forbidden not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}


def test_markup_is_sound(page: Page):
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))
    assert all(attrs["alt"] for attrs in page.all("img"))


def test_the_paper_is_marked_as_another_data_set(whole: Study, page: Page):
    assert whole.papers[0].warning in page.text
    assert "37.6" in page.text and "62.7" in page.text  # its 1 % row (method.md §6)
    assert "ours, 18 labels" in page.text and "ours, 500 labels" in page.text


def test_a_study_without_results_says_so(whole: Study, written):
    page = written(emptied(whole))
    assert named(page) == ["summary", "problems", "repeat", "cost", "sources"]
    assert "answer none of the questions" in page.text
    assert "None: every planned trial has a result" in page.text
    anchors = {a["href"] for a in page.all("a")} - {"#main"}
    assert anchors == {f"#{name}" for name in named(page)}


def test_one_label_count_gives_tables_and_no_curve(whole: Study, written):
    cells = tuple(c for c in whole.cells if c.sweep == "fair" and c.labels == 18)
    page = written(emptied(whole, sweeps=whole.sweeps[:1], cells=cells))
    assert "labels" not in named(page) and "metrics" in named(page)


def test_what_was_not_measured_is_a_dash_or_absent(whole: Study, written):
    cells = tuple(
        dataclasses.replace(c, calibre={}, calibration=None, labels=c.labels % 500)
        for c in whole.cells
        if c.sweep == "fair"
    )
    page = written(emptied(whole, sweeps=whole.sweeps[:1], cells=cells))
    assert {"calibre", "calibration", "differences", "paper"}.isdisjoint(named(page))
    assert "nan" not in re.findall(r"[\w.]+", page.text.lower())
    assert "all labels" in page.text.lower()


def test_everything_from_files_is_escaped(whole: Study, written):
    sweep = dataclasses.replace(whole.sweeps[0], title=NASTY, scale=NASTY, data={"name": NASTY})
    study = emptied(
        whole,
        title=NASTY,
        sweeps=(sweep,),
        cells=tuple(c for c in whole.cells if c.sweep == "fair"),
        findings=(Finding(NASTY, NASTY, NASTY, "clear", ()),),
        problems=(Problem("failed", NASTY, NASTY),),
        caveats=(NASTY,),
    )
    page = written(study, model_card=[(NASTY, f"- {NASTY}")], claim=[("1", NASTY, NASTY)])
    assert len(page.all("script")) == 1
    assert page.text.count(NASTY) > 12


def test_a_damaged_picture_is_named_and_the_page_goes_on(whole: Study, written, tmp_path: Path):
    picture = tmp_path / "overlay_worst.png"
    picture.write_bytes(b"\x89PNG\r\n")
    failure = dataclasses.replace(
        whole.failures[0],
        overlays=(Overlay("cmunet", 18, 0, 0, "worst", whole.failures[0].id, 0.1, picture),),
    )
    page = written(emptied(whole, failures=(failure,)))
    assert "overlay_worst.png is no complete picture and is not shown" in page.text
    assert failure.id in page.text and not page.all("img")


def test_failures_of_every_sweep_and_label_count_are_shown(whole: Study, page: Page):
    groups = {(f.sweep, f.labels) for f in whole.failures}
    assert len(groups) == 5
    for sweep, labels in groups:
        worst = [f for f in whole.failures if (f.sweep, f.labels) == (sweep, labels)][:3]
        for found in worst:
            assert any(found.mean.key in attrs.get("title", "") for attrs in page.all("span"))
    assert sum("failure" in attrs.get("class", "") for attrs in page.all("article")) == 15


def test_the_same_study_gives_the_same_page(whole: Study, tmp_path: Path):
    study = emptied(whole, sweeps=whole.sweeps[1:2], cells=whole.cells)
    assert study_page.render(tmp_path / "a", study) == study_page.render(tmp_path / "a", study)
