"""A result names the source that made it, wherever that lies."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import cmunet_jax
from cmunet_jax.stages import record, revision

RELEASED = f"cmunet-jax {cmunet_jax.__version__}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "checkout"
    (folder / "inside").mkdir(parents=True)
    (folder / "file").write_text("a")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *command], check=True)
    return folder


def test_a_checkout_is_named_by_its_commit(checkout: Path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook of another repository
    clean = revision.of_folder(checkout)
    assert clean.startswith("git ") and len(clean) == len("git ") + 40
    (checkout / "new").write_text("not tracked")
    assert revision.of_folder(checkout) == clean
    (checkout / "file").write_text("b")
    assert revision.of_folder(checkout) == f"{clean}, changed"


def test_without_a_checkout_it_is_the_version(checkout: Path, tmp_path: Path, monkeypatch):
    assert revision.of_folder(tmp_path) == RELEASED
    assert revision.of_folder(checkout / "inside") == RELEASED  # of something else
    assert revision.of_folder(tmp_path / "absent") == RELEASED
    monkeypatch.setenv("PATH", "")
    assert revision.of_folder(checkout) == RELEASED


def test_a_git_that_hangs_is_not_waited_for(checkout: Path, monkeypatch):
    monkeypatch.setattr(revision, "_SECONDS", 0.0)
    assert revision.of_folder(checkout) == RELEASED


def test_every_result_records_it():
    assert record.versions()["source"] == revision.source()
