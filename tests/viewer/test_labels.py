"""What is written: the frame and the mask as they are, under a safe name, nothing by accident."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cmunet_jax.viewer import confined, labels, runs
from tests.viewer import fake_run
from tests.viewer.client import Viewer, viewing
from tests.viewer.fake_run import HEIGHT, WIDTH
from tfds_angio import build
from tfds_angio.errors import UserError
from tfds_angio.prepare import open_dataset

RUN = 1  # the case of five frames


def painted(seed: int = 0) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    row, column = np.random.default_rng(seed).integers(5, 60, 2)
    mask[row : row + 20, column : column + 9] = 1
    return mask


def post(viewer: Viewer, mask: np.ndarray, at: str = "0/0", query: str = "from=prediction-a"):
    return viewer.ask(f"/api/label/{at}?{query}", method="POST", body=mask.tobytes())


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_the_mask_that_was_painted_is_what_lies_there(viewer: Viewer, two_runs):
    answer, name = post(viewer, painted(), f"{RUN}/3"), "dicom-0123456789ab_0003"
    digest = hashlib.sha256((viewer.labels / f"masks/{name}.png").read_bytes()).hexdigest()
    assert answer.json == {"saved": name, "artery_pixels": 180, "label": digest}
    mask = fake_run.stored(viewer.labels / f"masks/{name}.png")
    assert mask.dtype == np.uint8 and np.array_equal(mask, painted() * 255)
    image = fake_run.stored(viewer.labels / f"imgs/{name}.png")
    frame = fake_run.stored(two_runs[0] / f"frames/{name}.png")
    assert np.array_equal(image, frame)
    assert files(viewer.labels) == [f"imgs/{name}.png", f"masks/{name}.png", labels.LOG]
    read = viewer.ask(f"/api/layer/{RUN}/3/label")
    assert read.body == painted().tobytes() and read.headers["x-shape"] == f"{HEIGHT},{WIDTH}"
    assert read.headers["x-label"] == digest
    frames = viewer.ask("/api/cases").json["cases"][RUN]["frames"]
    assert [f["saved"] for f in frames] == [False, False, False, True, False]


def test_the_log_says_what_a_mask_was_made_from_and_no_more(viewer: Viewer):
    post(viewer, painted(), f"{RUN}/2", "from=prediction-b")
    (line,) = (viewer.labels / labels.LOG).read_text().splitlines()
    content = (viewer.labels / "masks/dicom-0123456789ab_0002.png").read_bytes()
    assert json.loads(line) == {
        "name": "dicom-0123456789ab_0002",
        "mask_sha256": hashlib.sha256(content).hexdigest(),
        "source_sha256": hashlib.sha256(b"dicom-0123456789ab").hexdigest(),
        "frame": 2,
        "made_from": "prediction-b",
        "checkpoints": ["b" * 64],
    }


def test_a_label_is_replaced_only_when_that_is_said(viewer: Viewer):
    assert post(viewer, painted(0)).status == 200
    before = (viewer.labels / "masks/left-anterior.png").read_bytes()
    refused = post(viewer, painted(1))
    assert refused.status == 409 and "left-anterior" in refused.reason
    assert (viewer.labels / "masks/left-anterior.png").read_bytes() == before
    assert post(viewer, painted(1), query="from=label&replace=yes").status == 200
    assert viewer.ask("/api/layer/0/0/label").body == painted(1).tobytes()


def test_the_config_can_say_it_for_all(two_runs, tmp_path):
    with viewing(runs.of_runs(two_runs[0], None), tmp_path, overwrite=True) as viewer:
        for seed in (0, 1):
            assert post(viewer, painted(seed)).status == 200
        assert viewer.ask("/api/layer/0/0/label").body == painted(1).tobytes()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_label_that_has_changed_since_it_was_loaded_is_not_lost(two_runs, tmp_path, overwrite):
    """Whatever was answered to the question, and whether or not the config asks one."""
    say = "from=label&replace=yes&known="
    with viewing(runs.of_runs(two_runs[0], None), tmp_path, overwrite=overwrite) as viewer:
        first = post(viewer, painted(0), query=f"{say}none").json["label"]
        loaded = viewer.ask("/api/layer/0/0/label").headers["x-label"]
        second = post(viewer, painted(1), query=f"{say}{loaded}").json["label"]
        assert first == loaded != second
        for known, words in (
            (first, "changed"),
            ("none", "been saved elsewhere"),
            ("x", "changed"),
        ):
            refused = post(viewer, painted(2), query=say + known)
            assert refused.status == 409 and refused.json["label"] == second
            assert words in refused.reason and "since this page" in refused.reason
            assert viewer.ask("/api/layer/0/0/label").body == painted(1).tobytes()
        asked = post(viewer, painted(2), query=f"from=label&known={second}")
        assert asked.status == (200 if overwrite else 409)
        if not overwrite:
            assert asked.reason == "there is a label left-anterior already"
            assert asked.json["label"] == second
        (tmp_path / "masks/left-anterior.png").unlink()
        refused = post(viewer, painted(2), query=say + second)
        assert refused.status == 409 and refused.json["label"] == "none"
        assert "has been removed since" in refused.reason
        assert post(viewer, painted(2), query=f"{say}none").status == 200


def test_another_image_of_that_name_is_not_touched(viewer: Viewer):
    theirs = viewer.labels / "imgs/left-anterior.png"
    cv2.imwrite(str(theirs), np.full((40, 40), 7, np.uint8))
    before = theirs.read_bytes()
    assert post(viewer, painted()).status == 409
    assert theirs.read_bytes() == before and files(viewer.labels) == ["imgs/left-anterior.png"]
    (viewer.labels / "masks/left-anterior.png").write_bytes(before)
    shown = viewer.ask("/api/layer/0/0/label")
    assert shown.status == 422  # a mask of another image is not shown as that of this one


def test_a_label_in_another_format_is_in_the_way(viewer: Viewer):
    np.save(viewer.labels / "masks/left-anterior.npy", painted())
    refused = post(viewer, painted(), query="from=empty&replace=yes")
    assert refused.status == 422 and "masks/left-anterior.npy" in refused.reason
    assert files(viewer.labels) == ["masks/left-anterior.npy"]


@pytest.mark.parametrize(
    ("body", "query", "words"),
    [
        (bytes(HEIGHT * WIDTH - 1), "from=empty", "bytes, not"),
        (bytes(HEIGHT * WIDTH + 1), "from=empty", "bytes, not"),
        (bytes(50 * HEIGHT * WIDTH), "from=empty", "bytes, not"),
        (b"", "from=empty", "bytes, not"),
        (b"\2" * HEIGHT * WIDTH, "from=empty", "does not fit"),
        (b"\1" * HEIGHT * WIDTH, "from=empty", "without background"),
        (bytes(HEIGHT * WIDTH), "", "made from"),
        (bytes(HEIGHT * WIDTH), "from=../../x", "made from"),
    ],
)
def test_what_is_no_mask_is_refused(viewer: Viewer, body: bytes, query: str, words: str):
    answer = viewer.ask(f"/api/label/0/0?{query}", method="POST", body=body)
    assert answer.status in (400, 422) and words in answer.reason
    assert files(viewer.labels) == []


@pytest.mark.parametrize(
    "name", ["../evil", "a/b", ".hidden", "", "a\\b", "a\0b", "-rf", "x" * 200, "ä", "a b", "a:b"]
)
def test_a_name_that_is_not_plain_is_refused(tmp_path: Path, name: str):
    folder = tmp_path / "labels"
    labels.prepare(folder)
    frame = np.zeros((HEIGHT, WIDTH), np.uint8)
    with pytest.raises(labels.Refused, match="name"):
        labels.save(folder, name, frame, painted(), overwrite=True, facts={})
    assert files(tmp_path) == []


def test_a_link_in_the_folder_leads_nowhere(viewer: Viewer, tmp_path: Path):
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"mine")
    (viewer.labels / "masks/left-anterior.png").symlink_to(outside)
    (viewer.labels / labels.LOG).symlink_to(tmp_path / "log")
    assert post(viewer, painted()).status == 409
    # Replaced is the link, and not what it points to; the log is not followed either.
    post(viewer, painted(), query="from=empty&replace=yes")
    assert outside.read_bytes() == b"mine" and not (tmp_path / "log").exists()
    assert not (viewer.labels / "masks/left-anterior.png").is_symlink()


@pytest.mark.parametrize("part", ["imgs", "masks", "."])
def test_a_folder_that_becomes_a_link_is_not_written_through(
    viewer: Viewer, tmp_path: Path, part: str
):
    """The folders were whole at the start, so this is asked at each save."""
    place, outside = viewer.labels / part, tmp_path / "outside"
    place.rename(outside)
    place.symlink_to(outside)
    for query in ("from=empty", "from=empty&replace=yes"):
        refused = post(viewer, painted(), query=query)
        assert refused.status == 422 and "has become a link" in refused.reason
    assert files(outside) == [] and files(viewer.labels) == []


@pytest.mark.parametrize("part", ["imgs", "masks", "."])
@pytest.mark.parametrize("written", [0, 1])
def test_a_folder_that_becomes_a_link_while_a_label_is_saved_is_not_left(
    viewer: Viewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, written: int
):
    """All checks are past, and none or one of the two files is written, when it is exchanged."""
    place, moved, outside = viewer.labels / part, tmp_path / "moved", tmp_path / "outside"
    for folder in (outside, outside / "imgs", outside / "masks"):
        folder.mkdir()
    write = labels._write
    calls: list[str] = []

    def exchanging(to: confined.Folder, name: str, *args: Any, **more: Any) -> None:
        if len(calls) == written:
            place.rename(moved)
            place.symlink_to(outside)
        calls.append(name)
        write(to, name, *args, **more)

    monkeypatch.setattr(labels, "_write", exchanging)
    post(viewer, painted(), query="from=empty&replace=yes")
    assert len(calls) == 2 and files(outside) == []


def test_where_there_are_no_descriptors_labels_are_saved_too(
    two_runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(confined, "DESCRIPTORS", False)
    with viewing(runs.of_runs(two_runs[0], None), tmp_path / "labels") as viewer:
        assert post(viewer, painted()).status == 200
        assert post(viewer, painted()).status == 409
        assert viewer.ask("/api/layer/0/0/label").body == painted().tobytes()
        (viewer.labels / "masks").rename(tmp_path / "outside")
        (viewer.labels / "masks").symlink_to(tmp_path / "outside")
        refused = post(viewer, painted(1), query="from=empty&replace=yes")
        assert refused.status == 422 and refused.reason.startswith("masks has become a link")


def test_a_temporary_file_takes_nobodys_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A link that waits at its name is neither followed nor removed."""
    labels.prepare(tmp_path)
    monkeypatch.setattr(labels.secrets, "token_hex", lambda size: "known")
    outside, waiting = tmp_path / "outside", tmp_path / "masks/.a.png.known"
    waiting.symlink_to(outside)
    with confined.folder(tmp_path / "masks") as place, pytest.raises(labels.Refused):
        labels._write(place, "a.png", b"mask", replace=True)
    assert not outside.exists() and waiting.is_symlink()


def test_two_savers_do_not_take_each_others_place(tmp_path: Path):
    """The second one finds the name free, too, and is refused by the system itself."""
    labels.prepare(tmp_path)
    with confined.folder(tmp_path / "masks") as place:
        labels._write(place, "a.png", b"first", replace=False)
        with pytest.raises(labels.Exists):
            labels._write(place, "a.png", b"second", replace=False)
    assert (tmp_path / "masks/a.png").read_bytes() == b"first"
    assert files(tmp_path) == ["masks/a.png"]


def test_a_full_disk_leaves_nothing_behind(viewer: Viewer, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object, **places: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(labels.os, "link", full)
    refused = post(viewer, painted())
    assert refused.status == 422 and "No space left" in refused.reason
    assert files(viewer.labels) == ["imgs/left-anterior.png"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"config\.labels=.*file.* cannot be written"):
        labels.prepare(tmp_path / "file")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/imgs").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link"):
        labels.prepare(tmp_path / "labels")


def test_nothing_saved_is_nothing_read(tmp_path: Path):
    labels.prepare(tmp_path)
    assert not labels.saved(tmp_path, "a")
    with pytest.raises(confined.Unreadable, match="does not exist"):
        labels.read(tmp_path, "a", np.zeros((4, 4), np.uint8))


def test_the_labels_are_a_data_set(viewer: Viewer, tmp_path: Path):
    """The loop closes: what was painted is what a training would see."""
    for frame in range(5):
        assert post(viewer, painted(frame), f"{RUN}/{frame}").status == 200
    post(viewer, painted(9))
    data = tmp_path / "data"
    options = ["--data_dir", str(data), "--no-progress", "--workers", "1"]
    options += ["--option", "val_fraction=0", "--option", "test_fraction=0"]
    assert build.main(["angio_folder", "--source", str(viewer.labels), *options]) == 0
    dataset = open_dataset("angio_folder", data_dir=data)
    found = {e["id"]: e for e in dataset.source("train")}
    assert len(found) == 6
    for name, seed in (("left-anterior", 9), ("dicom-0123456789ab_0003", 3)):
        assert np.array_equal(np.squeeze(found[name]["mask"]) > 0, painted(seed) > 0)
    # Frames of one run are of one patient, so that no split tears them apart.
    assert len(set(dataset.groups("train"))) == 2
