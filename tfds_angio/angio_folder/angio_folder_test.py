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
from tfds_angio.angio_folder import load, problems
from tfds_angio.angio_folder.dummy_data import SHAPE, picture, save, stripe, write_folder
from tfds_angio.base import UserError, build

RNG = np.random.default_rng(0)


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
    root = write_folder(tmp_path_factory.mktemp("mess"))
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
    os.mkfifo(root / "imgs" / "EE-0_pipe.png")
    os.mkfifo(root / "masks" / "BB-1_pipe.png")
    save(root / "imgs" / "BB-1_pipe.png", picture(92))
    os.symlink("/dev/zero", root / "imgs" / "EE-0_zero.npy")
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
        ("imgs/EE-0_pipe.png", "is not a file", "left out"),
        ("masks/BB-1_pipe.png", "is not a file", "the image is unlabelled"),
        ("imgs/EE-0_zero.npy", "is not a file", "left out"),
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
    root = write_folder(tmp_path / "s")
    save(root / "imgs" / "ZZ-8_copy.png", picture(100))  # unlabelled copy of AA-1_0
    made = make(root, tmp_path / "d")
    assert "ZZ-8_copy" not in all_ids(made)
    rows = found(made)["imgs/ZZ-8_copy.png"]
    assert any("same pixels as imgs/AA-1_0.png" in row["problem"] for row in rows)


def test_only_what_is_read_counts_as_the_source(tmp_path):
    root = write_folder(tmp_path / "s")
    (root / "list.csv").write_text("file,patient\nAA-0_0.png,AA-0\n")
    made = make(root, root / "data", manifest="list.csv")  # the data set lies inside its source
    (root / "runs").mkdir()
    (root / "runs" / "log.txt").write_text("step 1")
    assert make(root, root / "data").fingerprint == made.fingerprint
    with (root / "list.csv").open("a") as file:
        file.write("AA-1_0.png,AA-1\n")
    with pytest.raises(UserError, match="has changed since"):
        make(root, root / "data")


@pytest.mark.parametrize("folder", ["imgs", "masks"])
def test_images_and_masks_count_as_the_source(folder, tmp_path):
    root = write_folder(tmp_path / "s")
    (root / "imgs").rename(root / "frames")
    (root / "masks").rename(root / "vessels")
    made = make(root, tmp_path / "d", images="frames", masks="vessels")
    assert make(root, tmp_path / "d").fingerprint == made.fingerprint
    renamed = {"imgs": "frames", "masks": "vessels"}[folder]
    (root / renamed / "AA-0_0.png").unlink()
    with pytest.raises(UserError, match="has changed since"):
        make(root, tmp_path / "d")


# --- formats ---


@pytest.mark.parametrize(
    "suffix", [".npy", ".png", ".tif", ".tiff", ".bmp", ".jpg", ".JPEG", ".PNG"]
)
def test_every_format(suffix, tmp_path):
    root = write_folder(tmp_path / "s")
    image = cv2.GaussianBlur(picture(77), (0, 0), 2)
    save(root / "imgs" / f"AA-0_f{suffix.lower()}", image)
    (root / "imgs" / f"AA-0_f{suffix.lower()}").rename(root / "imgs" / f"AA-0_g{suffix}")
    out = example(make(root, tmp_path / "d"), "AA-0_g")["image"][..., 0].astype(int)
    tolerance = 12 if suffix.lower() in (".jpg", ".jpeg") else 0
    assert np.abs(out - image).max() <= tolerance


def test_sixteen_bit_tiff_and_sizes_stay_native(tmp_path):
    root = write_folder(tmp_path / "s")
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


@pytest.mark.parametrize(
    ("length", "size", "message"),
    [(0x41000000, (8, 8), "longer than the file"), (4, (60_000, 60_000), "too large")],
)
def test_a_png_that_announces_too_much_is_refused_before_memory_is_taken(length, size, message):
    def chunk(kind, content, length=None):
        count = len(content) if length is None else length
        return count.to_bytes(4, "big") + kind + content + b"\0" * 4

    header = b"".join(side.to_bytes(4, "big") for side in size) + bytes([125, 65, 0, 0, 0])
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"abcd", length)
    with pytest.raises(images.UnreadableImage, match=message):
        images.decode(data, ".png")
