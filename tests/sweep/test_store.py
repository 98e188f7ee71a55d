"""Files of a sweep: created once, written whole, in a folder or an object store."""

import errno
import os
import threading
import uuid

import pytest

from cmunet_jax.sweep.store import ObjectStore, StorageError, open_store
from tfds_angio.errors import UserError


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    return open_store(tmp_path if request.param == "folder" else f"memory://{uuid.uuid4().hex}/s")


def test_a_file_is_created_once(store):
    assert store.create("a/b.json", b"first")
    assert not store.create("a/b.json", b"second")
    assert store.read("a/b.json") == b"first"
    assert store.names("a") == ["b.json"], "no temporary file is left or seen"


def test_a_file_is_replaced_and_absence_is_none(store):
    store.write("x.json", b"1")
    store.write("x.json", b"22")
    assert store.read("x.json") == b"22"
    assert store.read("y.json") is None and store.read("x.json/z") is None
    assert store.names("nowhere") == []


def test_moving_what_another_has_moved_is_no_error(store):
    store.write("d/x", b"1")
    store.rename("d/x", "d/y")
    store.rename("d/x", "d/z")
    assert store.names("d") == ["y"] and store.read("d/y") == b"1"


def test_folders_go_in_and_out(store, tmp_path):
    source = tmp_path / "local" / "run"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "x.bin").write_bytes(b"\0\1")
    (source / "one").write_bytes(b"")
    store.upload(source, "t/k/run")
    assert store.download("t/k/run", tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "x.bin").read_bytes() == b"\0\1"
    assert (tmp_path / "back" / "one").read_bytes() == b""
    assert not store.download("t/none", tmp_path / "none")


@pytest.mark.parametrize("links", [True, False], ids=["with links", "without links"])
def test_of_many_threads_one_creates(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*unused):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    store = open_store(tmp_path)
    for number in range(20):
        barrier, won = threading.Barrier(6), []

        def race(me, number=number, barrier=barrier, won=won):
            barrier.wait()
            if store.create(f"c/{number}", str(me).encode()):
                won.append(str(me).encode())

        threads = [threading.Thread(target=race, args=(me,)) for me in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == [store.read(f"c/{number}")]


@pytest.mark.parametrize("method", ["create", "write"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, method):
    store = open_store(tmp_path)
    store.write("old.json", b"good")

    def full(*unused):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    name = "old.json" if method == "write" else "new.json"
    with pytest.raises(StorageError, match="No space left.*Finished trials are kept"):
        getattr(store, method)(name, b"x" * 100)
    assert store.read("old.json") == b"good"
    assert sorted(os.listdir(tmp_path)) == ["old.json"]


def test_a_read_only_folder_is_one_line(tmp_path, monkeypatch):
    def refuse(*unused, **more):
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(StorageError, match="Read-only file system"):
        open_store(tmp_path / "sweep").write("a.json", b"")


def test_a_driver_that_only_looks_before_it_writes_still_has_one_winner(tmp_path):
    """Fsspec's local driver checks, then writes: who reads back something else has lost."""
    store = open_store(f"file://{tmp_path}")
    written = store._fs.pipe_file

    def late(path, content, mode="overwrite"):
        written(path, content)
        written(path, b"another was as fast")

    store._fs = type("Fs", (), {"pipe_file": staticmethod(late), "cat_file": store._fs.cat_file})()
    assert not store.create("claim", b"mine")


def test_an_unknown_kind_of_store_is_named():
    with pytest.raises(UserError, match="nosuch://"):
        open_store("nosuch://bucket/sweep")
    assert isinstance(open_store("memory://x"), ObjectStore)
