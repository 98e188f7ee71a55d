"""The pages in a real browser: seen, sorted, printed, read on a phone and read aloud."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cmunet_jax import report
from tests.report import browser
from tests.report.browser import DESK, PHONE, Visit
from tests.report.conftest import Case

KINDS = ("run", "study")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.browser() as running:
        yield running


@pytest.fixture(scope="module")
def pages(written: Case, study_pages: dict[str, Path]) -> dict[str, Path]:
    return {"run": report.write(written.root / "seen.html", **written.arguments())} | study_pages


@pytest.fixture
def opened(
    chromium: Any, pages: dict[str, Path], request: pytest.FixtureRequest
) -> Iterator[Visit]:
    """The page of `kind` with `width`, `scheme`, `script`, all that is folded open."""
    kind, options = request.param
    with browser.visit(chromium, pages[kind], **options) as found:
        if options.get("script", True):
            browser.unfold(found.page)
        yield found


def on(*options: dict[str, Any]) -> Any:
    """Parametrises a test over both pages and the given devices."""
    cases = [(kind, chosen) for kind in KINDS for chosen in options or ({},)]
    names = ["-".join([kind, *map(str, chosen.values())]) for kind, chosen in cases]
    return pytest.mark.parametrize("opened", cases, indirect=True, ids=names)


@on({"scheme": "light"}, {"width": PHONE, "scheme": "dark"})
def test_nothing_is_said_and_nothing_asked_for(opened: Visit):
    page = opened.page
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_load_state("networkidle")
    assert opened.said == []
    assert opened.asked == []


# A drawing in a region that scrolls sideways may reach out of the screen, the region may not.
PICTURES = """
() => [...document.querySelectorAll("svg, img")].map((node) => {
  node.scrollIntoView({ block: "center" });
  const box = node.getBoundingClientRect();
  const frame = node.closest(".scroll")?.getBoundingClientRect() ?? box;
  return {
    name: node.getAttribute("aria-label") ?? node.alt, width: box.width, height: box.height,
    left: Math.max(box.left, frame.left), right: Math.min(box.right, frame.right),
    seen: box.bottom > 0 && box.top < innerHeight, loaded: node.naturalWidth ?? 1,
  };
})
"""


@on({"width": DESK}, {"width": PHONE})
def test_every_figure_is_seen(opened: Visit):
    width = opened.page.viewport_size["width"]
    found = opened.page.evaluate(PICTURES)
    assert len(found) >= 10
    for picture in found:
        assert picture["width"] > 100 and picture["height"] > 20, picture
        assert picture["left"] >= 0 and picture["right"] <= width + 0.5, picture
        assert picture["seen"] and picture["loaded"] > 0, picture


# Words of a drawing: outside of it, over one another, too small, or too pale to be read.
WORDS = """
() => {
  const found = { outside: [], crossed: [], small: [], pale: [] };
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((c) => c / 255)
      .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    const words = [...svg.querySelectorAll("text")].map((node) => {
      const box = node.getBoundingClientRect(), style = getComputedStyle(node);
      const text = node.textContent.trim(), turned = box.height > box.width && text.length > 2;
      if (box.left < frame.left - 3 || box.right > frame.right + 3 ||
          box.top < frame.top - 3 || box.bottom > frame.bottom + 3) found.outside.push(text);
      if ((turned ? box.width : box.height) < 9) found.small.push(text);
      const ink = light(style.fill), pair = [ink, paper].sort((a, b) => b - a);
      if ((pair[0] + 0.05) / (pair[1] + 0.05) < 4.5) found.pale.push([text, style.fill]);
      return { text, box };
    });
    words.forEach((a, at) => words.slice(at + 1).forEach((b) => {
      const x = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
      const y = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
      // Boxes of text hold the room for accents: a third of a line may be shared.
      if (x > 1 && y > 0.34 * Math.min(a.box.height, b.box.height))
        found.crossed.push([a.text, b.text, svg.getAttribute("aria-label").slice(0, 60)]);
    }));
  }
  return found;
}
"""


@on({"width": DESK, "scheme": "light"}, {"width": PHONE, "scheme": "dark"})
def test_words_in_figures_can_be_read(opened: Visit):
    found = opened.page.evaluate(WORDS)
    assert found == {"outside": [], "crossed": [], "small": [], "pale": []}


@on({"width": PHONE}, {"width": 320}, {"width": 768}, {"width": DESK})
def test_the_page_does_not_scroll_sideways(opened: Visit):
    assert opened.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert opened.page.evaluate("innerWidth") == opened.page.viewport_size["width"]


@on({"width": DESK})
def test_no_bar_stands_below_what_fits(opened: Visit):
    rest = "(node) => node.scrollWidth - node.clientWidth"
    found = opened.page.evaluate(
        f"[...document.querySelectorAll('.scroll')].map({rest}).filter((rest) => rest > 0)"
    )
    assert not [rest for rest in found if rest < 8]


# Each column pressed twice: what stands in it then, and how many rows there are.
PRESSED = """
(table) => [...table.tHead.rows[0].cells].map((head, at) => {
  const button = head.querySelector("button"), rows = () => [...table.tBodies[0].rows];
  const value = (cell) => cell.dataset.sort ?? cell.textContent.trim();
  const column = () => rows().map((row) => value(row.cells[at]));
  button.click();
  const down = column();
  button.click();
  return { down, up: column(), sorts: rows().map((r) => r.textContent).sort() };
})
"""


def sort_keys(values: list[str]) -> list[Any]:
    """What a reader expects to be sorted by: numbers by value, words in natural order."""

    def natural(text: str) -> list[Any]:
        # Unicode's collation, which browsers follow, has the underscore before other marks.
        parts = re.split(r"(\d+)", text.lower().replace("_", " "))
        return [int(part) if part.isdigit() else part for part in parts]

    try:
        return [float(value) for value in values]
    except ValueError:
        return [natural(value) for value in values]


def is_sorted(values: list[str], *, down: bool) -> bool:
    """Whether the values are in order and those without a number come last."""
    filled = [value for value in values if value not in ("nan", "–", "")]
    keys = sort_keys(filled)
    return values[: len(filled)] == filled and keys == sorted(keys, reverse=down)


@on()
def test_every_column_of_every_table_sorts(opened: Visit):
    tables = opened.page.locator("table.sortable")
    assert tables.count() >= 3
    for table in tables.all():
        before = sorted(table.locator("tbody tr").all_text_contents())
        for column in table.evaluate(PRESSED):
            assert is_sorted(column["down"], down=True), column["down"]
            assert is_sorted(column["up"], down=False), column["up"]
            assert len(column["sorts"]) == len(before)
        assert sorted(table.locator("tbody tr").all_text_contents()) == before


@on({"width": DESK}, {"width": PHONE})
def test_tables_are_sorted_by_mouse_and_by_keyboard(opened: Visit):
    for table in opened.page.locator("table.sortable").all()[:4]:
        head = table.locator("thead th").nth(1)
        button = head.locator("button")
        button.click()
        assert head.get_attribute("aria-sort") == "descending"
        for key, order in (("Enter", "ascending"), ("Space", "descending")):
            button.press(key)
            assert head.get_attribute("aria-sort") == order
        table.locator("thead th").first.locator("button").press("Enter")
        assert table.locator("thead th[aria-sort]").count() == 1
        assert button.evaluate("(node) => { node.focus(); return node.matches(':focus'); }")


@on({"scheme": "light"}, {"width": PHONE, "scheme": "dark"})
def test_nothing_stands_in_the_way_of_a_screen_reader(opened: Visit):
    assert browser.accessibility(opened.page) == []


@on({"script": False})
def test_the_page_reads_the_same_without_its_script(opened: Visit):
    assert opened.page.locator("main section").count() >= 5
    assert opened.page.locator("table tbody tr").count() >= 5
    assert opened.page.locator("svg").count() >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_it_prints(chromium: Any, pages: dict[str, Path], kind: str):
    with browser.visit(chromium, pages[kind]) as opened:
        folded = opened.page.locator("details:not([open])").count()
        content = opened.page.pdf(format="A4", prefer_css_page_size=True)
        sheets = len(re.findall(rb"/Type\s*/Page\b(?!s)", content))
        assert content.startswith(b"%PDF") and 3 <= sheets <= 36
        assert opened.page.locator("details:not([open])").count() == folded


@on()
def test_print_is_dark_on_white_and_no_wider_than_the_sheet(opened: Visit):
    page = opened.page
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 700, "height": 990})  # A4 between its margins
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    wide = page.evaluate(
        "[...document.querySelectorAll('main *')].filter((n) => n.getBoundingClientRect().right"
        " > innerWidth + 1 && !n.closest('svg')).map((n) => n.outerHTML.slice(0, 80))"
    )
    assert wide == []


# What a forest table says must be on the screen, without a scroll to the side.
OFF_SCREEN = """
() => [...document.querySelectorAll("table.forests tr :is(th, td)")].filter((cell) => {
  const box = cell.getBoundingClientRect(), room = cell.closest(".scroll").getBoundingClientRect();
  return box.width > 0 && (box.right > room.right + 1 || box.left < room.left - 1);
}).map((cell) => cell.textContent.trim())
"""


@on({"width": PHONE}, {"width": 320}, {"width": DESK})
def test_no_difference_is_off_the_screen(opened: Visit):
    assert opened.page.evaluate(OFF_SCREEN) == []
    cells = opened.page.locator("table.forests tbody td.n")
    if opened.page.viewport_size["width"] < 600 and cells.count():
        names = cells.evaluate_all("(all) => all.map((cell) => cell.dataset.name ?? '')")
        assert {"labels", "p, images", "p, patients"} <= set(names)


@on()
def test_printed_tables_repeat_their_heads_and_marks_stay_with_names(opened: Visit):
    page = opened.page
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 990})
    heads = page.locator("table thead").evaluate_all(
        "(all) => all.map((n) => getComputedStyle(n).display)"
    )
    assert set(heads) == {"table-header-group"}
    # A head that holds the box of a button is not repeated by Chromium.
    assert page.locator("thead button").evaluate_all(
        "(all) => all.every((n) => getComputedStyle(n).display === 'contents')"
    )
    apart = page.evaluate("""
      () => [...document.querySelectorAll(".method")].filter((node) => {
        const range = document.createRange();
        range.selectNodeContents(node.lastChild);
        const name = range.getClientRects()[0];
        const mark = node.firstElementChild.getBoundingClientRect();
        return name && mark.width && (mark.bottom < name.top || mark.top > name.bottom);
      }).map((node) => node.textContent)
    """)
    assert apart == []


@on()
def test_bold_means_the_same_in_every_table(opened: Visit):
    bold = opened.page.evaluate("""
      () => [...document.querySelectorAll("td .mean")]
        .filter((node) => +getComputedStyle(node).fontWeight > 500)
        .map((node) => node.previousElementSibling?.className ?? "plain")
    """)
    assert set(bold) <= {"mark best"}


@on()
def test_folded_parts_open_for_print_and_close_again(opened: Visit):
    page = opened.page
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = false")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("main details:not([open], .long)").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("main details[open]").count() == 0


FOREST = """
() => [...document.querySelectorAll("table.forests tbody tr")].map((row) => {
  const plot = row.querySelector(".forest"), cell = plot.getBoundingClientRect();
  const place = (node) => (node.x - cell.x) / cell.width;
  const dot = plot.querySelector(".dot").getBoundingClientRect();
  const bar = plot.querySelector(".ci").getBoundingClientRect();
  const zero = parseFloat(plot.style.getPropertyValue("--zero")) / 100;
  const text = row.querySelector("td.n .interval").textContent.replaceAll("\u2212", "-");
  const [low, high] = text.split(" to ").map(Number);
  return {
    value: Number(plot.dataset.sort), low, high, zero,
    table: row.closest(".scroll").getAttribute("aria-label"),
    dot: place({ x: dot.x + dot.width / 2 }), left: place(bar), right: place({ x: bar.right }),
  };
})
"""


@on({"width": DESK}, {"width": PHONE})
def test_forest_plots_are_drawn_to_scale(opened: Visit):
    rows = opened.page.evaluate(FOREST)
    if opened.page.locator("#differences").count() == 0:
        assert rows == []  # the page of a run has none
        return
    assert len(rows) >= 10
    for table in {row["table"] for row in rows}:
        group = [row for row in rows if row["table"] == table]
        zero = group[0]["zero"]
        widest = max(group, key=lambda row: abs(row["value"]))
        scale = (widest["dot"] - zero) / widest["value"]
        for row in group:
            for end, place in (("value", "dot"), ("low", "left"), ("high", "right")):
                expected = zero + scale * row[end]
                assert abs(row[place] - expected) < 0.02 + 0.0006 * abs(scale), row
            assert 0 <= row["left"] <= row["dot"] + 0.02 and row["right"] <= 1.001
