"""What a kill or damage leaves behind: nothing is lost, and it is said what to do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tfds_angio import prepare
from tfds_angio.angio_folder.dummy_data import write_folder
from tfds_angio.base import AngioDataset, UserError, build, open_dataset

REPOSITORY = Path(__file__).resolve().parents[1]
VERSION = Path("angio_folder") / "1.0.0"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    return build(
        "angio_folder",
        data_dir=tmp_path_factory.mktemp("data"),
        source=source,
        workers=0,
        progress=False,
    )


@pytest.fixture
def data(built, tmp_path):
    shutil.copytree(built.directory, tmp_path / VERSION)
    return tmp_path


def kill_between_the_renames(data: Path, source: Path) -> None:
    """Rebuilds with another seed in a process that dies once the old data set has moved away."""
    code = (
        "import os, pathlib, signal\n"
        "from tfds_angio.base import build\n"
        "rename = pathlib.Path.rename\n"
        "def once(self, target):\n"
        "    rename(self, target)\n"
        f"    if self == pathlib.Path({str(data / VERSION)!r}):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "pathlib.Path.rename = once\n"
        f"build('angio_folder', data_dir={str(data)!r}, source={str(source)!r}, workers=0, "
        "options={'seed': 3}, rebuild=True, progress=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    assert not (data / VERSION).exists()


def test_a_rebuild_killed_between_its_renames_loses_nothing(built, data, source):
    kill_between_the_renames(data, source)
    again = open_dataset("angio_folder", data_dir=data)
    assert again.fingerprint == built.fingerprint
    assert again.source("train")[0]["image"].any()
    assert [p.name for p in (data / VERSION).parent.iterdir()] == ["1.0.0"]
    assert not [p for p in data.glob(".building-*") if p.is_dir()]


def moved_away(data: Path) -> Path:
    return (data / VERSION).rename(prepare._replaced(data / VERSION))


def test_a_second_build_takes_the_old_one_back(built, data, source):
    moved_away(data)
    quick = {"data_dir": data, "source": source, "workers": 0, "progress": False}
    with pytest.raises(UserError, match="built with seed=0, not 3"):
        build("angio_folder", **quick, options={"seed": 3})
    assert build("angio_folder", **quick).fingerprint == built.fingerprint


def test_a_failed_rebuild_takes_the_old_one_back(built, data, source):
    moved_away(data)
    with pytest.raises(UserError, match="leave nothing"):
        build(
            "angio_folder",
            data_dir=data,
            source=source,
            options={"test_fraction": 0.95},
            rebuild=True,
            workers=0,
            progress=False,
        )
    assert open_dataset("angio_folder", data_dir=data).fingerprint == built.fingerprint


def test_a_successor_in_place_stays(built, data):
    shutil.copytree(data / VERSION, prepare._replaced(data / VERSION))
    (prepare._replaced(data / VERSION) / "index.json").write_text("{}")  # the old one
    prepare._recover(data / VERSION)
    assert not prepare._replaced(data / VERSION).exists()
    assert open_dataset("angio_folder", data_dir=data).fingerprint == built.fingerprint


def test_something_else_in_its_place_costs_nothing(data):
    old = moved_away(data)
    (data / VERSION).mkdir()
    (data / VERSION / "mine.txt").write_text("precious")
    prepare._recover(data / VERSION)
    assert (data / VERSION / "mine.txt").exists() and AngioDataset(old).sizes


def test_a_successor_that_cannot_be_moved_leaves_the_old_one(data, tmp_path):
    with pytest.raises(FileNotFoundError):
        prepare._move_into_place(tmp_path / "gone", data / VERSION)
    assert open_dataset("angio_folder", data_dir=data).sizes


def damaged(text: str) -> list[bytes]:
    index = json.loads(text)
    split = next(iter(index["splits"].values()))
    short = index | {"splits": {"train": split | {"patients": split["patients"][:-1]}}}
    without = [{k: v for k, v in index.items() if k != key} for key in ("splits", "options")]
    odd = [*without, short, index | {"splits": {"train": 3}}, [], None]
    cut = text[: len(text) // 2].encode()
    return [cut, b"", b"\xff\xfe", *(json.dumps(o).encode() for o in odd)]


@pytest.mark.parametrize("case", range(9))
def test_a_damaged_index_says_what_to_do(case, built, data, source):
    path = data / VERSION / "index.json"
    path.write_bytes(damaged(path.read_text())[case])
    with pytest.raises(UserError, match=r"index\.json is damaged .* with --rebuild"):
        open_dataset("angio_folder", data_dir=data)
    if case == 0:
        quick = {"data_dir": data, "source": source, "workers": 0, "progress": False}
        with pytest.raises(UserError, match="--rebuild"):
            build("angio_folder", **quick)
        assert build("angio_folder", **quick, rebuild=True).fingerprint == built.fingerprint


def test_a_damaged_labelled_draw_says_what_to_do(data):
    dataset = open_dataset("angio_folder", data_dir=data)
    path = data / VERSION / "splits" / "labelled_draw0.json"
    os.truncate(path, 10)
    with pytest.raises(UserError, match=r"labelled_draw0\.json is damaged .* with --rebuild"):
        dataset.labelled_ids(2, draw=0)
