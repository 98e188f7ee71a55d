"""Pools of a data set and of a folder, and what is irregular in a folder."""

import hashlib
import pickle

import cv2
import numpy as np
import pytest

from cmunet_jax.imaging import dicom, files
from cmunet_jax.selection import pool as pools
from tests.data.fakes import angiogram
from tests.imaging import xa
from tests.imaging.special import deadline, special
from tfds_angio.errors import UserError

PATTERN = r"^(?P<patient>[^_]+)_"


def save(path, seed=0, size=48):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), angiogram(size, size, seed))


def of_folder(folder, **changes):
    options = {"pattern": PATTERN, "masks": "labelled"} | changes
    return pools.of_folder(folder, **options)


def test_a_plain_folder_with_folders_in_it(tmp_path):
    for number, name in enumerate(("b_2.png", "b_1.tif", "sub/a_1.bmp", "lone.png")):
        save(tmp_path / name, number)
    np.save(tmp_path / "c_1.npy", angiogram(40, 56, 9).astype(np.uint16) * 16)
    (tmp_path / "notes.txt").write_text("x")
    pool = of_folder(tmp_path)
    assert [i.id for i in pool.items] == ["b_1", "b_2", "c_1", "lone", "sub/a_1"]
    assert [i.patient for i in pool.items] == ["b", "b", "c", "", "a"]
    assert not pool.labelled.any()
    first = pool.read(1)
    np.testing.assert_array_equal(first.image, angiogram(48, 48, 0))
    assert first.sha256 == hashlib.sha256((tmp_path / "b_2.png").read_bytes()).hexdigest()
    assert (pool.read(2).image.shape, pool.read(2).image.dtype) == ((40, 56), np.uint8)
    assert {(p.file, p.problem) for p in pool.problems} == {
        ("notes.txt", "not an image type that is read"),
        ("lone.png", "no patient id"),
    }
    assert [i.id for i in pool.take([0, 3]).items] == ["b_1", "lone"]
    np.testing.assert_array_equal(pool.take([1]).read(0).image, first.image)


def test_a_folder_of_images_and_masks(tmp_path):
    for name in ("imgs/p_1.png", "imgs/p_2.png", "masks/p_2.png"):
        save(tmp_path / name)
    assert of_folder(tmp_path).labelled.tolist() == [False, True]
    assert of_folder(tmp_path, masks="ignore").labelled.tolist() == [False, False]
    beside = of_folder(tmp_path / "imgs")
    assert [i.id for i in beside.items] == ["p_1", "p_2"] and not beside.labelled.any()


def test_masks_in_a_plain_folder_are_no_images(tmp_path):
    for name in ("p_1.png", "masks/p_1.png"):
        save(tmp_path / name)
    pool = of_folder(tmp_path)
    assert [(i.id, i.labelled) for i in pool.items] == [("p_1", True)]


def test_a_manifest_says_whose_it_is(tmp_path):
    save(tmp_path / "images" / "one.png")
    (tmp_path / "who.csv").write_text("file,patient,centre\none.png,p7,north\n")
    pool = of_folder(tmp_path / "images", manifest=str(tmp_path / "who.csv"))
    assert [(i.patient, i.centre) for i in pool.items] == [("p7", "north")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"no image", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "corrupt or truncated|not an image"),
        (None, "constant image"),
    ],
)
def test_an_unreadable_image_says_why(tmp_path, content, reason):
    path = tmp_path / "a_1.png"
    if content is None:
        cv2.imwrite(str(path), np.zeros((64, 64), np.uint8))
    else:
        path.write_bytes(content)
    with pytest.raises(pools.Unreadable, match=reason):
        of_folder(tmp_path).read(0)


def test_a_pipe_is_named_and_not_opened(tmp_path):
    save(tmp_path / "a_1.png")
    special(tmp_path / "b_pipe.png")
    special(tmp_path / "c_socket.dcm")
    with deadline(10):
        pool = of_folder(tmp_path)
        assert [item.id for item in pool.items] == ["a_1", "b_pipe"]
        assert pool.about["folder"] == ""  # what is called as a DICOM may be called as the patient
        with pytest.raises(pools.Unreadable, match="is not a file"):
            pool.read(1)
    ((name, reason),) = pool.failed
    assert name == "file-special" and reason.startswith("is not a file")


def dicom_run(path, count=2, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    changes = {"planted": False} | changes
    xa.write(path.parent, xa.run(count, height=40, width=48), name=path.name, **changes)
    return f"dicom-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def test_a_dicom_is_found_by_its_content_and_called_by_its_digest(tmp_path, monkeypatch):
    save(tmp_path / "a_1.png")
    plain = dicom_run(tmp_path / "Mustermann" / "IM000001", 3)
    called = dicom_run(tmp_path / "Erika_1951.png", 1)  # a DICOM, whatever its name says
    (tmp_path / "IM000002").write_bytes(b"cut while it was copied")
    withheld = dicom_run(tmp_path / "Erika.dcm", 4, elements={"BurnedInAnnotation": "YES"})
    hashed, digest = [], hashlib.file_digest
    monkeypatch.setattr(
        dicom.hashlib, "file_digest", lambda file, how: hashed.append(how) or digest(file, how)
    )
    monkeypatch.setattr(files, "open_file", None)  # no image is read to list a folder
    pool = of_folder(tmp_path)
    frames = [f"{plain}_{index:04d}" for index in range(3)]
    assert [i.id for i in pool.items] == sorted(["a_1", called, *frames])
    patients = {i.id: i.patient for i in pool.items}
    assert patients == {"a_1": "a", called: called} | dict.fromkeys(frames, plain)
    assert not any(i.path for i in pool.items if i.id != "a_1")
    cut = f"file-{hashlib.sha256(b'cut while it was copied').hexdigest()[:12]}"
    reasons = dict(pool.failed)
    assert set(reasons) == {cut, withheld}
    assert "truncated" in reasons[cut] and "burned_in=keep" in reasons[withheld]
    # What is written somewhere names no file; the screen does.
    written = repr((pool.items, pool.about, pool.failed))
    assert not any(word in written for word in ("Muster", "Erika", "IM00", str(tmp_path) + "'"))
    assert (str(tmp_path / "Mustermann" / "IM000001"), plain) in pool.names
    assert {p.file for p in pool.problems} == {"Erika.dcm", "IM000002"}
    count = len(hashed)
    for at, item in enumerate(pool.items):
        if item.id in frames:
            picture = pool.read(at)
            raw = xa.run(3, height=40, width=48)[frames.index(item.id)]
            assert picture.image.shape == raw.shape and picture.image.dtype == np.uint8
            assert np.corrcoef(picture.image.ravel(), raw.ravel())[0, 1] > 0.99
            assert picture.sha256.startswith(plain.removeprefix("dicom-"))
    assert len(hashed) == count  # a file is read through once


def test_a_folder_of_dicoms_only_with_a_manifest(tmp_path):
    first, second = dicom_run(tmp_path / "d" / "one", 1), dicom_run(tmp_path / "d" / "two", 2)
    (tmp_path / "who.csv").write_text("file,patient,centre\none,p7,north\n")
    pool = of_folder(tmp_path / "d", manifest=str(tmp_path / "who.csv"))
    assert {i.id: (i.patient, i.centre) for i in pool.items} == {
        first: ("p7", "north"),
        f"{second}_0000": (second, ""),
        f"{second}_0001": (second, ""),
    }
    assert pool.about["folder"] == pool.about["manifest"] == ""


def test_copies_of_a_dicom_are_of_one_patient(tmp_path):
    name = dicom_run(tmp_path / "one", 1)
    (tmp_path / "two").write_bytes((tmp_path / "one").read_bytes())
    pool = of_folder(tmp_path)
    assert [(i.id, i.patient) for i in pool.items] == [(name, name), (f"{name}-2", name)]


def test_no_folder_and_no_images(tmp_path):
    with pytest.raises(UserError, match="config.input=.*nowhere is no folder"):
        of_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no .npy, .png"):
        of_folder(tmp_path)
    save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"has no group \(\?P<patient>"):
        of_folder(tmp_path, pattern="a")


def test_a_data_set(tiny_dataset):
    split = "unlabelled+train"
    pool = pools.of_dataset(tiny_dataset, split, masks="labelled")
    ids = [item.id for item in pool.items]
    assert ids == sorted(tiny_dataset.ids(split))
    train = set(tiny_dataset.ids("train"))
    assert [item.labelled for item in pool.items] == [i in train for i in ids]
    patient_of = dict(zip(tiny_dataset.ids(split), tiny_dataset.patients(split)))
    assert [item.patient for item in pool.items] == [patient_of[i] for i in ids]
    source = tiny_dataset.source(split)
    place = {i: at for at, i in enumerate(tiny_dataset.ids(split))}
    for at in (0, len(ids) - 1):
        np.testing.assert_array_equal(pool.read(at).image, source[place[ids[at]]]["image"][..., 0])
    assert not pools.of_dataset(tiny_dataset, split, masks="ignore").labelled.any()
    assert pool.about["fingerprint"] == tiny_dataset.fingerprint
    assert pickle.loads(pickle.dumps(pool.items)) == pool.items


def test_images_that_are_labelled_elsewhere(tiny_dataset):
    pool = pools.of_dataset(tiny_dataset, "unlabelled", masks="labelled")
    listed = [pool.items[3].id, pool.items[0].id]
    marked = pools.mark_labelled(pool, listed, path="x")
    assert np.flatnonzero(marked.labelled).tolist() == [0, 3]
    with pytest.raises(UserError, match="config.labelled=x: 1 of its 2 ids .* the first is 'z'"):
        pools.mark_labelled(pool, [listed[0], "z"], path="x")
