"""Prepared splits: right rows, a cache that is used, checked and never in the way."""

import os
import pickle
import time

import numpy as np
import pytest

from cmunet_jax.data import cache
from cmunet_jax.data.prepared import OnTheFly, PreparedSplit, prepare
from cmunet_jax.data.preprocessing import create
from tests.data.fakes import FakeDataset, Unreadable
from tfds_angio.errors import UserError

CHAIN = create({"name": "fixed", "size": 64})


def quiet(dataset, **options) -> PreparedSplit:
    return prepare(dataset, "train", options.pop("chain", CHAIN), progress=False, **options)


def assert_same(one: PreparedSplit, other: PreparedSplit) -> None:
    assert one.arrays().keys() == other.arrays().keys()
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, other.arrays()[name])
    assert one.ids == other.ids and one.patients == other.patients
    assert one.geometries == other.geometries and one.digest == other.digest


def entry_of(dataset):
    (entry,) = (dataset.directory / "prepared").iterdir()
    return entry


@pytest.mark.parametrize("name,dtype", [("fixed", np.uint8), ("paper", np.uint16)])
def test_rows_are_what_the_chain_gives(tmp_path, name, dtype):
    chain = create({"name": name, "size": 64})
    dataset = FakeDataset(tmp_path, 5)
    split = quiet(dataset, chain=chain)
    assert len(split) == 5 and split.code.dtype == dtype and split.mask.dtype == np.uint8
    for i, example in enumerate(dataset.source("train")[i] for i in range(5)):
        expected = chain.apply(example["image"])
        np.testing.assert_array_equal(split.code[i], expected.code)
        assert split.scale[i] == expected.scale and split.offset[i] == expected.offset
        assert split.geometries[i] == expected.geometry
        np.testing.assert_array_equal(
            split.mask[i], chain.apply_mask(example["mask"], expected.geometry)
        )
    assert split.ids[4] == "image4" and split.patients == ["patient0"] * 2 + ["patient1"] * 2 + [
        "patient2"
    ]
    assert split.nbytes == sum(array.nbytes for array in split.arrays().values())


def test_second_time_nothing_is_decoded(tmp_path):
    first = quiet(FakeDataset(tmp_path))
    assert_same(quiet(Unreadable(tmp_path)), first)


def test_order_and_choice_of_ids(tmp_path):
    dataset = FakeDataset(tmp_path)
    whole = quiet(dataset)
    some = quiet(dataset, ids=["image7", "image2"])
    assert some.ids == ["image7", "image2"] and some.patients == ["patient3", "patient1"]
    np.testing.assert_array_equal(some.code, whole.code[[7, 2]])


def test_what_the_result_depends_on_is_in_the_digest(tmp_path):
    dataset = FakeDataset(tmp_path, 6)
    digests = {
        quiet(dataset).digest,
        quiet(dataset, with_masks=False).digest,
        quiet(dataset, ids=dataset.ids("train")[:3]).digest,
        quiet(dataset, chain=create({"name": "fixed", "size": 64, "flatten": 0.1})).digest,
        quiet(FakeDataset(tmp_path, 4)).digest,
    }
    assert len(digests) == 5


def test_without_masks_there_is_no_mask(tmp_path):
    split = quiet(FakeDataset(tmp_path, 3, labelled=False), with_masks=False)
    assert split.mask is None and "mask" not in split.arrays()


def test_missing_masks_name_the_image(tmp_path):
    with pytest.raises(UserError, match="image0.*no mask"):
        quiet(FakeDataset(tmp_path, 3, labelled=False))


@pytest.mark.parametrize(
    "ids,word",
    [(["image1", "image1"], "repeated"), (["who"], "'who'"), ([], "no images")],
)
def test_unusable_ids_are_refused(tmp_path, ids, word):
    with pytest.raises(UserError, match=word):
        quiet(FakeDataset(tmp_path), ids=ids)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "swap"])
def test_damaged_cache_is_made_again(tmp_path, damage):
    dataset = FakeDataset(tmp_path, 4)
    quiet(dataset)
    expected = quiet(dataset, cache_dir=tmp_path / "elsewhere")
    entry = entry_of(dataset)
    file = entry / "code.npy"
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[-5] ^= 4
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "remove":
        file.unlink()
    elif damage == "manifest":
        (entry / "manifest.json").write_text("{")
    else:
        (entry / "code.npy").write_bytes((entry / "mask.npy").read_bytes())
    with pytest.raises(AssertionError, match="decoded again"):
        quiet(Unreadable(tmp_path, 4))
    assert_same(quiet(dataset), expected)
    assert_same(quiet(Unreadable(tmp_path, 4)), expected)
    assert entry_of(dataset) == entry  # one entry, nothing left over


def test_killed_writer_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    dataset = FakeDataset(tmp_path, 3)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        quiet(dataset)
    monkeypatch.undo()
    (left,) = (dataset.directory / "prepared").iterdir()
    assert left.name.startswith(".writing-")
    os.utime(left, (0, time.time() - 7200))
    quiet(dataset)
    assert not left.exists() and entry_of(dataset).is_dir()


def test_unwritable_folder_costs_the_cache_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("")
    split = quiet(FakeDataset(tmp_path, 3), cache_dir=tmp_path / "file" / "below")
    assert_same(split, quiet(FakeDataset(tmp_path, 3)))


def test_cache_returns_what_was_saved_and_only_for_its_digest(tmp_path):
    saved = cache.save(tmp_path, "a" * 64, {"x": np.arange(5)})
    np.testing.assert_array_equal(saved["x"], np.arange(5))
    assert cache.load(tmp_path, "b" * 64) is None
    assert cache.load(tmp_path, "a" * 32 + "b" * 32) is None  # same folder, other digest
    np.testing.assert_array_equal(cache.load(tmp_path, "a" * 64)["x"], np.arange(5))


def test_processes_give_the_same_arrays(tmp_path):
    one = quiet(FakeDataset(tmp_path / "1", 40))
    two = quiet(FakeDataset(tmp_path / "2", 40), workers=2)
    assert_same(one, two)


def test_travels_to_a_process_by_its_path(tmp_path):
    split = quiet(FakeDataset(tmp_path, 20))
    message = pickle.dumps(split)
    assert len(message) < split.code.nbytes / 4
    assert_same(pickle.loads(message), split)


def test_on_the_fly_rows_are_the_prepared_rows(tmp_path):
    dataset = FakeDataset(tmp_path, 6)
    ids = ["image5", "image1", "image3"]
    split, lazy = quiet(dataset, ids=ids), OnTheFly(dataset, "train", CHAIN, ids=ids)
    assert len(lazy) == len(split) == 3
    for i in range(3):
        one, other = split[i], lazy[i]
        assert one.keys() == other.keys() >= {"code", "scale", "offset", "mask", "index"}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_real_data_set(tiny_dataset, tmp_path):
    ids = tiny_dataset.ids("train")[:4]
    split = prepare(tiny_dataset, "train", CHAIN, ids=ids, progress=False, cache_dir=tmp_path)
    assert split.code.shape == (4, 64, 64) and split.mask.max() == 1
