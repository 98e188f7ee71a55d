"""ARCADE's source and options: another archive is noticed, the same one elsewhere is not."""

import shutil
import zipfile
from pathlib import Path

import pytest

from tfds_angio.arcade import download, dummy_data
from tfds_angio.arcade.builder import Arcade
from tfds_angio.base import UserError, build


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    root = tmp_path_factory.mktemp("full") / "arcade"
    dummy_data.write_archive(root)
    return root


def pack(root: Path, path: Path, *, below: str = "arcade/", without: str = "nothing") -> Path:
    with zipfile.ZipFile(path, "w") as out:
        out.writestr(f"{below}readme.txt", "not data")
        for file in sorted(root.rglob("*")):
            name = file.relative_to(root).as_posix()
            if not name.startswith(without):
                out.write(file, below + name)
    return path


def signature(source: Path) -> str:
    return Arcade.source_signature(source, {})


def test_signature_is_that_of_the_content(full, tmp_path):
    expected = signature(full)
    assert signature(full.parent) == expected  # the folder above
    copy = shutil.copytree(full, tmp_path / "copy", copy_function=shutil.copyfile)  # other times
    (copy / "data").mkdir()
    (copy / "data" / "index.json").write_text("{}")
    (copy / "notes.json").write_text("{}")
    assert signature(copy) == expected
    assert signature(pack(full, tmp_path / "a.zip")) == expected
    assert signature(pack(full, tmp_path / "b.zip", below="")) == expected
    assert signature(pack(full, tmp_path / "c.zip", without="syntax/test")) != expected
    annotations = copy / "syntax" / "val" / "annotations" / "val.json"
    annotations.write_text(annotations.read_text() + " ")
    assert signature(copy) != expected


def test_another_archive_is_refused_not_ignored(full, tmp_path):
    quick = {"data_dir": tmp_path / "data", "workers": 0, "progress": False}
    partial = pack(full, tmp_path / "partial.zip", without="syntax/test")
    first = build("arcade", source=partial, **quick)
    assert "test" not in first.sizes
    moved = partial.rename(tmp_path / "moved.zip")
    assert build("arcade", source=moved, **quick).fingerprint == first.fingerprint
    with pytest.raises(UserError, match="is not what .* was built from.*; add --rebuild"):
        build("arcade", source=full, **quick)
    assert "test" in build("arcade", source=full, rebuild=True, **quick).sizes


def test_what_was_fetched_is_known_when_it_is_given_as_source(full, tmp_path, monkeypatch):
    fetched = pack(full, tmp_path / "arcade.zip")
    monkeypatch.setattr(download, "download", lambda *_, **__: fetched)
    quick = {"data_dir": tmp_path / "data", "workers": 0, "progress": False}
    made = build("arcade", **quick)
    assert build("arcade", source=full, **quick).fingerprint == made.fingerprint
    with pytest.raises(UserError, match="add --rebuild"):
        build("arcade", source=pack(full, tmp_path / "c.zip", without="syntax/test"), **quick)


@pytest.mark.parametrize(("run", "frame"), [(0.9, 0.85), (0.25, 0.2), ("nan", 0.85)])
def test_frames_must_not_be_looser_than_runs(run, frame, full, tmp_path):
    with pytest.raises(UserError, match=r"run_correlation=.* above frame_correlation="):
        build(
            "arcade",
            data_dir=tmp_path / "data",
            source=full,
            options={"run_correlation": run, "frame_correlation": frame},
            workers=0,
            progress=False,
        )
