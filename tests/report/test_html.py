"""The page: true numbers, nothing from outside, sound markup, nothing half-written."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmunet_jax import report
from cmunet_jax.report import results
from tests.report import runs
from tests.report.conftest import NAMES, Case
from tfds_angio.errors import UserError

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(html.parser.HTMLParser):
    """Elements of a page; complains about tags that do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self) -> str:
        """What a reader sees, white space collapsed."""
        seen = (data for tag, data in self.texts if tag not in ("script", "style"))
        return re.sub(r"\s+", " ", " ".join(seen))


@pytest.fixture(scope="session")
def page(written: Case) -> Page:
    report.write(written.page, **written.arguments(facts={"seconds": 12.5, "draws": 1}))
    return Page(written.page.read_text())


def test_every_mean_and_interval_is_that_of_the_file(written: Case, page: Page):
    for key in ("finetune", "scratch"):
        path = written.root / key / "evaluation" / "summary.json"
        for row in json.loads(path.read_text())["metrics"].values():
            places = 2 if row["unit"] == "px" else 3
            mean, low, high = (f"{row[k]:.{places}f}" for k in ("mean", "low", "high"))
            assert f"{mean} {low} to {high}" in page.text
            if row["pooled"] is not None:
                assert f"{row['pooled']:.{places}f}" in page.text


def test_every_image_has_its_row(written: Case, page: Page):
    ours = results.read_evaluation(written.root / "finetune" / "evaluation")
    theirs = results.read_evaluation(written.root / "scratch" / "evaluation")
    for at, identity in enumerate(ours.ids):
        a, b = ours.metrics["dice"].values[at], theirs.metrics["dice"].values[at]
        sign = "+" if a > b else "−"
        row = f"{identity} {ours.patients[at]} {a:.3f} {b:.3f} {sign}{abs(a - b):.3f}"
        assert row in page.text


def test_the_curves_are_drawn_with_their_ends(page: Page):
    labels = " ".join(attrs["aria-label"] for attrs in page.all("svg"))
    scalars = runs.finetuning_scalars(0.8)
    assert f"from {scalars[10]['val/dice']:.3f} at step 10" in labels
    assert f"to {scalars[100]['val/dice']:.3f} at step 100" in labels
    titles = {"Total loss", "Reconstruction loss", "Contrastive loss", "Training loss"}
    assert titles <= {text.strip() for _, text in page.texts}


def test_the_overlay_says_how_the_other_arm_did(written: Case, page: Page):
    ours = results.read_evaluation(written.root / "finetune" / "evaluation")
    theirs = results.read_evaluation(written.root / "scratch" / "evaluation")
    at = int(np.argmax(ours.metrics["dice"].values))
    dice = ours.metrics["dice"].values[at], theirs.metrics["dice"].values[at]
    assert f"case {ours.ids[at]}, Dice {dice[0]:.3f}; from scratch has {dice[1]:.3f} on it" in (
        page.text
    )


def test_provenance_is_on_the_page(written: Case, page: Page):
    for expected in (
        "python -m cmunet_jax.main --config configs/finetune.py",
        "d" * 64,
        "e" * 64,
        "f" * 64,
        "1 x cpu (cpu)",
        "init_from",
        str(written.pretrain),
        "12.5",
    ):
        assert expected in page.text
    source = results.describe(written.root / "scratch" / "evaluation" / "cases.csv")
    assert source.digest in {attrs.get("title") for attrs in page.all("code")}
    assert "scratch/evaluation/cases.csv" in page.text
    assert "finetune/evaluation/overlay_worst.png" in page.text


def test_nothing_comes_from_outside(written: Case, page: Page):
    text = written.page.read_text()
    for forbidden in ("http://", "https://", "@import", "<link", "srcset", 'src="//'):
        assert forbidden not in text
    for tag, attrs in page.elements:
        for name in ("src", "href", "xlink:href", "action"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs[name][:80])
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert len(text) < 3_000_000


def test_markup_is_sound_and_accessible(page: Page):
    assert page.all("html")[0]["lang"] == "en"
    ids = Counter(attrs["id"] for _, attrs in page.elements if "id" in attrs)
    assert [name for name, count in ids.items() if count > 1] == []
    anchors = {a["href"][1:] for _, a in page.elements if a.get("href", "").startswith("#")}
    named = {attrs.get("aria-labelledby") for attrs in page.all("section")}
    assert (anchors | named) - set(ids) == set()
    assert all(attrs["alt"] for attrs in page.all("img"))
    assert len(page.all("img")) == 4 + 3
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.all("th"))
    assert all(a.get("role") == "img" and a["aria-label"] for a in page.all("svg"))
    assert len(page.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_have_contrast_in_light_and_dark(scheme: int):
    style = Path(report.__file__).with_name("templates") / "style.css"
    block = re.findall(r":root \{(.*?)\}", style.read_text(), flags=re.S)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    assert len(colours) == 14

    def contrast(name: str) -> float:
        pair = sorted((luminance(colours[name]), luminance(colours["paper"])))
        return (pair[1] + 0.05) / (pair[0] + 0.05)

    for name in ("ink", "muted", "accent"):
        assert contrast(name) >= 4.5, name  # WCAG 2.1 AA, text
    for index in range(8):
        assert contrast(f"series-{index}") >= 4.5, index  # names are written in them


NASTY = "<script>alert('x')</script> & \"q\" $a_b$ {{ 7*7 }}"


def test_everything_from_files_is_escaped(copied: Case, rewrite):
    for path in (copied.root / "finetune" / "config.json", copied.pretrain / "config.json"):
        content = json.loads(path.read_text())
        content["command"] = content["config"]["data"]["name"] = NASTY
        content["config"][NASTY] = content["versions"][NASTY] = NASTY
        path.write_text(json.dumps(content))
    quoted = NASTY.replace('"', '""')
    for key in ("finetune", "scratch"):
        folder = copied.root / key / "evaluation"
        rewrite(folder / "cases.csv", lambda text: text.replace("image003", f'"{quoted}"'))
    metrics = copied.pretrain / "metrics.jsonl"
    rewrite(metrics, lambda text: text + json.dumps({"step": 300, f"train/{NASTY}": 1.0}) + "\n")
    arms = copied.arguments()["arms"]
    arms = [report.Arm(f"{NASTY} {i}", a.train_dir, a.evaluation_dir) for i, a in enumerate(arms)]
    facts = {"note": NASTY, "remarks": [NASTY], "scale": NASTY}
    report.write(copied.page, **copied.arguments(title=NASTY, arms=arms, facts=facts))
    text = copied.page.read_text()
    assert "<script>alert" not in text
    assert "$ 49" not in text
    page = Page(text)
    assert len(page.all("script")) == 1
    assert page.text.count(NASTY) > 10


def test_one_arm_without_pretraining_compares_nothing(written: Case, tmp_path: Path):
    arms = written.arguments()["arms"][1:]
    path = report.write(
        tmp_path / "new" / "one.html", title="x", pretrain=None, arms=arms, facts={}
    )
    page = Page(path.read_text())
    assert "One run was evaluated and nothing compared" in page.text
    assert "Difference" not in page.text
    assert "What pre-training sees" not in page.text


def test_three_arms_are_compared_with_the_last(written: Case, tmp_path: Path):
    first, last = written.arguments()["arms"]
    middle = report.Arm("another, 18 labels", first.train_dir, first.evaluation_dir)
    arguments = written.arguments(arms=[first, middle, last])
    page = Page(report.write(tmp_path / "r.html", **arguments).read_text())
    for name in ("CM-UNet pre-training", "another"):
        assert f"On these images, {name} was better than from scratch ." in page.text
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_same_files_give_the_same_page(written: Case, tmp_path: Path):
    contents = set()
    for _ in range(2):
        path = report.write(written.root / "again.html", **written.arguments())
        contents.add(path.read_bytes())
        path.unlink()
    assert len(contents) == 1


def test_a_damaged_picture_is_named(copied: Case):
    picture = next((copied.pretrain / "pictures").glob("view_*.png"))
    picture.write_bytes(picture.read_bytes()[:60])
    with pytest.raises(UserError, match=f"{picture.name} is no complete picture"):
        report.write(copied.page, **copied.arguments())


def test_large_pictures_are_made_small(copied: Case):
    rng = np.random.default_rng(0)
    for path in (copied.root / "finetune" / "evaluation").glob("overlay_*.png"):
        Image.fromarray(rng.integers(0, 255, (700, 1600, 3), np.uint8)).save(path)
    report.write(copied.page, **copied.arguments())
    assert copied.page.stat().st_size < 3_000_000


def test_a_failure_leaves_the_old_page_and_nothing_else(copied: Case):
    copied.page.write_text("old")
    (copied.root / "scratch" / "metrics.jsonl").unlink()
    before = sorted(copied.root.iterdir())
    with pytest.raises(UserError, match="scratch/metrics.jsonl is missing"):
        report.write(copied.page, **copied.arguments())
    assert copied.page.read_text() == "old"
    assert sorted(copied.root.iterdir()) == before


def test_a_folder_that_cannot_be_written_is_named(written: Case, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="report.html cannot be written"):
        report.write(tmp_path / "file" / "report.html", **written.arguments())


def test_arms_need_names_of_their_own_and_there_must_be_one(written: Case):
    arms = written.arguments()["arms"]
    with pytest.raises(UserError, match="at least one arm"):
        report.write(written.page, **written.arguments(arms=[]))
    with pytest.raises(UserError, match="one name"):
        report.write(written.page, **written.arguments(arms=[arms[0], arms[0]]))


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PROBE = """<script>
const table = document.querySelector("table.sortable"), button = table.querySelector("th button");
button.click();
const first = table.tBodies[0].rows[0].cells[0].textContent.trim();
button.click();
const last = table.tBodies[0].rows[0].cells[0].textContent.trim();
const pictures = [...document.querySelectorAll("svg, img")];
const wide = pictures.every((e) => e.getBoundingClientRect().height > 20);
const over = document.documentElement.scrollWidth - innerWidth;
const result = { first, last, wide, over, width: innerWidth };
parent.postMessage(JSON.stringify(result), "*");
</script></body>"""
# A frame, because a window is never narrower than 500 pixels.
FRAME = """<!DOCTYPE html><body><script>
onmessage = (e) => { document.body.dataset.probe = e.data; };
</script><iframe src="probed.html" width="{width}" height="900"></iframe></body>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(page: Page, written: Case, tmp_path: Path, width: int):
    probed = tmp_path / "probed.html"
    probed.write_text(written.page.read_text().replace("</body>", PROBE))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    flags += " --disable-background-networking --disable-component-update --enable-logging=stderr"
    command = [str(BROWSER), *flags.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("{width}", str(width)))
    command += ["--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom"]
    command += [frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    probe = json.loads(Page(done.stdout).all("body")[0]["data-probe"])
    assert probe["width"] == width
    assert probe["first"] == NAMES[1]  # descending
    assert probe["last"] == NAMES[0]
    assert probe["wide"]
    assert probe["over"] <= 0
