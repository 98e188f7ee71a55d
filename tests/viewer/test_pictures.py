"""Images that nobody has segmented: a folder, or the list that a selection wrote."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cmunet_jax.selection import dicoms
from cmunet_jax.viewer import confined, pictures
from cmunet_jax.viewer.confined import Unreadable
from tests.imaging import xa
from tests.viewer import fake_run
from tests.viewer.client import viewing
from tfds_angio.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pool"
    (root / "b").mkdir(parents=True)
    grey = fake_run.picture(fake_run.draw(), 0)
    for name in ("one.png", "b/one.png", "two words.png", "b/AA-0012_LCA.bmp"):
        cv2.imwrite(str(root / name), grey)
    np.save(root / "float.npy", grey.astype(np.float32) / 255 - 0.5)
    (root / "broken.png").write_bytes(b"no")
    (root / "notes.txt").write_text("text")
    return root


def test_a_folder_is_read_with_its_folders(folder: Path):
    cases = pictures.of_images(folder).cases
    names = [case.frames[0].name for case in cases]
    assert sorted(n for n in names if not n.startswith("one")) == [
        "AA-0012_LCA",
        "broken",
        "float",
        "two-words",
    ]
    assert len({n for n in names if n.startswith("one-")}) == 2 and len(names) == 6


@pytest.mark.parametrize(
    "text",
    [
        "rank,id,path,why\n1,x,one.png,far\n2,y,b/AA-0012_LCA.bmp,far\n",
        "one.png\nb/AA-0012_LCA.bmp\n",
        "path\none.png\n{absolute}/b/AA-0012_LCA.bmp\n",
        "\ufeffpath\r\none.png\r\n\r\nb/AA-0012_LCA.bmp\r\n",
        "# chosen\npath\none.png\nb/AA-0012_LCA.bmp",
    ],
)
def test_a_list_is_read_in_its_order(folder: Path, text: str):
    (folder / "list.csv").write_text(text.format(absolute=folder), encoding="utf-8")
    cases = pictures.of_images(folder / "list.csv").cases
    assert [case.id for case in cases] == ["one", "AA-0012_LCA"]
    assert not any(case.problem for case in cases)


def test_they_are_painted_from_nothing(folder: Path, tmp_path: Path):
    (folder / "list.txt").write_text("float.npy\nbroken.png\nabsent.png\nx.dcm\nlist.txt\n")
    with viewing(pictures.of_images(folder / "list.txt"), tmp_path / "labels") as viewer:
        cases = viewer.ask("/api/cases").json["cases"]
        assert [bool(case["problem"]) for case in cases] == [False, False, True, True, True]
        assert "No such file" in cases[3]["problem"] and "not an image" in cases[4]["problem"]
        frame = viewer.ask("/api/layer/0/0/frame")
        height, width = map(int, frame.headers["x-shape"].split(","))
        grey = np.frombuffer(frame.body, np.uint8).reshape(height, width)
        assert (grey.min(), grey.max()) == (0, 255)
        assert viewer.ask("/api/layer/1/0/frame").status == 422
        assert viewer.ask("/api/layer/2/0/frame").status == 404
        body = np.zeros((height, width), np.uint8)
        body[10:20, 10:50] = 1
        saved = viewer.ask("/api/label/0/0?from=empty", method="POST", body=body.tobytes())
        assert saved.json["saved"] == "float" and saved.json["artery_pixels"] == 400
        mask = fake_run.stored(tmp_path / "labels/masks/float.png")
        assert np.array_equal(mask, body * 255)


def test_no_link_leads_out_of_the_folder(folder: Path, tmp_path: Path):
    secret = tmp_path / "secret.png"
    cv2.imwrite(str(secret), fake_run.picture(fake_run.draw(3.0), 1))
    (folder / "link.png").symlink_to(secret)
    (folder / "inner.png").symlink_to("b/AA-0012_LCA.bmp")
    (folder / "loop.png").symlink_to("loop.png")
    cases = {case.id: case for case in pictures.of_images(folder).cases}
    assert cases["link"].problem == "'link.png' leads out of the folder"
    assert "does not exist" in cases["loop"].problem
    assert not cases["link"].frames[0].layers and not cases["loop"].frames[0].layers
    catalogue = pictures.of_images(folder)
    at = {case.id: number for number, case in enumerate(catalogue.cases)}
    with viewing(catalogue, tmp_path / "labels") as viewer:
        refused = viewer.ask(f"/api/layer/{at['link']}/0/frame")
        assert refused.status == 404 and "out of the folder" in refused.reason
        # Links made after the start: in the place of a file, and of a folder.
        assert viewer.ask(f"/api/layer/{at['two-words']}/0/frame").status == 200
        (folder / "two words.png").unlink()
        (folder / "two words.png").symlink_to(secret)
        (folder / "b").rename(tmp_path / "b")
        (folder / "b").symlink_to(tmp_path / "b")
        for name in ("two-words", "AA-0012_LCA"):
            refused = viewer.ask(f"/api/layer/{at[name]}/0/frame")
            assert refused.status == 422 and "out of the folder" in refused.reason


def dicom_run(path: Path, count: int = 2, **changes: Any) -> str:
    frames = xa.run(count, height=40, width=48)
    spacing = {"PixelSpacing": [0.3, 0.2], "PixelSpacingCalibrationType": "GEOMETRY"}
    elements = spacing | changes.pop("elements", {})
    xa.write(path.parent, frames, name=path.name, planted=False, elements=elements, **changes)
    return f"dicom-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


@pytest.mark.parametrize("listed", [False, True])
def test_a_dicom_is_found_by_its_content_and_called_by_its_digest(
    folder: Path, tmp_path: Path, listed: bool, monkeypatch: pytest.MonkeyPatch
):
    run = dicom_run(folder / "IM000001", 3)
    called = dicom_run(folder / "Mustermann.png", 1)
    withheld = dicom_run(folder / "Erika.dcm", 4, elements={"BurnedInAnnotation": "YES"})
    (folder / "IM000002").write_bytes(b"cut while it was copied")
    hashed: list[str] = []
    digest = hashlib.file_digest

    def counting(file: Any, how: str) -> Any:
        hashed.append(how)
        return digest(file, how)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    source = folder
    if listed:
        source = folder / "list.txt"
        source.write_text("IM000001\nMustermann.png\nErika.dcm\nIM000002\n")
    catalogue = pictures.of_images(source)
    cases = {case.id: case for case in catalogue.cases}
    assert {run, called, withheld} < set(cases)
    assert not any("Muster" in case.id or "IM0" in case.id for case in catalogue.cases)
    assert f"{folder / 'IM000001'} -> {run}" in catalogue.told
    (cut,) = (case for case in catalogue.cases if "truncated" in case.problem)
    assert not cut.frames
    assert "withheld" in cases[withheld].problem and not cases[withheld].frames[3].layers
    assert [f.name for f in cases[run].frames] == [f"{run}_{i:04d}" for i in range(3)]
    assert cases[run].spacing_mm == (0.3, 0.2) and cases[called].frames[0].name == called
    count = len(hashed)
    at = list(cases).index(run)
    with viewing(catalogue, tmp_path / "labels") as viewer:
        for index, raw in enumerate(xa.run(3, height=40, width=48)):
            answer = viewer.ask(f"/api/layer/{at}/{index}/frame")
            assert answer.headers["x-shape"] == "40,48"
            grey = np.frombuffer(answer.body, np.uint8).reshape(40, 48)
            assert np.corrcoef(grey.ravel(), raw.ravel())[0, 1] > 0.99
        body = np.zeros((40, 48), np.uint8)
        body[15:25, 2:46] = 1
        saved = viewer.ask(f"/api/label/{at}/1?from=empty", method="POST", body=body.tobytes())
        assert saved.json["saved"] == f"{run}_0001"
        # A painted mask is measured in the pixels that the file gives.
        assert viewer.ask(f"/api/qca/{at}/1/label").json["spacing_mm"] == [0.3, 0.2]
    assert len(hashed) == count  # a file is read through once


@pytest.mark.parametrize("listed", [False, True])
def test_dicoms_that_cannot_be_read_are_told_apart(tmp_path: Path, listed: bool):
    pool = tmp_path / "pool"
    pool.mkdir()
    called = {}
    for number, name in enumerate(("Erika", "Max", "Otto")):
        path = pool / f"{name}.dcm"
        dicom_run(path, number + 1)
        path.write_bytes(path.read_bytes()[:-500])
        called[name] = f"dicom-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    (pool / "Zoe.dcm").write_bytes((pool / "Max.dcm").read_bytes())
    called["Zoe"] = f"{called['Max']}-2"  # a copy
    (tmp_path / "list.txt").write_text("".join(f"pool/{name}.dcm\n" for name in called))
    found = pictures.of_images(tmp_path / "list.txt" if listed else pool)
    assert [case.id for case in found.cases] == [*called.values()]
    for case, line, (name, wanted) in zip(found.cases, found.told, called.items(), strict=True):
        assert case.problem and not case.frames
        assert line == f"{pool / name}.dcm -> {wanted}: {case.problem}"
        assert name not in f"{case}"
    assert [name for name, _ in dicoms.find(pool, without=tmp_path / "none").failed] == [
        label.removesuffix("-2") for label in called.values()
    ]


def test_a_dicom_that_is_exchanged_for_a_link_is_not_followed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, outside = folder / "IM000001", tmp_path / "outside"
    dicom_run(path)
    (folder / "away.dcm").symlink_to(outside)
    catalogue = pictures.of_images(folder)
    problems = [case.problem for case in catalogue.cases if case.problem]
    assert problems == ["it does not exist"]
    (case,) = (case for case in catalogue.cases if case.id.startswith("dicom-"))
    outside.write_bytes(path.read_bytes())
    os.utime(outside, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    inside = confined.inside

    def exchanging(*args: Any) -> Path:
        found = inside(*args)
        if not path.is_symlink():
            path.unlink()
            path.symlink_to(outside)
        return found

    assert case.frames[0].layers["frame"]().any()
    monkeypatch.setattr(confined, "inside", exchanging)
    for _ in range(2):
        with pytest.raises(Unreadable, match="out of the folder|changed"):
            case.frames[0].layers["frame"]()


def test_a_folder_may_be_a_link_itself(folder: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(folder)
    cases = pictures.of_images(tmp_path / "link").cases
    assert len(cases) == 6 and not any(case.problem for case in cases)


def test_an_image_without_contrast_is_named(tmp_path: Path):
    cv2.imwrite(str(tmp_path / "flat.png"), np.full((40, 40), 9, np.uint8))
    (case,) = pictures.of_images(tmp_path).cases
    with pytest.raises(Unreadable, match="equal"):
        case.frames[0].layers["frame"]()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "names no image"), (b"path\n", "names no image"), (b"\x89PNG\r\n\x1a\n", "no list")],
)
def test_what_is_no_list_is_one_line(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(UserError, match=words):
        pictures.of_images(tmp_path / "list")


def test_no_list_and_no_image(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        pictures.of_images(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no image"):
        pictures.of_images(tmp_path)
