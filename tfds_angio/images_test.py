"""Broken images, of which we speak and not OpenCV; animated and turned ones."""

import io
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from tfds_angio import images
from tfds_angio.angio_folder import load, scan

REPOSITORY = Path(__file__).parent.parent
CODE = r"""
from tfds_angio import images
try:
    images.decode(b"\x89PNG\r\n\x1a\nbroken", ".png")
except images.UnreadableImage as error:
    print(error)
"""


@pytest.mark.parametrize(("level", "shown"), [(None, False), ("INFO", True)])
def test_opencv_says_nothing_about_a_broken_file_unless_it_is_told_to(level, shown):
    environment = {k: v for k, v in os.environ.items() if k != "OPENCV_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=environment | ({} if level is None else {"OPENCV_LOG_LEVEL": level}),
    )
    assert (done.returncode, done.stdout) == (0, "not an image\n")
    assert bool(done.stderr) == shown


def encoded(kind, values, orientation):
    """A file of `values` as they are stored, which states an orientation."""
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stated = {"tiffinfo": exif} if kind == "TIFF" else {"exif": exif.tobytes()}
    file = io.BytesIO()
    PIL.Image.fromarray(values).save(file, kind, **stated)
    return file.getvalue()


def stored_for(shown, orientation):
    """What a camera stores of a picture: TIFF 6.0 says where row 0 and column 0 are shown."""
    row, column = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }[orientation]  # fmt: skip
    if row in ("left", "right"):
        shown, row, column = (
            shown.T,
            *(
                {"left": "top", "right": "bottom", "top": "left", "bottom": "right"}[side]
                for side in (row, column)
            ),
        )
    shown = shown[::-1] if row == "bottom" else shown
    return np.ascontiguousarray(shown[:, ::-1] if column == "right" else shown)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_picture_is_read_as_viewers_show_it(kind, orientation):
    smooth = np.add.outer(8 * np.arange(16), 5 * np.arange(24)).astype(np.uint8)
    data = encoded(kind, stored_for(smooth, orientation), orientation)
    array, stated = images.decode_upright(data, f".{kind.lower()}")
    assert stated == orientation and array.shape == smooth.shape
    assert np.abs(array.astype(int) - smooth).max() <= (8 if kind == "JPEG" else 0)
    if kind != "JPEG":
        deep = smooth.astype(np.uint16) * 200
        data = encoded(kind, stored_for(deep, orientation), orientation)
        np.testing.assert_array_equal(images.decode(data, ".png"), deep)


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0garbage", b"Exif\0\0II*\0"]
)
def test_damaged_exif_turns_nothing(exif):
    file = io.BytesIO()
    PIL.Image.fromarray(np.zeros((4, 6), np.uint8)).save(file, "JPEG", exif=exif)
    array, stated = images.decode_upright(file.getvalue(), ".jpg")
    assert array.shape == (4, 6) and stated == 1


@pytest.mark.parametrize("orientation", [3, 6])
def test_an_image_and_its_mask_are_turned_alike_and_both_named(tmp_path, orientation):
    shown = np.add.outer(3 * np.arange(40), 2 * np.arange(60)).astype(np.uint8)
    mask = np.zeros((40, 60), np.uint8)
    mask[4:9, 10:50] = 255
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG", stored_for(shown, orientation), orientation))
    plain = cv2.imencode(".png", mask)[1].tobytes()
    turned = encoded("PNG", stored_for(mask, orientation), orientation)
    for data, named in ((plain, 1), (turned, 2)):
        (tmp_path / "m.png").write_bytes(data)
        entry = scan.Entry("a", tmp_path / "a.jpg", tmp_path / "m.png")
        loaded = load.load(entry, root=tmp_path, percentile=0.1)
        assert loaded.image is not None
        np.testing.assert_array_equal(loaded.mask, mask > 0)
        assert np.abs(loaded.image.astype(int) - shown).max() <= 8
        said = [p for p in loaded.problems if p.problem == f"EXIF orientation {orientation}"]
        assert len(said) == named and said[0].severity == "warning"


@pytest.mark.parametrize(("kind", "count"), [("PNG", 3), ("PNG", 1), ("GIF", 2)])
def test_of_an_animation_no_frame_passes_for_the_whole(kind, count):
    frames = [PIL.Image.fromarray(np.full((8, 9), 40 * at, np.uint8)) for at in range(count)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    if count == 1:
        assert images.decode(file.getvalue(), ".png").shape == (8, 9)
        return
    with pytest.raises(images.UnreadableImage, match=f"animated {kind} of {count} frames.*DICOM"):
        images.decode(file.getvalue(), ".png")
