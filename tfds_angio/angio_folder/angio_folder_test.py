"""A user's folder: every kind of good and bad input, named and handled."""

import csv
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfds_angio import images
from tfds_angio.angio_folder import assign, identity, load, problems
from tfds_angio.angio_folder.identity import Identity
from tfds_angio.base import UserError, build

SHAPE = (48, 40)
RNG = np.random.default_rng(0)


def picture(seed: int, *, top: int = 255, dtype=np.uint8) -> np.ndarray:
    ramp = np.linspace(0, top, SHAPE[0] * SHAPE[1]).reshape(SHAPE)
    noise = np.random.default_rng(seed).normal(size=SHAPE) * top / 20
    return np.clip(ramp + noise, 0, top).astype(dtype)


def stripe(value=1, dtype=np.uint8) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype)
    mask[10:14, 5:35] = value
    return mask


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        colour = array[..., ::-1] if array.ndim == 3 else array
        assert cv2.imwrite(str(path), colour)


def good(root: Path, patients: int = 6, *, views: int = 2) -> Path:
    """Plain labelled images AA-0_0 … of some patients."""
    for patient in range(patients):
        for view in range(views):
            name = f"AA-{patient}_{view}.png"
            save(root / "imgs" / name, picture(100 * patient + view))
            save(root / "masks" / name, stripe())
    return root


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


# --- one of everything ---

# file -> (content, severity, words of the problem, words of what was done)
BAD_IMAGES = {
    "EE-0_empty.png": (b"", "error", "empty file", "left out"),
    "EE-0_text.png": (b"this is no image", "error", "not an image", "left out"),
    "EE-0_nan.npy": (
        np.where(stripe() > 0, np.nan, picture(1, dtype=np.float32)),
        "warning",
        "NaN",
        "set to the median",
    ),
    "EE-0_allnan.npy": (np.full(SHAPE, np.nan), "error", "100% of the pixels are NaN", "left out"),
    "EE-0_inf.npy": (
        np.where(stripe() > 0, np.inf, picture(2, dtype=np.float64)),
        "warning",
        "infinite",
        "set to the median",
    ),
    "EE-0_constant.png": (np.full(SHAPE, 7, np.uint8), "error", "constant image", "left out"),
    "EE-0_small.png": (picture(3)[:8, :8], "error", "8 × 8 pixels", "left out"),
    "EE-0_stack.npy": (np.zeros((9, 48, 40), np.float32), "error", "one frame a file", "left out"),
    "EE-0_words.npy": (np.array(["a", "b"]), "error", "not of numbers", "left out"),
    "EE-0_object.npy": (np.array([{}], object), "error", "corrupt or unsupported .npy", "left out"),
    "EE-0_colour.png": (
        np.stack([picture(4), picture(5), picture(6)], -1),
        "warning",
        "colour image",
        "luminance",
    ),
    "EE-0_16.png": (picture(7, top=4000, dtype=np.uint16), "info", "uint16", "scaled"),
    "EE-0_zscore.npy": (
        ((picture(8) - 128.0) / 60).astype(np.float32),
        "info",
        "float32",
        "scaled",
    ),
    "EE-0_eight.npy": (picture(9).astype(np.float32), "info", "float32", "taken as 8 bits"),
    "EE-0_scan.dcm": (b"DICM", "warning", "convert DICOM", "ignored"),
    "notes.txt": (b"hello", "warning", "not an image type", "ignored"),
    ".DS_Store": (b"x", "info", "system file", "ignored"),
}

BAD_MASKS = {
    "size.png": (stripe()[:20], "error", "mask is 20 × 40, the image 48 × 40", "unlabelled"),
    "corrupt.png": (b"\x89PNG\r\n\x1a\nbroken", "error", "corrupt|not an image", "unlabelled"),
    "empty_file.png": (b"", "error", "empty file", "unlabelled"),
    "full.png": (np.full(SHAPE, 255, np.uint8), "error", "all pixels are 255", "unlabelled"),
    "zscored.npy": (
        np.linspace(-2, 3, SHAPE[0] * SHAPE[1]).reshape(SHAPE),
        "error",
        "not a mask: 1920 values",
        "unlabelled",
    ),
    "none.png": (stripe(0), "warning", "empty mask", "without artery"),
    "byte.png": (stripe(255), "info", "values 0 and 255", "artery = 1"),
    "other.png": (stripe(77), "warning", "values 0 and 77", "artery = 1"),
    "soft.npy": (stripe(0.9, np.float32) + 0.1 * picture(0) / 255, "warning", "soft", "artery = 1"),
    "soft8.png": (cv2.GaussianBlur(stripe(255), (5, 5), 1), "warning", "half of 255", "artery"),
    "jpeg.jpg": (stripe(255), "warning", "soft mask, half of 255|values", "artery = 1"),
    "labels.png": (
        stripe() + 2 * np.roll(stripe(), 20, 0),
        "warning",
        "labels up to 2, any",
        "artery",
    ),
    "colour.png": (
        np.stack([stripe(200), np.roll(stripe(90), 20, 0), stripe(0)], -1),
        "warning",
        "colour",
        "artery = 1",
    ),
    "nan.npy": (np.where(stripe() > 0, 1, np.nan), "warning|error", "NaN", "background|unlabelled"),
    "inverted.png": (255 - stripe(255), "warning", "is it inverted", "used as it is"),
}
EMPTY_AFTER_ALL = {"size", "corrupt", "empty_file", "full", "zscored"}


def write(path: Path, content) -> None:
    if isinstance(content, bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    elif content.dtype.kind in "OU":
        np.save(path, content, allow_pickle=True)
    else:
        save(path, content)


@pytest.fixture(scope="module")
def mess(tmp_path_factory):
    root = good(tmp_path_factory.mktemp("mess"))
    for name, (content, *_) in BAD_IMAGES.items():
        write(root / "imgs" / name, content)
    for number, (name, (content, *_)) in enumerate(BAD_MASKS.items()):
        write(root / "masks" / f"BB-1_{name}", content)
        save(root / "imgs" / f"BB-1_{Path(name).stem}.png", picture(50 + number))
    truncated = cv2.imencode(".jpg", RNG.integers(0, 256, (400, 400), np.uint8))[1].tobytes()
    (root / "imgs" / "EE-0_cut.jpg").write_bytes(truncated[: len(truncated) // 2])
    save(root / "masks" / "CC-9_orphan.png", stripe())
    save(root / "masks" / "EE-0_constant.png", stripe())
    save(root / "imgs" / "AA-1_0.npy", picture(100, dtype=np.float32) / 255)  # beside AA-1_0.png
    save(root / "imgs" / "AA-1_same.png", picture(100))  # the pixels of AA-1_0.png
    save(root / "imgs" / "nameless.png", picture(90))
    save(root / "imgs" / "deep" / "er" / "DD-1_x.png", picture(91))
    os.symlink(root / "imgs", root / "imgs" / "loop")
    os.symlink(root / "imgs" / "gone.png", root / "imgs" / "EE-0_dangling.png")
    return root


@pytest.fixture(scope="module")
def messy(mess, tmp_path_factory):
    return make(mess, tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_named(messy, name):
    _, severity, problem, action = BAD_IMAGES[name]
    rows = found(messy)[f"imgs/{name}"]
    assert any(
        r["severity"] == severity and problem in r["problem"] and action in r["action"]
        for r in rows
    ), rows
    used = severity != "error" and action != "ignored"
    assert (Path(name).stem in all_ids(messy)) == (used and name != ".DS_Store")


@pytest.mark.parametrize("name", BAD_MASKS)
def test_bad_masks_are_named(messy, name):
    _, severity, problem, action = BAD_MASKS[name]
    rows = found(messy)[f"masks/BB-1_{name}"]
    assert any(
        re.search(severity, r["severity"])
        and re.search(problem, r["problem"])
        and re.search(action, r["action"])
        for r in rows
    ), rows


@pytest.mark.parametrize(
    ("file", "problem", "action"),
    [
        ("imgs/EE-0_cut.jpg", "truncated", "left out"),
        ("imgs/EE-0_dangling.png", "No such file", "left out"),
        ("imgs/loop", "link to a folder", "not followed"),
        ("masks/CC-9_orphan.png", "without an image", "left out"),
        ("masks/EE-0_constant.png", "its image is left out", "left out"),
        ("imgs/AA-1_0.png", "same name as imgs/AA-1_0.npy", "the other one is used"),
        ("imgs/nameless.png", "no patient id", "patient of its own"),
        ("imgs/deep/er/DD-1_x.png", "no mask", "used as unlabelled"),
    ],
)
def test_irregular_names_are_named(messy, file, problem, action):
    rows = found(messy)[file]
    assert any(problem in r["problem"] and action in r["action"] for r in rows), rows


def test_nothing_is_dropped_in_silence(mess, messy):
    """Every file is in the data set or in the list."""
    used = {f"imgs/{i}" for i in all_ids(messy)} | {f"masks/{i}" for i in all_ids(messy)}
    for parent, _, files in os.walk(mess):
        for file in files:
            path = Path(parent, file).relative_to(mess)
            assert path.as_posix() in found(messy) or path.with_suffix("").as_posix() in used


def test_summary_is_short_and_points_to_the_list(messy):
    notes = messy.metadata["notes"]
    assert len(notes) == problems.SHOWN + 2
    assert notes[0].startswith("error: ") and "… and" in notes[-2]
    assert notes[-1].endswith(str(messy.directory / "problems.csv"))


@pytest.mark.parametrize("name", BAD_MASKS)
def test_what_became_of_the_masks(messy, name):
    stem = Path(name).stem
    if stem in EMPTY_AFTER_ALL or stem == "nan":
        return
    # BB-1 is one patient: all its labelled images are in one split.
    out = example(messy, f"BB-1_{stem}")
    expected = stripe() > 0
    if stem in ("labels", "colour"):
        expected = expected | np.roll(expected, 20, 0)
    elif stem == "none":
        expected = np.zeros(SHAPE, bool)
    elif stem == "inverted":
        expected = ~expected
    assert out["has_mask"] is True
    wrong = (out["mask"][..., 0] > 0) != expected
    assert wrong.sum() <= (8 if stem in ("soft8", "jpeg") else 0)


def test_pixels(messy):
    np.testing.assert_array_equal(example(messy, "EE-0_eight")["image"][..., 0], picture(9))
    z = example(messy, "EE-0_zscore")["image"][..., 0].astype(float)
    assert np.corrcoef(z.ravel(), picture(8).ravel())[0, 1] > 0.9999
    assert z.min() == 0 and z.max() == 255
    deep = example(messy, "deep/er/DD-1_x")
    assert deep["patient"] == "DD-1" and deep["centre"] == "DD"


def test_copies_under_another_name_are_left_out(tmp_path):
    root = good(tmp_path / "s")
    save(root / "imgs" / "ZZ-8_copy.png", picture(100))  # unlabelled copy of AA-1_0
    made = make(root, tmp_path / "d")
    assert "ZZ-8_copy" not in all_ids(made)
    rows = found(made)["imgs/ZZ-8_copy.png"]
    assert any("same pixels as imgs/AA-1_0.png" in row["problem"] for row in rows)


# --- formats ---


@pytest.mark.parametrize(
    "suffix", [".npy", ".png", ".tif", ".tiff", ".bmp", ".jpg", ".JPEG", ".PNG"]
)
def test_every_format(suffix, tmp_path):
    root = good(tmp_path / "s")
    image = cv2.GaussianBlur(picture(77), (0, 0), 2)
    save(root / "imgs" / f"AA-0_f{suffix.lower()}", image)
    (root / "imgs" / f"AA-0_f{suffix.lower()}").rename(root / "imgs" / f"AA-0_g{suffix}")
    out = example(make(root, tmp_path / "d"), "AA-0_g")["image"][..., 0].astype(int)
    tolerance = 12 if suffix.lower() in (".jpg", ".jpeg") else 0
    assert np.abs(out - image).max() <= tolerance


def test_sixteen_bit_tiff_and_sizes_stay_native(tmp_path):
    root = good(tmp_path / "s")
    wide = np.linspace(100, 4000, 64 * 90).reshape(64, 90).astype(np.uint16)
    wide[0, 0] = 65535  # a dead pixel must not decide the contrast
    save(root / "imgs" / "AA-0_w.tif", wide)
    out = example(make(root, tmp_path / "d"), "AA-0_w")["image"]
    assert out.shape == (64, 90, 1)
    assert abs(int(out[32, 45, 0]) - 128) <= 3


def test_alpha_and_grey_colour_are_plain():
    grey = picture(1)
    same = np.stack([grey, grey, grey, np.full_like(grey, 9)], -1)
    np.testing.assert_array_equal(images.grey(same), grey)
    np.testing.assert_array_equal(images.grey(grey[..., None]), grey)
    colour = np.stack([grey, np.zeros_like(grey), np.zeros_like(grey)], -1)
    np.testing.assert_allclose(images.grey(colour), 0.299 * grey, atol=0.5)


@pytest.mark.parametrize("cut", [0, 1, 10, 60, 200])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".npy"])
def test_truncated_files_never_pass(suffix, cut, tmp_path):
    path = tmp_path / f"a{suffix}"
    save(path, RNG.integers(0, 256, (64, 64), np.uint8))
    data = path.read_bytes()
    with pytest.raises(images.UnreadableImage):
        images.decode(data[: int(len(data) * cut / 220)], suffix)


@given(st.binary(max_size=200), st.sampled_from(images.SUFFIXES))
def test_random_bytes_are_refused_clearly(data, suffix):
    with pytest.raises(images.UnreadableImage):
        images.decode(data, suffix)


@given(
    st.sampled_from([np.uint16, np.int16, np.int32, np.float32, np.float64]),
    st.integers(0, 2**31),
)
def test_scaling_keeps_the_order_of_grey_values(dtype, seed):
    values = (np.random.default_rng(seed).normal(size=(40, 40)) * 1000 + 3000).astype(dtype)
    out = load.to_uint8(values, percentile=0.1)
    assert out.dtype == np.uint8 and out.min() == 0 and out.max() == 255
    order = np.argsort(values.ravel(), kind="stable")
    assert (np.diff(out.ravel()[order].astype(int)) >= 0).all()


# --- patients and splits ---


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
        make(good(tmp_path / "s"), tmp_path / "d", pattern=pattern)


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
    root = good(tmp_path / "s", 4)
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
    root = good(tmp_path / "s")
    with pytest.raises(UserError, match=message):
        make(root, tmp_path / "d", manifest=manifest(root, text))


def test_manifest_can_withhold_labels(tmp_path):
    root = good(tmp_path / "s")
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
        make(good(tmp_path / "s"), tmp_path / "d", **options)


def test_too_few_patients_for_the_splits(tmp_path):
    with pytest.raises(UserError, match=r"2 labelled patient\(s\) cannot fill .* set val_fraction"):
        make(good(tmp_path / "s", 2), tmp_path / "d")
    made = make(good(tmp_path / "s2", 2), tmp_path / "d", val_fraction=0, test_fraction=0.5)
    assert made.sizes == {"train": 2, "test": 2}


def test_nothing_usable_names_the_first_problem(tmp_path):
    write(tmp_path / "s" / "imgs" / "a.png", b"")
    with pytest.raises(UserError, match=r"no usable image .* imgs/a\.png: empty file"):
        make(tmp_path / "s", tmp_path / "d")
    (tmp_path / "t" / "imgs").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no"):
        make(tmp_path / "t", tmp_path / "d")


def test_file_names_that_are_not_utf8_are_named(tmp_path):
    root = good(tmp_path / "s")
    odd = os.fsencode(root / "imgs") + b"/AA-0_\xff.png"
    with open(odd, "wb") as file:
        file.write((root / "imgs" / "AA-0_0.png").read_bytes())
    made = make(root, tmp_path / "d")
    rows = [r for rows in found(made).values() for r in rows]
    assert any("not UTF-8" in r["problem"] and "left out" in r["action"] for r in rows)
    assert sum(made.sizes.values()) == 12
