"""Patients, manifests and splits of a user's folder."""

import csv
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfds_angio.angio_folder import assign, identity
from tfds_angio.angio_folder.dummy_data import picture, save, stripe, write_folder
from tfds_angio.angio_folder.identity import Identity
from tfds_angio.base import UserError, build


def make(root: Path, data: Path, **options):
    return build(
        "angio_folder", data_dir=data, source=root, options=options, workers=0, progress=False
    )


def found(dataset) -> dict[str, list[dict[str, str]]]:
    rows: dict[str, list[dict[str, str]]] = {}
    with (dataset.directory / "problems.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["file"], []).append(row)
    return rows


def all_ids(dataset) -> set[str]:
    return {i for split in dataset.sizes for i in dataset.ids(split)}


def example(dataset, name: str):
    for split in dataset.sizes:
        if name in dataset.ids(split):
            return dataset.source(split)[dataset.ids(split).index(name)]
    raise KeyError(name)


@pytest.mark.parametrize(
    ("name", "patient", "centre"),
    [
        ("UZ-0012_LCA", "UZ-0012", "UZ"),
        ("UZ-0012_LCA_RAO_2", "UZ-0012", "UZ"),
        ("sub/UZ-1_a", "UZ-1", "UZ"),
        ("UZ-0012", "", ""),
        ("image", "", ""),
        ("-1_a", "", ""),
    ],
)
def test_default_pattern(name, patient, centre):
    who = identity.from_name(name, identity.compile_pattern(identity.PATTERN))
    assert (who.patient, who.centre) == (patient, centre)


def test_own_pattern_and_folders(tmp_path):
    root = tmp_path / "s"
    for patient in range(5):
        save(root / "imgs" / f"p{patient}" / "run1.png", picture(patient))
        save(root / "masks" / f"p{patient}" / "run1.png", stripe())
    made = make(root, tmp_path / "d", pattern=r"^(?P<patient>[^/]+)/")
    assert sorted(made.patients("train+val+test")) == [f"p{i}" for i in range(5)]
    assert "p3/run1" in all_ids(made)


@pytest.mark.parametrize(
    ("pattern", "message"), [("(", "no regular expression"), ("abc", "no group")]
)
def test_wrong_patterns(pattern, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make(write_folder(tmp_path / "s"), tmp_path / "d", pattern=pattern)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=12, max_size=60).filter(
        lambda rows: len({p for p, has in rows if has}) >= 3
    ),
    st.integers(0, 50),
)
def test_no_patient_on_both_sides(rows, seed):
    labelled = {f"i{n}": has for n, (_, has) in enumerate(rows)}
    who = {f"i{n}": Identity(f"p{p}") for n, (p, _) in enumerate(rows)}
    split, left_out = assign.assign(labelled, who, val_fraction=0.1, test_fraction=0.2, seed=seed)
    side: dict[str, str] = {}
    for image, name in split.items():
        assert labelled[image] == (name != "unlabelled")
        pool = "train" if name == "unlabelled" else name
        assert side.setdefault(who[image].patient, pool) == pool
    assert set(split) | {p.file for p in left_out} == set(labelled)
    assert {"train", "val", "test"} <= set(split.values())


def manifest(root: Path, text: str) -> str:
    (root / "list.csv").write_text(text, encoding="utf-8")
    return "list.csv"


def test_manifest_decides(tmp_path):
    root = write_folder(tmp_path / "s", 4)
    save(root / "imgs" / "AA-3_u.png", picture(999))
    rows = ["file;patient;centre;split"]
    rows += [
        f"AA-{p}_{v}.png;pat{p};North;{'val' if p == 1 else ''}" for p in (0, 1, 2) for v in (0, 1)
    ]
    rows += ["imgs/AA-3_0;pat3;;test", "AA-3_1;pat3;;test", "AA-3_u.png;pat3;;test"]
    rows += [
        "../../etc/passwd;x;;",
        "/etc/passwd;x;;",
        "AA-0_0.png;other;;",
        "no_such.png;x;;",
        ";x;;",
    ]
    made = make(root, tmp_path / "d", manifest=manifest(root, "\ufeff" + "\n".join(rows)))
    assert set(made.ids("val")) == {"AA-1_0", "AA-1_1"} and made.patients("val") == ["pat1"] * 2
    assert set(made.ids("test")) == {"AA-3_0", "AA-3_1"}
    assert set(made.ids("train")) == {"AA-0_0", "AA-0_1", "AA-2_0", "AA-2_1"}
    assert made.centres("train")[0] == "North" and "unlabelled" not in made.sizes
    said = found(made)
    assert "leads outside" in said["list.csv:11"][0]["problem"]
    assert "leads outside" in said["list.csv:12"][0]["problem"]
    assert "again" in said["list.csv:13"][0]["problem"]
    assert "no image" in said["list.csv:14"][0]["problem"]
    assert "no file name" in said["list.csv:15"][0]["problem"]
    assert "its patient is in test" in said["AA-3_u"][0]["problem"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,patient\na,b\n", "no column `file`"),
        ("file,age\na,3\n", "neither a column `patient` nor `split`"),
        ("file,split\nAA-0_0.png,dev\n", "list.csv:2: split 'dev' is not one of"),
        ("file,split\nAA-0_0.png,val\nAA-0_1.png,test\n", "patient 'AA-0' is in the splits"),
        ("", "no column `file`"),
    ],
)
def test_wrong_manifests(text, message, tmp_path):
    root = write_folder(tmp_path / "s")
    with pytest.raises(UserError, match=message):
        make(root, tmp_path / "d", manifest=manifest(root, text))


def test_manifest_can_withhold_labels(tmp_path):
    root = write_folder(tmp_path / "s")
    text = "file,split\n" + "\n".join(f"AA-{p}_{v}.png,unlabelled" for p in (0, 1) for v in (0, 1))
    text += "\nAA-2_0,val\nAA-3_0,test"
    made = make(root, tmp_path / "d", manifest=manifest(root, text))
    assert made.sizes == {"train": 4, "val": 2, "test": 2, "unlabelled": 4}
    assert not example(made, "AA-0_0")["mask"].any()


def test_only_unlabelled_images(tmp_path):
    for i in range(4):
        save(tmp_path / "s" / "imgs" / f"AA-{i}_0.png", picture(i))
    made = make(tmp_path / "s", tmp_path / "d")
    assert made.sizes == {"unlabelled": 4}
    assert len(made.source("train+unlabelled")) == 4
    with pytest.raises(UserError, match="'train' is empty"):
        made.source("train")


def test_mask_suffix_and_folder_names(tmp_path):
    root = tmp_path / "s"
    for i in range(5):
        save(root / "frames" / f"AA-{i}_0.png", picture(i))
        save(root / "labels" / f"AA-{i}_0_seg.png", stripe())
    made = make(root, tmp_path / "d", images="frames", masks="labels", mask_suffix="_seg")
    assert sum(made.sizes.values()) == 5 and "unlabelled" not in made.sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "nope"}, "has no folder nope/"),
        ({"val_fraction": 1.5}, "not in"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing"),
        ({"percentile": 50.0}, "not in"),
        ({"manifest": "nope.csv"}, "nope.csv does not exist"),
    ],
)
def test_wrong_options(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make(write_folder(tmp_path / "s"), tmp_path / "d", **options)


def test_too_few_patients_for_the_splits(tmp_path):
    with pytest.raises(UserError, match=r"2 labelled patient\(s\) cannot fill .* set val_fraction"):
        make(write_folder(tmp_path / "s", 2), tmp_path / "d")
    made = make(write_folder(tmp_path / "s2", 2), tmp_path / "d", val_fraction=0, test_fraction=0.5)
    assert made.sizes == {"train": 2, "test": 2}


def test_nothing_usable_names_the_first_problem(tmp_path):
    (tmp_path / "s" / "imgs").mkdir(parents=True)
    (tmp_path / "s" / "imgs" / "a.png").touch()
    with pytest.raises(UserError, match=r"no usable image .* imgs/a\.png: empty file"):
        make(tmp_path / "s", tmp_path / "d")
    (tmp_path / "t" / "imgs").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no"):
        make(tmp_path / "t", tmp_path / "d")


def test_file_names_that_are_not_utf8_are_named(tmp_path):
    root = write_folder(tmp_path / "s")
    odd = os.fsencode(root / "imgs") + b"/AA-0_\xff.png"
    with open(odd, "wb") as file:
        file.write((root / "imgs" / "AA-0_0.png").read_bytes())
    made = make(root, tmp_path / "d")
    rows = [r for rows in found(made).values() for r in rows]
    assert any("not UTF-8" in r["problem"] and "left out" in r["action"] for r in rows)
    assert sum(made.sizes.values()) == 12
