"""A run that is damaged or hostile: nothing outside it is read, and the rest is shown."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cmunet_jax.predict import record
from cmunet_jax.viewer import confined, layers, runs
from tests.viewer import fake_run
from tests.viewer.client import Viewer, viewing
from tests.viewer.fake_run import HEIGHT, WIDTH
from tfds_angio.errors import UserError


@pytest.fixture
def run(two_runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the first run, to be damaged."""
    return shutil.copytree(two_runs[0], tmp_path / "run")


def changed(run: Path, change: Callable[[Any], None]) -> runs.Run:
    """The run after `change` of its document."""
    document = fake_run.read(run)
    change(document)
    fake_run.write(run, document)
    return runs.read(run, "input", "a")


def test_what_predict_writes_is_what_is_shown(standing: Viewer):
    content = standing.ask("/api/cases").json
    assert [case["id"] for case in content["cases"]] == ["left-anterior", "dicom-0123456789ab"]
    assert content["checkpoints"] == {
        "a": f"first: step 400, {'a' * 8}",
        "b": f"second: step 400, {'b' * 8}",
    }
    assert content["failed"] == [{"input": "notes.txt", "reason": "no image"}]
    frames = content["cases"][1]["frames"]
    assert [f["index"] for f in frames] == [0, 1, 2, 3, 4]
    kinds = ["frame", "mask-a", "probability-a", "mask-b", "probability-b"]
    assert all(f["layers"] == kinds and f["qca"] == ["a", "b"] for f in frames)
    assert "/" not in content["labels"]


@pytest.mark.parametrize(("case", "suffix"), [(0, "png"), (1, "npz")])
def test_layers_are_the_pixels_of_the_files(standing: Viewer, two_runs, case: int, suffix: str):
    name = "left-anterior" if case == 0 else "dicom-0123456789ab_0000"

    def shown(kind: str) -> np.ndarray:
        body = standing.ask(f"/api/layer/{case}/0/{kind}").body
        return np.frombuffer(body, np.uint8).reshape(HEIGHT, WIDTH)

    for root, which, width in ((two_runs[0], "a", 8.0), (two_runs[1], "b", 6.0)):
        assert np.array_equal(shown(f"mask-{which}"), fake_run.draw(0, width))
        path = root / f"probabilities/{name}.{suffix}"
        if suffix == "png":
            exact = fake_run.stored(path) / 65535
        else:
            exact = np.load(path)["probability"]
        assert np.abs(shown(f"probability-{which}") / 255 - exact).max() <= 0.5 / 255 + 1e-6
    frame = fake_run.stored(two_runs[0] / f"frames/{name}.png")
    assert np.array_equal(shown("frame"), frame)


def test_diameters_are_those_of_the_file(standing: Viewer):
    found = standing.ask("/api/qca/1/2/b").json
    written = fake_run.analysis(4, 6.0)
    for segment, given in zip(found["segments"], written["segments"], strict=True):
        assert segment["diameter_px"] == given["diameter_px"]
        assert segment["points"] == given["points"]
        exact = np.asarray(given["diameter_px"]) * fake_run.SPACING
        assert segment["diameter_mm"] == pytest.approx(exact)


ELSEWHERE = [
    "/etc/passwd",
    "../outside.png",
    "frames/../../outside.png",
    "frames/./left-anterior.png",
    "frames//left-anterior.png",
    "frames\\left-anterior.png",
    "C:outside.png",
    "frames/link.png",
    "linked/outside.png",
    "frames",
    "frames/absent.png",
    "frames/fifo.png",
    "frames/loop.png",
    "frames/\0.png",
    "",
    "x" * 600,
    7,
    ["frames/left-anterior.png"],
]


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: repr(path)[:24])
def test_no_file_outside_the_run_is_read(run: Path, tmp_path: Path, path: Any):
    outside = tmp_path / "outside.png"
    cv2.imwrite(str(outside), np.full((HEIGHT, WIDTH), 200, np.uint8))
    (run / "frames/link.png").symlink_to(outside)
    (run / "linked").symlink_to(tmp_path)
    (run / "frames/loop.png").symlink_to(run / "frames/loop.png")
    os.mkfifo(run / "frames/fifo.png")
    with pytest.raises(confined.Unreadable):
        confined.read(run, path, limit=1000)
    good = fake_run.read(run)
    for kind in ("frame", "mask", "probability", "qca"):
        row = {kind: path}

        def hostile(document: Any, row: Any = row) -> None:
            document["cases"][0]["frames"][0] |= row

        found = changed(run, hostile)
        frames = found.cases[0].frames
        if kind == "qca":
            with pytest.raises(confined.Unreadable):
                frames[0].qca["a"]()
        else:
            assert found.cases[0].problem
            assert not frames or not any(k.startswith(kind) for k in frames[0].layers)
        assert found.cases[1].frames[0].layers["mask-a"]().any()  # the rest is shown
        fake_run.write(run, good)


def test_a_link_made_after_the_start_is_not_followed(run: Path, tmp_path: Path):
    outside = tmp_path / "outside.png"
    cv2.imwrite(str(outside), np.full((HEIGHT, WIDTH), 200, np.uint8))
    with viewing(runs.of_runs(run, None), tmp_path / "labels") as viewer:
        assert viewer.ask("/api/layer/0/0/frame").status == 200
        (run / "frames/left-anterior.png").unlink()
        (run / "frames/left-anterior.png").symlink_to(outside)
        answer = viewer.ask("/api/layer/0/0/frame")
        assert answer.status == 422 and "out of the folder" in answer.reason
        body = bytes(HEIGHT * WIDTH)
        saved = viewer.ask("/api/label/0/0?from=empty", method="POST", body=body)
        assert saved.status == 422 and not list((tmp_path / "labels").rglob("*.png"))


def test_links_inside_the_run_are_its_own(run: Path):
    (run / "frames/left-anterior.png").rename(run / "frames/real.png")
    (run / "frames/left-anterior.png").symlink_to("real.png")
    case = runs.read(run, "input", "a").cases[0]
    assert not case.problem and case.frames[0].layers["frame"]().any()
    (run / "frames").rename(run / "pictures")
    (run / "frames").symlink_to(run / "pictures")
    assert case.frames[0].layers["frame"]().any()


def test_a_missing_file_is_named_with_its_case(run: Path):
    (run / "masks/dicom-0123456789ab_0002.png").unlink()
    case = runs.read(run, "input", "a").cases[1]
    assert case.problem.startswith("1 of 5 frames: mask 'masks/dicom-0123456789ab_0002.png' does")
    assert "mask-a" not in case.frames[2].layers and "frame" in case.frames[2].layers
    assert [bool(frame.problem) for frame in case.frames] == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no PNG"),
        (b"hello", "no PNG"),
        ("cut", "truncated"),
        (np.zeros((HEIGHT, WIDTH + 1), np.uint8), "as its case"),
        (np.zeros((HEIGHT, WIDTH), np.uint16), "not of 8 bits"),
        ("svg", "no PNG"),
    ],
)
def test_a_damaged_picture_is_named(run: Path, content: Any, words: str):
    path = run / "frames/left-anterior.png"
    if isinstance(content, np.ndarray):
        cv2.imwrite(str(path), content)
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        path.write_bytes(b"<svg onload='alert(1)'/>" if content == "svg" else content)
    layer = runs.read(run, "input", "a").cases[0].frames[0].layers["frame"]
    with pytest.raises(confined.Unreadable, match=words):
        layer()


def test_a_bomb_is_refused_before_it_is_unpacked():
    shape = (HEIGHT, WIDTH)
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("probability.npy", bytes(10_000_000))
        with pytest.raises(confined.Unreadable, match="larger than its frame"):
            layers.probability(buffer.getvalue(), shape)
    bomb = cv2.imencode(".png", np.zeros((6000, 6000), np.uint8))[1].tobytes()
    with pytest.raises(confined.Unreadable, match="6000 × 6000"):
        layers.frame(bomb, shape)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.01, 1.01])
def test_probabilities_are_between_0_and_1(value: float):
    array = np.full((4, 4), 0.5, np.float32)
    array[1, 2] = value
    buffer = io.BytesIO()
    np.savez(buffer, probability=array)
    with pytest.raises(confined.Unreadable, match="between 0 and 1"):
        layers.probability(buffer.getvalue(), (4, 4))


def test_objects_are_not_unpickled():
    buffer = io.BytesIO()
    np.savez(buffer, probability=np.array([{"a": 1}], object))
    with pytest.raises(confined.Unreadable, match="no NPZ that can be read"):
        layers.probability(buffer.getvalue(), (1, 1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 100_000, "recursion"),
        ("[]", "not of format 1"),
        ('{"format": 2, "cases": []}', "not of format 1"),
        ('{"format": 1}', "lacks"),
        ('{"format": 1, "cases": {}%s}', "no list of cases"),
        ("\ud800", "cannot be read"),
    ],
)
def test_what_is_no_run_is_one_line(tmp_path: Path, text: str | None, words: str):
    if text is not None:
        more = ', "checkpoints": [], "options": {}, "versions": {}, "failed": []'
        content = text.replace("%s", more).encode("utf-8", "surrogatepass")
        (tmp_path / record.FILE).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        runs.read(tmp_path, "compare", "b")
    assert "config.compare" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"height": -1},
        {"height": 10**9},
        {"width": "128"},
        {"width": True},
        {"height": 16384, "width": 16384},
        {"frames": None},
        {"frames": [None]},
        {"frames": [{"index": "x", "frame": "frames/a.png"}]},
        {"frames": [{"index": -3, "frame": "frames/a.png"}]},
        {"frames": [{"index": 0, "frame": "frames/..."}]},
        {"frames": [{"index": 0, "frame": "frames/<script>.png"}]},
        {"id": None, "frames": 7},
    ],
)
def test_a_case_that_is_not_understood_does_not_hide_the_others(run: Path, change: Any):
    found = changed(run, lambda document: document["cases"][0].update(change))
    broken, whole = found.cases
    assert broken.problem and not broken.frames
    assert len(whole.frames) == 5 and not whole.problem


@pytest.mark.parametrize("notes", [5, True, "note", {"a": 1}, None, [5, "whole", "\ud800", None]])
def test_notes_may_be_anything(run: Path, notes: Any):
    found = changed(run, lambda document: document["cases"][0].update(notes=notes))
    assert found.cases[0].notes == (("whole", "?") if isinstance(notes, list) else ())
    assert found.cases[0].frames and len(found.cases) == 2


def test_half_a_character_does_not_take_the_page_away(run: Path, tmp_path: Path):
    """JSON may hold one that no UTF-8 can."""
    document = fake_run.read(run)
    document["cases"][0].update(id="left \ud800", notes=["\udfff"])
    document["cases"][1]["frames"][0]["mask"] = "masks/\ud800.png"
    document["cases"].append({"id": "\ud800", "height": "\ud800", "width": 1})
    document["checkpoints"][0]["digest"] = "\ud800"
    document["failed"] = [{"input": "a\ud800b", "reason": "\ud800"}]
    (run / record.FILE).write_text(json.dumps(document))
    path = run / "qca/left-anterior.json"
    content = json.loads(path.read_text())
    content["segments"][0]["why_no_stenosis"] = "\ud800"
    path.write_text(json.dumps(content))
    with viewing(runs.of_runs(run, None), tmp_path / "labels") as viewer:
        answer = viewer.ask("/api/cases")
        assert answer.status == 200
        assert [case["id"] for case in answer.json["cases"]] == [
            "left ?",
            "dicom-0123456789ab",
            "?",
        ]
        assert answer.json["failed"] == [{"input": "a?b", "reason": "?"}]
        analysis = viewer.ask("/api/qca/0/0/a")
        assert analysis.status == 200 and analysis.json["segments"][0]["why_no_stenosis"] == "?"


@pytest.mark.parametrize("row", [None, 7, [], {}, "case"])
def test_a_case_may_be_anything(run: Path, row: Any):
    found = changed(run, lambda document: document["cases"].append(row))
    assert found.cases[-1].problem and found.cases[-1].id == "case 3"


def test_no_two_labels_have_one_name(run: Path):
    found = changed(run, lambda document: document["cases"].append(document["cases"][0]))
    assert not found.cases[2].frames and "another case" in found.cases[2].problem


@pytest.mark.parametrize(
    "change",
    [
        lambda qca: qca.update(format=2),
        lambda qca: qca.update(segments=7),
        lambda qca: qca.update(segments=[{}] * 3000),
        lambda qca: qca["segments"][0]["diameter_px"].pop(),
        lambda qca: qca["segments"][0]["diameter_px"].__setitem__(0, "wide"),
        lambda qca: qca["segments"][0]["diameter_px"].__setitem__(0, float("nan")),
        lambda qca: qca["segments"][0]["diameter_px"].__setitem__(0, 10**400),
        lambda qca: qca["segments"][0]["points"].__setitem__(0, [1]),
        lambda qca: qca["segments"][0].update(minimal_at=60),
        lambda qca: qca["segments"][0].pop("length_px"),
    ],
)
def test_an_analysis_that_cannot_be_drawn_is_named(run: Path, change: Callable[[Any], None]):
    path = run / "qca/left-anterior.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    read = runs.read(run, "input", "a").cases[0].frames[0].qca["a"]
    with pytest.raises(confined.Unreadable):
        read()


def test_an_analysis_without_millimetres_stays_in_pixels(run: Path):
    path = run / "qca/left-anterior.json"
    content = json.loads(path.read_text()) | {"spacing_mm": None, "length_mm": None}
    content["segments"][0]["reference_px"] = []
    path.write_text(json.dumps(content))
    found = runs.read(run, "input", "a").cases[0].frames[0].qca["a"]()
    assert "diameter_mm" not in found["segments"][0]
    assert set(found["segments"][0]["reference_px"]) == {None}


def test_cases_are_compared_by_what_they_are_made_of(two_runs, tmp_path: Path):
    """Not by their names: another image may have the same."""
    second = fake_run.build(tmp_path / "second", width=6.0)

    def other(document: Any) -> None:
        document["cases"][0]["sha256"] = "0" * 64
        del document["cases"][1]["frames"][1]

    changed(second, other)
    catalogue = runs.of_runs(two_runs[0], second)
    assert "mask-b" not in catalogue.cases[0].frames[0].layers
    assert ["mask-b" in frame.layers for frame in catalogue.cases[1].frames] == [
        True,
        False,
        True,
        True,
        True,
    ]
    assert catalogue.notes == (
        "1 of 2 cases are not in the second run.",
        "1 cases are only in the second run, and are not shown.",
    )


def test_a_picture_that_is_withheld_leaves_the_mask(run: Path, tmp_path: Path):
    found = changed(run, lambda d: d["cases"][0]["frames"][0].update(frame=None))
    frame = found.cases[0].frames[0]
    assert frame.name == "left-anterior" and "withheld" in found.cases[0].problem
    assert frame.layers["mask-a"]().any() and "frame" not in frame.layers
    with viewing(runs.of_runs(run, None), tmp_path / "labels") as viewer:
        body = bytes(HEIGHT * WIDTH)
        saved = viewer.ask("/api/label/0/0?from=empty", method="POST", body=body)
        assert saved.status == 422 and "withheld" in saved.reason
        assert viewer.ask("/api/layer/0/0/label").status == 404
