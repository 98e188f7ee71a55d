"""What is written of a selection, and what is never overwritten."""

import csv
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from cmunet_jax.selection import features, methods, output, pictures
from cmunet_jax.selection.pool import Item, Picture, Pool
from tests.data.fakes import angiogram
from tests.selection.groups import blobs
from tfds_angio.errors import UserError


def embedded(ids, path=None):
    items = tuple(Item(i, "p", "", at == 0, path) for at, i in enumerate(ids))
    pool = Pool(items, lambda at: Picture(angiogram(40, 48, at), ""), {})
    vectors, _ = blobs((len(ids),))
    return features.Embedded(pool, vectors, ("",) * len(ids), (("gone", "empty file"),))


def chosen(*indices):
    choices = tuple(methods.Choice(i, -1, 0.5, "because") for i in indices)
    return methods.Chosen(choices, np.full(9, -1), {"radius": np.inf})


def write(folder, ids, *indices, **more):
    return output.write(folder, embedded(ids, **more), chosen(*indices), {"k": 2}, title="t")


def listed(folder):
    with (folder / output.LIST).open(newline="") as file:
        return list(csv.DictReader(file))


def test_list_record_pictures_and_images(tmp_path):
    ids = ["zero", "a/b c", "a-b c", "../up", "=x"]
    write(tmp_path / "to", ids, 2, 1, 3)
    rows = listed(tmp_path / "to")
    assert [(row["rank"], row["id"]) for row in rows] == [
        ("1", "a-b c"), ("2", "a/b c"), ("3", "../up")
    ]  # fmt: skip
    for row, at in zip(rows, (2, 1, 3)):
        path = (tmp_path / "to" / row["path"]).resolve()
        assert path.parent == tmp_path / "to" / "images"
        np.testing.assert_array_equal(cv2.imread(str(path), -1), angiogram(40, 48, at))
    record = json.loads((tmp_path / "to" / output.RECORD).read_text())
    assert record["ids"] == ["a-b c", "a/b c", "../up"] and record["labelled"] == ["zero"]
    assert record["failed"] == [{"id": "gone", "reason": "empty file"}]
    assert record["settled"] == {"radius": None} and record["k"] == 2
    assert sorted(p.name for p in (tmp_path / "to").iterdir()) == sorted(
        [output.LIST, output.RECORD, output.SHEET, output.MAP, output.IMAGES]
    )
    for name in (output.SHEET, output.MAP):
        with Image.open(tmp_path / "to" / name) as picture:
            assert min(picture.size) > 200


def test_of_files_the_list_names_the_files(tmp_path):
    write(tmp_path / "to", ["a", "b"], 1, path=tmp_path / "b.png")
    assert [row["path"] for row in listed(tmp_path / "to")] == [str(tmp_path / "b.png")]
    assert not (tmp_path / "to" / output.IMAGES).exists()


def test_a_selection_is_overwritten_only_when_asked_for(tmp_path):
    write(tmp_path, ["a", "b", "c"], 1, 2)
    with pytest.raises(UserError, match="holds a selection.*config.overwrite=True"):
        output.check(tmp_path, overwrite=False)
    output.check(tmp_path, overwrite=True)
    (tmp_path / "images" / "mine.png").write_bytes(b"x")
    write(tmp_path, ["a", "b", "c"], 2)
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["c.png", "mine.png"]
    assert [row["id"] for row in listed(tmp_path)] == ["c"]


def test_nothing_is_left_of_a_write_that_fails(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures, "draw_map", full)
    with pytest.raises(UserError, match="cannot be written: No space left"):
        write(tmp_path, ["a", "b"], 1)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="is a file"):
        output.check(tmp_path / "x", overwrite=False)


def test_file_names_are_plain_and_distinct():
    names = output.file_names(["a/1", "a-1", "A-1", "ä", "...", ""])
    assert len({name.lower() for name in names}) == 6
    assert all(set(n) <= set("aA1-.image23456") and n[0] not in ".-" for n in names)


def test_the_plane_of_principal_components():
    """Against the covariance's eigenvectors, and with a sign that does not flip."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 4)) * [5, 2, 0.5, 0.1]
    flat, shares = pictures.plane(points)
    values, vectors = np.linalg.eigh(np.cov(points.T, bias=True))
    np.testing.assert_allclose(shares, values[:-3:-1] / values.sum())
    expected = (points - points.mean(0)) @ vectors[:, :-3:-1]
    np.testing.assert_allclose(np.abs(flat), np.abs(expected))
    np.testing.assert_allclose(pictures.plane(points[::-1])[0], flat[::-1], atol=1e-9)
    assert pictures.plane(np.ones((3, 1)))[0].shape == (3, 2)


@pytest.mark.parametrize("name", [output.MAP, output.RECORD, output.SHEET, output.IMAGES])
def test_files_of_no_selection_are_not_replaced(tmp_path, name):
    (tmp_path / name).mkdir()
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"{name} is there, of no selection"):
            output.check(tmp_path, overwrite=overwrite)
