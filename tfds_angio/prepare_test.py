"""Building and reopening: atomic, idempotent, the same everywhere."""

import json
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tfds_angio import base, build, options, prepare
from tfds_angio.base import UserError, open_dataset
from tfds_angio.base import build as build_set

REPOSITORY = Path(__file__).resolve().parents[1]


def write_folder(root: Path, *, patients: int = 8, size: int = 48, unlabelled: int = 3) -> Path:
    """A folder of random images: two views a patient, the last patients without masks."""
    rng = np.random.default_rng(0)
    (root / "imgs").mkdir(parents=True)
    (root / "masks").mkdir()
    for patient in range(patients):
        for view in ("LCA", "RCA"):
            name = f"AA-{patient:02d}_{view}.png"
            cv2.imwrite(str(root / "imgs" / name), rng.integers(0, 256, (size, size + 8), np.uint8))
            if patient < patients - unlabelled:
                mask = np.zeros((size, size + 8), np.uint8)
                mask[10 : 12 + patient] = 1
                cv2.imwrite(str(root / "masks" / name), mask)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def dataset(folder, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    return build_set("angio_folder", data_dir=data, source=folder, workers=0, progress=False)


def leftovers(data: Path) -> list[Path]:
    return [p for p in data.glob(".building-*") if p.is_dir()]


def test_index_and_records_agree(dataset):
    assert sum(dataset.sizes.values()) == 16 and dataset.sizes["unlabelled"] == 6
    for split, size in dataset.sizes.items():
        source = dataset.source(split)
        assert len(source) == size == len(dataset.ids(split))
        for i, name in enumerate(dataset.ids(split)):
            example = source[i]
            assert example["id"] == name
            assert example["patient"] == dataset.patients(split)[i] == name.split("_")[0]
            assert example["centre"] == dataset.centres(split)[i] == "AA"


def test_types_of_an_example(dataset):
    for split in dataset.sizes:
        example = dataset.source(split)[0]
        assert example["image"].dtype == example["mask"].dtype == np.uint8
        assert example["image"].shape == example["mask"].shape == (48, 56, 1)
        assert set(np.unique(example["mask"])) <= {0, 1}
        assert example["has_mask"] is (split != "unlabelled")
        assert example["mask"].any() == example["has_mask"]
        assert all(type(example[key]) is str for key in ("id", "patient", "centre"))


def test_pixels_survive(dataset, folder):
    source = dataset.source("train")
    for i in range(len(source)):
        example = source[i]
        stored = cv2.imread(str(folder / "imgs" / f"{example['id']}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(example["image"][..., 0], stored)


def test_no_id_and_no_patient_in_two_splits(dataset):
    ids = [i for split in dataset.sizes for i in dataset.ids(split)]
    assert len(ids) == len(set(ids))
    patients = [set(dataset.patients(split)) for split in ("train+unlabelled", "val", "test")]
    assert not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])


def test_sums_of_splits(dataset):
    both = dataset.source("train+unlabelled")
    assert len(both) == dataset.sizes["train"] + dataset.sizes["unlabelled"]
    assert [both[i]["id"] for i in range(len(both))] == dataset.ids("train + unlabelled")
    assert both[-1]["id"] == dataset.ids("unlabelled")[-1]
    with pytest.raises(IndexError):
        both[len(both)]


def test_source_travels_to_other_processes(dataset):
    source = dataset.source("train")
    first = source[0]  # open: the readers themselves cannot be pickled
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[0]["image"], first["image"])
    assert len(pickle.dumps(source)) < 1000


def test_unknown_and_repeated_splits(dataset):
    with pytest.raises(UserError, match="no split 'trian'"):
        dataset.ids("trian")
    with pytest.raises(UserError, match="twice"):
        dataset.source("train+train")


def test_labelled_subsets_are_nested_files(dataset):
    train = dataset.ids("train")
    for draw in range(5):
        order = dataset.labelled_ids(len(train), draw=draw)
        assert sorted(order) == sorted(train)
        assert dataset.labelled_ids(3, draw=draw) == order[:3]
        path = dataset.directory / "splits" / f"labelled_draw{draw}.json"
        assert json.loads(path.read_text())["fingerprint"] == dataset.fingerprint
    with pytest.raises(UserError, match=f"train holds {len(train)}"):
        dataset.labelled_ids(500, draw=0)
    with pytest.raises(UserError, match="no labelled draw 7"):
        dataset.labelled_ids(3, draw=7)


def test_reopening_gives_the_same(dataset):
    again = open_dataset("angio_folder", data_dir=dataset.directory.parents[1])
    assert again.fingerprint == dataset.fingerprint and again.sizes == dataset.sizes
    for split in dataset.sizes:
        assert again.ids(split) == dataset.ids(split)


def test_fingerprint_does_not_depend_on_workers_or_place(dataset, folder, tmp_path):
    again = build_set("angio_folder", data_dir=tmp_path, source=folder, workers=2, progress=False)
    assert again.fingerprint == dataset.fingerprint
    assert again.ids("train+unlabelled") == dataset.ids("train+unlabelled")


def test_fingerprint_depends_on_pixels_masks_and_splits(dataset, tmp_path):
    def fingerprint(root, **given):
        data = tmp_path / f"data{len(list(tmp_path.iterdir()))}"
        made = build_set(
            "angio_folder", data_dir=data, source=root, options=given, workers=0, progress=False
        )
        return made.fingerprint

    root = write_folder(tmp_path / "a")
    assert fingerprint(root) == dataset.fingerprint
    assert fingerprint(root, seed=5) != dataset.fingerprint
    path = root / "masks" / "AA-00_LCA.png"
    mask = np.zeros((48, 56), np.uint8)
    mask[10:12] = 1  # as it was, but for one pixel
    mask[0, 0] = 1
    cv2.imwrite(str(path), mask)
    assert fingerprint(root) != dataset.fingerprint


def test_a_second_build_does_nothing(dataset):
    data = dataset.directory.parents[1]
    before = {p: p.stat().st_mtime_ns for p in dataset.directory.rglob("*")}
    again = build_set("angio_folder", data_dir=data, workers=0, progress=False)
    assert again.fingerprint == dataset.fingerprint
    assert {p: p.stat().st_mtime_ns for p in dataset.directory.rglob("*")} == before


def test_other_options_or_a_changed_source_are_refused_not_ignored(tmp_path):
    root = write_folder(tmp_path / "source")
    quick = {"data_dir": tmp_path / "data", "source": root, "workers": 0, "progress": False}
    first = build_set("angio_folder", **quick, options={"seed": 1})
    with pytest.raises(UserError, match="built with seed=1, not 2; add --rebuild"):
        build_set("angio_folder", **quick, options={"seed": 2})
    build_set("angio_folder", **quick)  # options not named are not compared
    (root / "imgs" / "AA-07_LCA.png").unlink()
    with pytest.raises(UserError, match="has changed since; add --rebuild"):
        build_set("angio_folder", **quick)
    second = build_set("angio_folder", **quick, rebuild=True)
    assert second.sizes["unlabelled"] == first.sizes["unlabelled"] - 1
    assert not leftovers(tmp_path / "data")


def test_a_failed_rebuild_keeps_the_old_one(tmp_path):
    root = write_folder(tmp_path / "source")
    quick = {"data_dir": tmp_path / "data", "source": root, "workers": 0, "progress": False}
    first = build_set("angio_folder", **quick)
    with pytest.raises(UserError, match="leave nothing"):
        build_set("angio_folder", **quick, options={"test_fraction": 0.95}, rebuild=True)
    assert open_dataset("angio_folder", data_dir=tmp_path / "data").fingerprint == first.fingerprint
    assert not leftovers(tmp_path / "data")


def test_named_configurations_live_side_by_side(tmp_path, folder):
    quick = {"data_dir": tmp_path, "source": folder, "workers": 0, "progress": False}
    one = build_set("angio_folder/first", **quick)
    two = build_set("angio_folder/second", **quick, options={"seed": 3})
    assert one.directory != two.directory
    assert open_dataset("angio_folder/second", data_dir=tmp_path).fingerprint == two.fingerprint
    assert len(two.source("train")[0]["image"]) == 48


def test_not_built_yet_says_how(tmp_path):
    with pytest.raises(UserError, match="python -m tfds_angio.build angio_folder"):
        open_dataset("angio_folder", data_dir=tmp_path)


START = [sys.executable, "-m", "tfds_angio.build", "angio_folder"]


def start(folder: Path, data: Path) -> subprocess.Popen:
    command = [*START, "--data_dir", str(data), "--source", str(folder), "--workers", "2"]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def children_of(pid: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_killed_build_leaves_nothing_finished_and_the_next_one_cleans_up(tmp_path):
    root = write_folder(tmp_path / "source", patients=60, size=256, unlabelled=30)
    data = tmp_path / "data"
    process = start(root, data)
    wait_for(lambda: any(data.glob(".building-*/new/**/*incomplete*")))  # TFDS is writing
    wait_for(lambda: len(children_of(process.pid)) >= 3)  # two workers and their tracker
    workers = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert workers and leftovers(data)
    assert not list(data.glob("angio_folder/**/index.json"))
    with pytest.raises(UserError, match="build it with"):
        open_dataset("angio_folder", data_dir=data)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 20)
    made = build_set("angio_folder", data_dir=data, source=root, workers=0, progress=False)
    assert not leftovers(data)
    assert sum(made.sizes.values()) == 120 and len(made.source("train")[0]["image"]) == 256


def test_two_builds_at_once(tmp_path, folder, dataset):
    first, second = start(folder, tmp_path), start(folder, tmp_path)
    for process in (first, second):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "angio_folder" in out
    assert open_dataset("angio_folder", data_dir=tmp_path).fingerprint == dataset.fingerprint
    assert not leftovers(tmp_path)


def run(*arguments: object, capsys) -> tuple[int, str, str]:
    status = build.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_command_line(tmp_path, folder, capsys):
    common = ("angio_folder", "--data_dir", tmp_path, "--source", folder, "--no-progress")
    status, out, err = run(*common, "--workers", 0, "--option", "seed=4", capsys=capsys)
    assert status == 0 and err == ""
    assert f"angio_folder built (train 6, val 2, test 2, unlabelled 6): {tmp_path}" in out
    assert f"{tmp_path}/angio_folder/1.0.0/problems.csv" in out
    status, out, _ = run(*common, capsys=capsys)
    assert status == 0 and "already there" in out
    status, out, _ = run("angio_folder", "--options", capsys=capsys)
    assert status == 0 and "val_fraction=0.1" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "unknown data set 'nothing'"),
        (["a/b/c"], "not NAME or NAME/CONFIG"),
        (["../x"], "not NAME or NAME/CONFIG|unknown data set"),
        (["arcade/small", "--source", "."], "no configurations"),
        (["angio_folder"], "needs --source PATH"),
        (["angio_folder", "--source", "/does/not/exist"], "/does/not/exist does not exist"),
        (["angio_folder", "--source", ".", "--option", "sed=1"], "unknown option 'sed'; known: "),
        (["angio_folder", "--source", ".", "--option", "seed=x"], "not of type int"),
        (["angio_folder", "--source", ".", "--option", "seed"], "not key=value"),
        (["angio_folder", "--sauce", "."], "unrecognized arguments"),
        (["arcade", "--source", "."], "holds no syntax/train"),
        ([], "required: name"),
    ],
)
def test_errors_are_one_line_and_status_2(arguments, message, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    status, out, err = run(*arguments, "--data_dir", tmp_path / "data", capsys=capsys)
    assert status == 2 and out == ""
    assert len(err.splitlines()) == 1 and err.startswith("error: ")
    assert re.search(message, err)
    assert not leftovers(tmp_path / "data")


def test_data_dir_that_is_a_file(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        build_set("angio_folder", data_dir=tmp_path / "file", source=folder, progress=False)


def test_a_foreign_folder_in_the_way_is_not_touched(tmp_path, folder):
    place = tmp_path / "angio_folder" / "1.0.0"
    place.mkdir(parents=True)
    (place / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not a finished data set"):
        build_set("angio_folder", data_dir=tmp_path, source=folder, workers=0, progress=False)
    assert (place / "mine.txt").read_text() == "precious"


def test_a_full_disk_is_a_clear_line(tmp_path, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare, "_check", full)
    with pytest.raises(UserError, match="no space left"):
        build_set("angio_folder", data_dir=tmp_path, source=folder, workers=0, progress=False)
    assert not leftovers(tmp_path) and not (tmp_path / "angio_folder" / "1.0.0").exists()


def test_integrity_check_finds_what_must_not_be():
    good = {"train": {"ids": ["a"], "patients": ["p"]}, "val": {"ids": ["b"], "patients": ["q"]}}
    for change, message in (
        ({"val": {"ids": ["a"], "patients": ["q"]}}, "occurs twice"),
        ({"val": {"ids": ["b"], "patients": ["p"]}}, "patient p"),
        ({"unlabelled": {"ids": ["c"], "patients": ["q"]}}, "patient q"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare._check(Path("unused"), good | change)


def test_options_have_types():
    declared = {"n": base.Option(1, ""), "x": base.Option(0.5, ""), "on": base.Option(True, "")}
    given = options.explicit(declared, {"n": "3", "x": "1", "on": "no"})
    assert given == {"n": 3, "x": 1.0, "on": False} and type(given["x"]) is float
    assert options.complete(declared, given)["n"] == 3
    for wrong in ({"n": "1.5"}, {"n": 1.5}, {"on": "maybe"}, {"x": None}):
        with pytest.raises(UserError, match="not of type"):
            options.explicit(declared, wrong)
    with pytest.raises(UserError, match="given twice"):
        options.from_command_line(["a=1", "a=2"])
    assert options.from_command_line(["a=b=c"]) == {"a": "b=c"}


def test_tensorflow_is_not_imported(tmp_path, folder):
    code = (
        "import sys\n"
        "from tfds_angio.base import build\n"
        f"made = build('angio_folder', data_dir={str(tmp_path)!r}, source={str(folder)!r}, "
        "workers=0, progress=False)\n"
        "print(made.source('train')[0]['image'].shape, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "(48, 56, 1) False"
