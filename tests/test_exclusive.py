"""One process at a time in a folder."""

import contextlib
import os
import subprocess
import sys
import threading

import pytest

from tfds_angio import exclusive as exclusive_lib
from tfds_angio.errors import UserError
from tfds_angio.exclusive import LOCK, exclusive


def test_the_second_is_told_who_has_it_and_the_next_gets_it(tmp_path):
    with exclusive(tmp_path):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on .*since 20"):
            with exclusive(tmp_path, seconds=0):
                pytest.fail("two at once")
    with exclusive(tmp_path, seconds=0):
        pass


def test_who_waits_gets_it_when_the_first_ends(tmp_path, capsys):
    folder, events = tmp_path / "new" / "run", []
    held, go = threading.Event(), threading.Event()

    def first():
        with exclusive(folder):
            held.set()
            go.wait(20)
            events.append("first ends")
        # The folder was made for it and is empty, so it goes; whoever waits makes it anew.

    thread = threading.Thread(target=first)
    thread.start()
    held.wait(20)
    threading.Timer(0.5, go.set).start()
    with exclusive(folder, seconds=20):
        events.append("second begins")
        (folder / "result").write_text("kept")
    thread.join()
    assert f"Waiting 20 s for process {os.getpid()} on" in capsys.readouterr().out
    assert events == ["first ends", "second begins"]
    assert sorted(p.name for p in folder.iterdir()) == [LOCK, "result"]


def test_only_empty_folders_that_were_made_for_it_go_again(tmp_path):
    (tmp_path / "mine").mkdir()
    with contextlib.suppress(KeyError), exclusive(tmp_path / "mine" / "a" / "b"):
        raise KeyError
    with exclusive(tmp_path / "mine"):
        pass
    assert [p.name for p in (tmp_path / "mine").iterdir()] == [LOCK]


def test_who_gave_up_leaves_the_folder_to_who_has_it(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with exclusive(folder):
        # As if both had begun when there was no folder.
        with monkeypatch.context() as patched:
            patched.setattr(exclusive_lib.Path, "exists", lambda path: path != folder)
            with pytest.raises(UserError, match="in use"), exclusive(folder, seconds=0):
                pytest.fail("two at once")
        assert (folder / LOCK).exists()


def test_a_folder_that_becomes_a_file_is_named(tmp_path):
    folder, ended = tmp_path / "run", threading.Event()

    def first():
        with exclusive(folder):
            ended.wait(20)
            (folder / LOCK).unlink()
            folder.rmdir()
            folder.write_text("")

    thread = threading.Thread(target=first)
    thread.start()
    while not (folder / LOCK).exists():
        pass
    threading.Timer(0.5, ended.set).start()
    with pytest.raises(UserError, match="run cannot be written"), exclusive(folder, seconds=20):
        pytest.fail("in a file")
    thread.join()


def test_a_killed_process_holds_nothing(tmp_path):
    code = (
        "import os, pathlib, signal, sys; from tfds_angio.exclusive import exclusive\n"
        "with exclusive(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    with exclusive(tmp_path, seconds=0):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()


def test_a_file_system_without_locks_is_worked_on_without(tmp_path, monkeypatch):
    def unknown(handle, operation):
        raise OSError(exclusive_lib.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(exclusive_lib.fcntl, "flock", unknown)
    with exclusive(tmp_path), exclusive(tmp_path, seconds=0):
        assert (tmp_path / LOCK).exists()


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run cannot be written: Not a directory"):
        with exclusive(tmp_path / "file" / "run"):
            pass
