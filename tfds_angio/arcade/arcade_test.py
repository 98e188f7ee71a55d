"""ARCADE's reader, masks and duplicate removal, on invented images with planted copies."""

import csv
import hashlib
import io
import urllib.request
import zipfile
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from skimage import measure

from tfds_angio.arcade import download, dummy_data, layout, masks, near_duplicates, pool, sheet
from tfds_angio.base import UserError, build

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "arcade"


def jpeg(image, quality=40):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 0)


def brighter(image):
    return np.clip(image * 0.7 + 50, 0, 255).astype(np.uint8)


def shifted(image, dy=4, dx=-6):
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    return cv2.warpAffine(image, matrix, image.shape[::-1])


def bordered(image, width=24, level=0):
    out = np.full_like(image, level)
    out[width:-width, width:-width] = image[width:-width, width:-width]
    return out


SEEDS = {"train": range(8), "val": range(10, 15), "test": range(20, 24)}


def planted():
    """Stenosis images by stem: copies of syntax images, and look-alikes that must stay."""
    image = dummy_data.angiogram
    return {
        "exact_of_train_1": image(0),
        "jpeg_of_val_1": jpeg(image(10)),
        "brighter_test_1": brighter(image(20)),
        "shifted_val_2": shifted(image(11)),
        "far_shifted_val_4": shifted(image(13), dy=16, dx=14),
        "bordered_test_2": bordered(image(21)),
        "grey_bordered_val_3": bordered(image(12), level=35),
        "all_of_val_5": jpeg(brighter(shifted(bordered(image(14)), 1, 2))),
        "lookalike_of_val_1": image(100, background=10),
        "lookalike_of_train_1": image(101, background=0),
        "lookalike_of_test_1": image(102, background=20),
        "unique_1": image(103),
        "unique_2": image(104),
        "copy_of_unique_1": jpeg(image(103)),
    }


STAY = {f"stenosis_train_{stem}" for stem in planted() if stem.startswith(("lookalike", "unique"))}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """arcade/syntax/…, arcade/stenosis/… as the official zip unpacks."""
    root = tmp_path_factory.mktemp("source") / "arcade"
    for part, seeds in SEEDS.items():
        pictures = {str(i + 1): dummy_data.angiogram(seed) for i, seed in enumerate(seeds)}
        drawn = {str(i + 1): dummy_data.segments(seed) for i, seed in enumerate(seeds)}
        if part == "train":
            # Copies inside the split: of image 2 with half of its mask, of a val image with all.
            pictures["9"], drawn["9"] = jpeg(dummy_data.angiogram(1)), dummy_data.segments(1)[:1]
            pictures["10"], drawn["10"] = brighter(dummy_data.angiogram(12)), drawn["3"]
            # A lesion outline is no vessel.
            drawn["1"] = [*drawn["1"], (26, np.array([[0, 200], [60, 200], [60, 250], [0, 250]]))]
        dummy_data.write_part(root, "syntax", part, pictures, drawn)
    colour = {k: np.repeat(v[..., None], 3, 2) for k, v in planted().items()}
    dummy_data.write_part(root, "stenosis", "train", colour, {})
    return root.parent


@pytest.fixture(scope="module")
def dataset(archive, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    return build("arcade", data_dir=data, source=archive, workers=0, progress=False)


@pytest.fixture(scope="module")
def removed(dataset):
    return {r["id"]: r for r in csv.DictReader((dataset.directory / "removed.csv").open())}


def test_only_the_planted_copies_are_removed(dataset, removed):
    assert set(dataset.ids("unlabelled")) == STAY
    gone = {f"stenosis_train_{stem}" for stem in planted()} - STAY
    assert set(removed) == gone | {"syntax_train_9", "syntax_train_10"}
    assert dataset.sizes == {"train": 8, "val": 5, "test": 4, "unlabelled": 5}


@pytest.mark.parametrize(
    ("image", "kept", "reason"),
    [
        ("stenosis_train_exact_of_train_1", "syntax_train_1", "same frame as in train"),
        ("stenosis_train_jpeg_of_val_1", "syntax_val_1", "shares a run with val"),
        ("stenosis_train_brighter_test_1", "syntax_test_1", "shares a run with test"),
        ("stenosis_train_shifted_val_2", "syntax_val_2", "shares a run with val"),
        ("stenosis_train_far_shifted_val_4", "syntax_val_4", "shares a run with val"),
        ("stenosis_train_bordered_test_2", "syntax_test_2", "shares a run with test"),
        ("stenosis_train_grey_bordered_val_3", "syntax_val_3", "shares a run with val"),
        ("stenosis_train_all_of_val_5", "syntax_val_5", "shares a run with val"),
        (
            "stenosis_train_copy_of_unique_1",
            "stenosis_train_unique_1",
            "same frame as in unlabelled",
        ),
        ("syntax_train_9", "syntax_train_2", "same frame as in train"),  # the larger mask stays
        ("syntax_train_10", "syntax_val_3", "shares a run with val"),
    ],
)
def test_every_removal_says_what_it_repeats(removed, image, kept, reason):
    row = removed[image]
    assert (row["kept_id"], row["reason"]) == (kept, reason)
    assert 0.5 < float(row["correlation"]) <= 1


def test_reported_shift_is_that_of_the_copy(removed):
    row = removed["stenosis_train_far_shifted_val_4"]  # 256 pixels here, 512 in the report
    assert abs(abs(int(row["shift_y"])) - 32) <= 4 and abs(abs(int(row["shift_x"])) - 28) <= 4


def test_pool_shares_nothing_with_the_evaluation(dataset):
    """An independent check: plain correlation of the middle of the images."""

    def middle(split):
        source = dataset.source(split)
        rows = [source[i]["image"][64:-64, 64:-64, 0].astype(float) for i in range(len(source))]
        return np.stack([(r - cv2.GaussianBlur(r, (0, 0), 8)).ravel() for r in rows])

    train, held = middle("train+unlabelled"), middle("val+test")
    assert np.corrcoef(train, held)[: len(train), len(train) :].max() < 0.5


def test_examples(dataset):
    for split, size in dataset.sizes.items():
        source = dataset.source(split)
        assert len(source) == size
        for i in range(size):
            example = source[i]
            assert example["id"] == dataset.ids(split)[i] and example["patient"] == ""
            for key in ("image", "mask", "segments"):
                assert example[key].dtype == np.uint8 and example[key].shape == (256, 256, 1)
            assert example["has_mask"] is (split != "unlabelled")
            np.testing.assert_array_equal(example["segments"] > 0, example["mask"] == 1)
            wanted = set() if split == "unlabelled" else {1, 2}
            assert set(np.unique(example["segments"])) - {0} == wanted


def test_mask_is_one_connected_vessel_where_the_vessel_is(dataset):
    source = dataset.source("val")
    for i in range(len(source)):
        mask = source[i]["mask"][..., 0]
        assert measure.label(mask, connectivity=2).max() == 1  # the gap is closed
        line = np.rint(dummy_data.centreline(10 + i)).astype(int)
        assert mask[line[:, 1], line[:, 0]].mean() > 0.95


def test_lesions_are_not_vessels(dataset):
    source = dataset.source("train")
    example = source[dataset.ids("train").index("syntax_train_1")]
    assert not example["mask"][205:245, 5:30].any()


def test_zip_and_jpeg_give_the_same_ids(archive, dataset, tmp_path):
    path = tmp_path / "arcade.zip"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("__MACOSX/arcade/._syntax", b"")
        for file in sorted(archive.rglob("*")):
            if file.is_file():
                out.write(file, file.relative_to(archive))
    made = build("arcade", data_dir=tmp_path / "data", source=path, workers=2, progress=False)
    assert made.fingerprint == dataset.fingerprint

    root = tmp_path / "jpegs"
    for part in ("train", "val"):
        pictures = {str(i): dummy_data.angiogram(i) for i in range(3 if part == "train" else 2)}
        if part == "val":
            pictures = {k: dummy_data.angiogram(50 + int(k)) for k in pictures}
        drawn = {k: dummy_data.segments(int(k)) for k in pictures}
        dummy_data.write_part(root, "syntax", part, pictures, drawn, suffix=".jpg")
    made = build("arcade", data_dir=tmp_path / "jpg", source=root, workers=0, progress=False)
    assert made.sizes == {"train": 3, "val": 2}  # no test, no stenosis: left out


def test_duplicates_can_be_kept(archive, tmp_path):
    off = {"run_correlation": 1.1, "frame_correlation": 1.1}
    made = build(
        "arcade", data_dir=tmp_path, source=archive, options=off, workers=0, progress=False
    )
    assert made.sizes == {"train": 10, "val": 5, "test": 4, "unlabelled": 14}


# --- masks ---


@pytest.mark.parametrize("seed", range(5))
def test_filled_area_is_unbiased(seed):
    xy = dummy_data.outline(dummy_data.centreline(seed), width=6)
    x, y = xy.T
    area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    assert masks.fill_polygon(xy, (256, 256)).sum() == pytest.approx(area, rel=0.01)


def test_pixel_centres_decide():
    square = np.array([[2.0, 3.0], [6.0, 3.0], [6.0, 5.0], [2.0, 5.0]])
    expected = np.zeros((8, 8), bool)
    expected[3:5, 2:6] = True  # COCO: pixel (3, 2) covers x 2…3, y 3…4
    np.testing.assert_array_equal(masks.fill_polygon(square, (8, 8)), expected)


def test_polygon_outside_the_image_is_clipped():
    square = np.array([[-5.0, -5.0], [3.0, -5.0], [3.0, 3.0], [-5.0, 3.0]])
    assert masks.fill_polygon(square, (8, 8)).sum() == 9


def bar(x0, x1, y0=10, y1=16):
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)


@pytest.mark.parametrize(("gap", "closed"), [(1, True), (2, True), (3, True), (8, False)])
def test_only_hairline_gaps_close(gap, closed):
    polygons = [(5, bar(2, 20)), (6, bar(20 + gap, 40))]
    out = masks.segment_map(polygons, (32, 48), gap_radius=2)
    assert bool(measure.label(out > 0, connectivity=1).max() == 1) == closed
    before, _ = masks.rasterise(polygons, (32, 48))
    np.testing.assert_array_equal(out[before > 0], before[before > 0])
    assert not out[:10].any() and not out[16:].any()  # not thicker
    if closed:
        assert set(out[12, 20 : 20 + gap]) <= {5, 6}


def test_one_segment_is_not_changed_by_closing():
    """A notch inside a single segment is anatomy, not a gap between annotations."""
    notched = np.array(
        [[2, 10], [10, 10], [10, 14], [11, 14], [11, 10], [20, 10], [20, 18], [2, 18]]
    )
    polygons = [(1, notched.astype(float)), (2, bar(2, 20, 24, 30))]
    out = masks.segment_map(polygons, (40, 40), gap_radius=2)
    np.testing.assert_array_equal(out, masks.rasterise(polygons, (40, 40))[0])


def test_smaller_segment_shows_where_two_overlap():
    out = masks.segment_map([(7, bar(12, 16)), (3, bar(2, 40))], (32, 48), gap_radius=0)
    assert out[12, 13] == 7 and out[12, 5] == 3


# --- near-duplicates ---


def test_identical_and_unrelated_images():
    signatures = [near_duplicates.signature(dummy_data.angiogram(s)) for s in (1, 1, 2)]
    same = near_duplicates.compare(signatures, 1, 0)
    assert same.correlation == pytest.approx(1, abs=1e-4)
    assert (same.first, same.second, same.shift, same.hamming) == (0, 1, (0, 0), 0)
    assert near_duplicates.compare(signatures, 0, 2).correlation < 0.25


@pytest.mark.parametrize("shift", [(8, 0), (-20, 12), (0, -24)])
def test_correlation_finds_the_shift(shift):
    image = dummy_data.angiogram(3)
    signatures = [near_duplicates.signature(i) for i in (image, shifted(image, *shift))]
    pairs = near_duplicates.find_pairs(signatures, threshold=0.85)
    assert len(pairs) == 1
    assert tuple(2 * s for s in pairs[0].shift) in (shift, tuple(-s for s in shift))


def test_correlation_equals_a_direct_computation():
    a, b = (near_duplicates.signature(dummy_data.angiogram(s)) for s in (4, 5))
    value, (dy, dx) = near_duplicates.correlate(a, b)
    pad = near_duplicates.MAX_SHIFT

    def view(plane, y, x):
        padded = np.pad(plane, pad)
        return padded[pad + y : pad + y + 128, pad + x : pad + x + 128]

    best = -1.0
    for y in range(-pad, pad + 1):
        for x in range(-pad, pad + 1):
            both = (a.field > 0) & (view(b.field, -y, -x) > 0)
            if both.sum() >= 0.2 * 128**2:
                left, right = a.detail[both], view(b.detail, -y, -x)[both]
                best = max(best, float(np.corrcoef(left, right)[0, 1]))
    assert value == pytest.approx(best, abs=2e-3)


def test_black_and_tiny_and_wide_images_do_not_break():
    images = [np.zeros((64, 64), np.uint8), np.full((16, 300), 255, np.uint8)]
    signatures = [near_duplicates.signature(i) for i in images]
    assert near_duplicates.find_pairs(signatures, threshold=0.25) == []
    assert near_duplicates.find_pairs(signatures[:1], threshold=0.25) == []
    assert np.isfinite(near_duplicates.compare(signatures, 0, 1).correlation)


def test_runs_are_followed_through_the_pool():
    """One ~ other ~ val: both leave the pool, though the one does not look like val."""
    assert pool.components(6, [(0, 1), (1, 2), (4, 5)]) == [[0, 1, 2], [4, 5]]
    assert pool.components(3, []) == []


# --- the archive ---


def test_broken_archives_are_user_errors(tmp_path):
    (tmp_path / "not.zip").write_bytes(b"PK nonsense")
    with pytest.raises(UserError, match="neither a folder nor a zip"):
        layout.open_archive(tmp_path / "not.zip")
    with pytest.raises(UserError, match="holds no syntax/train/annotations"):
        layout.open_archive(tmp_path)
    dummy_data.write_archive(tmp_path / "arcade")
    archive = layout.open_archive(tmp_path)
    part = tmp_path / "arcade" / "syntax" / "train"
    (part / "images" / "2.png").unlink()
    with pytest.raises(UserError, match=r"lacks 1 images, e\.g\. 2"):
        layout.read_part(archive, "syntax", "train")
    (part / "annotations" / "train.json").write_text("{}")
    with pytest.raises(UserError, match="not a COCO annotation file"):
        layout.read_part(archive, "syntax", "train")


def test_damaged_image_is_named(tmp_path):
    dummy_data.write_archive(tmp_path)
    path = tmp_path / "syntax" / "val" / "images" / "2.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"syntax/val/images/2\.png: corrupt or truncated"):
        build("arcade", data_dir=tmp_path / "data", source=tmp_path, workers=0, progress=False)
    assert not list((tmp_path / "data").glob("arcade/**/index.json"))


def test_images_without_annotation_are_not_taken_for_empty_masks(tmp_path):
    dummy_data.write_archive(tmp_path)
    extra = {"train": 60, "val": 61}
    for part, seed in extra.items():
        path = tmp_path / "syntax" / part / "images" / "99.png"
        cv2.imwrite(str(path), dummy_data.angiogram(seed))
    made = build("arcade", data_dir=tmp_path / "d", source=tmp_path, workers=0, progress=False)
    assert "syntax_train_99" in made.ids("unlabelled")
    assert "syntax_val_99" not in made.ids("val")
    assert sum("no vessel annotation" in note for note in made.metadata["notes"]) == 2


def test_download_is_verified(tmp_path, monkeypatch):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as out:
        out.writestr("a", "b")
    served = tmp_path / "served.zip"
    served.write_bytes(content.getvalue())
    url, fetch = "https://example.org/arcade.zip", urllib.request.urlopen
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: fetch(served.as_uri()))
    good = hashlib.sha256(content.getvalue()).hexdigest()
    place = tmp_path / "downloads"
    with pytest.raises(UserError, match="expected 000"):
        download.download(place, progress=False, url=url, sha256="0" * 64)
    assert list(place.iterdir()) == []
    path = download.download(place, progress=False, url=url, sha256=good)
    assert path.read_bytes() == content.getvalue()
    served.unlink()  # the second time nothing is fetched
    assert download.download(place, progress=False, url=url, sha256=good) == path
    with pytest.raises(UserError, match="cannot be fetched .* give --source"):
        download.download(tmp_path / "other", progress=False, url=url, sha256=good)


def test_checksum_file_agrees():
    listed = (Path(download.__file__).parent / "checksums.txt").read_text().split()
    assert listed == [download.SHA256, "arcade.zip"]


def test_sheet(archive, tmp_path, capsys):
    output = tmp_path / "sheet.png"
    assert sheet.main(["--source", str(archive), "--output", str(output), "--pairs", "2"]) == 0
    with PIL.Image.open(output) as image:
        assert image.width == 3 * 608
    assert sheet.main(["--source", str(archive), "--output", str(tmp_path / "a.xyz")]) == 2
    assert "must end in" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not REAL.exists(), reason="../shared/data/arcade is absent")
def test_real_copy(tmp_path):
    made = build("arcade", data_dir=tmp_path, source=REAL, progress=False)
    assert made.sizes == {"train": 991, "val": 200, "unlabelled": 841}
    rows = list(csv.DictReader((made.directory / "removed.csv").open()))
    assert len(rows) == 368
    repeats = [r for r in rows if r["id"].startswith("stenosis") and r["kept_id"][:6] == "syntax"]
    assert 0.25 < len(repeats) / 1200 < 0.4
    assert made.labelled_ids(500, draw=4)[:18] == made.labelled_ids(18, draw=4)
