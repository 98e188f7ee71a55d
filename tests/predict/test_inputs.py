"""What files, folders and globs mean, and what each kind of file becomes."""

import hashlib
import struct

import cv2
import numpy as np
import PIL.Image
import pytest

from cmunet_jax.imaging import files, inputs, tiff
from cmunet_jax.imaging.case import UnreadableCase
from tests.imaging import xa
from tests.imaging.special import deadline, special

GREY = np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)


def png(path, image=GREY):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def paths(found):
    return [item.path for item in found.inputs]


def test_folders_globs_and_files_in_a_fixed_order_each_file_once(tmp_path):
    a, b = png(tmp_path / "x" / "b" / "2.png"), png(tmp_path / "x" / "a.bmp")
    c, hidden = png(tmp_path / "c.tif"), png(tmp_path / "x" / ".hidden.png")
    (tmp_path / "x" / "notes.txt").write_text("")
    found = inputs.find(f"{c}, {tmp_path / 'x'},{tmp_path}/**/*.png,{a}")
    assert paths(found) == [c, b, a] and not found.refused
    assert hidden not in paths(found) and [p.name for p in found.ignored] == ["notes.txt"]


def test_a_path_with_a_comma_is_understood_alone(tmp_path):
    path = png(tmp_path / "left, right.png")
    assert paths(inputs.find(str(path))) == [path]


@pytest.mark.parametrize("glob", ["we[,]ird.png", "we[!a,]*.png", "we[],]ird.png"])
def test_a_comma_in_the_brackets_of_a_glob_divides_nothing(glob, tmp_path):
    other, there = (
        png(tmp_path / "a.png"),
        png(tmp_path / ("weird.png" if "!" in glob else "we,ird.png")),
    )
    assert paths(inputs.find(f"{other},{tmp_path / glob}")) == [other, there]
    left, right = png(tmp_path / "a[1" / "b.png"), png(tmp_path / "c" / "d].png")
    assert paths(inputs.find(f"{left},{right}")) == [left, right]


def test_copies_that_fail_are_told_apart():
    names = ["input 1", "file-ab", "input 1", "file-ab", "file-cd", "file-ab"]
    numbered = inputs.numbered([inputs.Refused("path", name, "why") for name in names])
    assert [one.input for one in numbered] == [
        "input 1", "file-ab", "input 1", "file-ab-2", "file-cd", "file-ab-3",
    ]  # fmt: skip


def test_what_cannot_be_used_is_refused_with_the_reason(tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "film.MP4").write_bytes(b"film")
    (tmp_path / "table.csv").write_text("1")
    text = f"{tmp_path}/none,{tmp_path}/Doe.dcm,{tmp_path}/*.jpg,{tmp_path},{tmp_path}/table.csv"
    found = inputs.find(text)
    reasons = [(refused.input, refused.reason) for refused in found.refused]
    digest = hashlib.sha256(b"film").hexdigest()[:12]
    assert reasons[0] == ("input 1", "a folder without images")
    assert reasons[1] == ("input 2", "no such file or folder")
    assert reasons[2] == ("input 3", "matches nothing")
    assert reasons[3][0] == f"file-{digest}" and "a video" in reasons[3][1]
    assert not found.inputs and len(reasons) == 4 and [p.name for p in found.ignored]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("IM0001", b"", "empty file"),
        ("IM0001", b"\0" * 60, "truncated"),
        ("IM0001.gz", b"\x1f\x8b\x08", "truncated"),
        ("1.2.840.113619.2.5", b"\0" * 60, "truncated"),
        ("scan.dat", b"", "empty file"),
        ("film.mp4", b"", "empty file"),
        ("scan.dat", b"data", None),
        ("README", b"text", None),
        ("License", b"", None),
        ("notes.txt", b"", None),
        ("DICOMDIR", b"", None),
        (".IM0001", b"", None),
    ],
)
def test_in_a_folder_what_may_be_a_cut_image_fails_and_other_files_do_not(
    name, content, reason, tmp_path
):
    good = png(tmp_path / "good.png")
    (tmp_path / name).write_bytes(content)
    found = inputs.find(str(tmp_path))
    assert paths(found) == [good]
    if reason is None:
        assert not found.refused
    else:
        (refused,) = found.refused
        assert reason in refused.reason and not found.ignored
        assert refused.input.startswith("file-") and name not in refused.input


@pytest.mark.parametrize("name", ["pipe.png", "pipe.DCM", "pipe.npy", "socket.tif", "zero.jpg"])
def test_a_pipe_a_socket_and_a_device_are_named_and_not_opened(name, tmp_path):
    good, path = png(tmp_path / "in" / "good.png"), tmp_path / "in" / name
    special(path)
    with deadline(10):
        for text in (tmp_path / "in", path, f"{tmp_path}/in/*"):
            found = inputs.find(str(text))
            (refused,) = found.refused
            assert (refused.path, refused.input) == (str(path), "file-special")
            assert refused.reason.startswith("is not a file")
            assert paths(found) == ([] if text == path else [good])


def test_of_pipes_that_are_called_as_no_image_only_one_that_is_listed_is_named(tmp_path):
    png(tmp_path / "good.png")
    special(tmp_path / "pipe")
    with deadline(10):
        found = inputs.find(str(tmp_path))
        assert not found.refused and [p.name for p in found.ignored] == ["pipe"]
        (refused,) = inputs.find(str(tmp_path / "pipe")).refused
    assert refused.reason.startswith("is not a file")


def test_names_are_distinct_and_do_not_depend_on_the_order(tmp_path):
    one, two = png(tmp_path / "a" / "1.png"), png(tmp_path / "b" / "1.png", GREY[::-1])
    copy = png(tmp_path / "c" / "1.png")

    def named(text):
        taken: set[str] = set()
        cases = [inputs.distinct(inputs.open_case(i), taken) for i in inputs.find(text).inputs]
        return {case.path: case.id for case in cases}

    forward, backward = named(f"{one},{two},{copy}"), named(f"{two},{copy},{one}")
    assert len(set(forward.values())) == 3 and forward[two] == backward[two]
    assert forward[copy] == f"{forward[one]}-2"
    assert named(str(one)) == {one: "1"}


def test_an_image_called_as_a_frame_of_a_run_gets_another_name(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 9), np.uint8))
    image = png(tmp_path / "a_0001.png")
    taken: set[str] = set()
    cases = [
        inputs.distinct(inputs.open_case(item), taken)
        for item in inputs.find(f"{tmp_path / 'a.npy'},{image}").inputs
    ]
    assert [case.id for case in cases] == ["a", "a_0001-2"]


@pytest.mark.parametrize(
    ("stem", "name"),
    [("a b/ü", "a-b-u"), ("..", "image"), ("血管", "image"), ("A.1_x-2", "A.1_x-2")],
)
def test_names_hold_nothing_that_a_shell_or_a_page_reads(stem, name):
    assert inputs.clean_name(stem) == name


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.dstack([GREY] * 3 + [np.full_like(GREY, 9)]), GREY),  # RGBA of equal colours
        (GREY.astype(np.uint16) * 257, GREY.astype(np.uint16) * 257),
        (GREY[:15, :15], GREY[:15, :15]),
    ],
)
def test_images_keep_their_levels(image, expected, tmp_path):
    case = files.open_file(png(tmp_path / "i.png", image), kind="image", name="i")
    assert (case.frames, case.height, case.width) == (1, *expected.shape)
    assert case.read(0).dtype == expected.dtype
    np.testing.assert_array_equal(case.read(0), expected)
    assert case.sha256 == hashlib.sha256(case.path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("shape", "frames", "size"),
    [((20, 30), 1, (20, 30)), ((20, 30, 3), 1, (20, 30)), ((5, 20, 30), 5, (20, 30)),
     ((5, 20, 30, 3), 5, (20, 30)), ((1, 20, 30), 1, (20, 30))],
)  # fmt: skip
def test_arrays_are_images_or_runs(shape, frames, size, tmp_path):
    array = np.random.default_rng(0).integers(0, 99, shape).astype(np.int64)
    np.save(tmp_path / "a.npy", array)
    case = files.open_file(tmp_path / "a.npy", kind="array", name="a")
    assert (case.frames, (case.height, case.width)) == (frames, size)
    last = case.read(frames - 1)
    assert last.shape == size and last.dtype == np.float32
    if len(shape) == 3 and shape[-1] > 4:
        np.testing.assert_array_equal(last, array[-1])


def test_a_tiff_of_several_pages_is_a_run(tmp_path):
    pages = [GREY, GREY[::-1], GREY // 2]
    assert cv2.imwritemulti(str(tmp_path / "t.tif"), pages)
    case = files.open_file(tmp_path / "t.tif", kind="image", name="t")
    assert case.frames == 3
    for index, page in enumerate(pages):
        np.testing.assert_array_equal(case.read(index), page)


def test_all_pages_of_a_turned_tiff_are_turned(tmp_path):
    first, *others = [PIL.Image.fromarray(page) for page in (GREY, GREY // 2)]
    name = str(tmp_path / "t.tif")
    first.save(name, save_all=True, append_images=others, tiffinfo={0x0112: 6})
    case = files.open_file(tmp_path / "t.tif", kind="image", name="t")
    assert "EXIF orientation 6" in case.notes[0]
    for index, page in enumerate((GREY, GREY // 2)):
        np.testing.assert_array_equal(case.read(index), np.rot90(page, -1))


def pages(order="<", *, big=False, count=3):
    """A TIFF of pages of noise, 16 px square, and the places of the offsets of its directories."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    head += struct.pack(f"{order}HH", 8, 0) if big else b""
    word, number, entry = ("Q", "Q", "HHQ") if big else ("I", "H", "HHI")
    pixels = np.random.default_rng(0).integers(0, 255, (count, 16, 16), dtype=np.uint8)
    data, links = bytearray(head), [len(head)]
    data += struct.pack(f"{order}{word}", 0)
    for page in pixels:
        strip = len(data)
        data += page.tobytes()
        struct.pack_into(f"{order}{word}", data, links[-1], len(data))
        tags = ((256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (273, strip), (277, 1),
                (278, 16), (279, 256))  # fmt: skip
        data += struct.pack(f"{order}{number}", len(tags))
        for tag, value in tags:
            data += struct.pack(f"{order}{entry}{word}", tag, 16 if big else 4, 1, value)
        links.append(len(data))
        data += struct.pack(f"{order}{word}", 0)
    return data, links, pixels


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_several_pages_that_is_cut_or_broken_anywhere_fails_whole(order, big, tmp_path):
    path = tmp_path / "t.tif"

    def frames(data):
        path.write_bytes(data)
        case = files.open_file(path, kind="image", name="t")
        return [case.read(index) for index in range(case.frames)]

    data, links, pixels = pages(order, big=big)
    np.testing.assert_array_equal(frames(data), pixels)
    for length in [*range(17, len(data), 61), links[2], len(data) - 1]:
        with pytest.raises(UnreadableCase, match="truncated|not an image"):
            frames(data[:length])
    word = f"{order}{'Q' if big else 'I'}"
    for target, reason in ((2**31, "truncated"), (len(data) - 4, "truncated"), (None, "circle")):
        broken = bytearray(data)
        first = struct.unpack_from(word, data, links[0])[0]
        struct.pack_into(word, broken, links[2], first if target is None else target)
        with pytest.raises(UnreadableCase, match=reason):
            frames(broken)


def test_a_tiff_of_too_many_pages_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff, "MOST_PAGES", 2)
    (tmp_path / "t.tif").write_bytes(pages()[0])
    with pytest.raises(UnreadableCase, match="more than 2 pages"):
        files.open_file(tmp_path / "t.tif", kind="image", name="t")


def _save(values):
    return lambda path: np.save(path, values)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("zero.png", lambda p: p.write_bytes(b""), "empty file"),
        ("zero.npy", lambda p: p.write_bytes(b""), "empty file"),
        ("text.png", lambda p: p.write_bytes(b"hello"), "not an image"),
        ("cut.png", lambda p: p.write_bytes(png(p).read_bytes()[:-40]), "truncated"),
        ("cut.npy", lambda p: p.write_bytes(b"\x93NUMPY\x01\x00v"), "corrupt"),
        ("words.npy", _save(np.array(["a"])), "not of numbers"),
        ("objects.npy", _save(np.array([None])), "corrupt or unsupported"),
        ("none.npy", _save(np.zeros((0, 5))), "no pixels"),
        ("many.npy", _save(np.zeros((2, 3, 4, 5, 6))), "neither"),
        ("nan.npy", _save(np.full((9, 9), np.nan)), "NaN"),
        ("nan_run.npy", _save(np.full((2, 9, 9), np.nan)), "NaN"),
        ("huge.npy", _save(np.full((9, 9), 1e300)), "infinity"),
    ],
)
def test_bad_files_give_a_reason(name, make, reason, tmp_path):
    make(tmp_path / name)
    (item,) = inputs.find(str(tmp_path / name)).inputs
    with pytest.raises(UnreadableCase, match=reason):
        inputs.open_case(item).read(0)


def test_a_file_that_vanishes_is_a_reason_without_its_path(tmp_path):
    path = xa.write(tmp_path, xa.run(2), bits=12)
    (item,) = inputs.find(str(path)).inputs
    case = inputs.open_case(item)
    path.unlink()
    for use in (lambda: inputs.read_frame(case, 1), lambda: inputs.open_case(item)):
        with pytest.raises(UnreadableCase) as error:
            use()
        assert "Mustermann" not in str(error.value) and str(error.value)


@pytest.mark.parametrize("name", ["ERIKA.png", "ERIKA.JPG", "ERIKA.tif", "ERIKA.npy"])
def test_a_dicom_that_is_called_as_an_image_is_a_dicom(name, tmp_path):
    written = xa.write(tmp_path, xa.run(1), bits=12)
    path = written.rename(tmp_path / name)
    (item,) = inputs.find(str(tmp_path)).inputs
    assert inputs.open_case(item).kind == "dicom" and "ERIKA" not in item.label
    path.write_bytes(path.read_bytes()[:1500])
    (item,) = inputs.find(str(path)).inputs
    assert item.kind == "dicom" and "ERIKA" not in item.label
    with pytest.raises(UnreadableCase):
        inputs.open_case(item)


def test_a_dicom_is_known_by_its_content_and_named_by_its_digest(tmp_path):
    path = xa.write(tmp_path, xa.run(2), bits=12, name="Mustermann")
    (item,) = inputs.find(str(tmp_path)).inputs
    case = inputs.open_case(item)
    assert case.kind == "dicom" and case.frames == 2
    assert case.id == item.label == f"dicom-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
