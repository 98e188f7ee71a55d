"""A process gets large pages where malloc must be asked for them, and is left alone elsewhere."""

import os
import subprocess
import sys

import pytest

from cmunet_jax import large_pages


@pytest.fixture
def started(monkeypatch):
    """The commands that would replace this process; the variable is not set."""
    monkeypatch.delenv(large_pages.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    commands = []
    monkeypatch.setattr(os, "execv", lambda path, argv: commands.append((path, argv)))
    yield commands
    os.environ.pop(large_pages.VARIABLE, None)


@pytest.fixture
def mode(tmp_path):
    """Linux's file of a system that gives large pages to those who ask."""
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    return path


def test_the_same_command_is_started_again_with_the_setting(started, mode, monkeypatch):
    monkeypatch.setattr(
        sys, "orig_argv", ["python", "-X", "dev", "-m", "cmunet_jax.main", "--a=b c"]
    )
    large_pages.restart(mode)
    command = [sys.executable, "-X", "dev", "-m", "cmunet_jax.main", "--a=b c"]
    assert started == [(sys.executable, command)]
    assert os.environ[large_pages.VARIABLE] == "glibc.malloc.hugetlb=1"
    large_pages.restart(mode)  # what then starts has the variable
    assert len(started) == 1


@pytest.mark.parametrize("value", ["", "glibc.malloc.hugetlb=0", "glibc.malloc.arena_max=1"])
def test_what_the_user_has_set_is_left_alone(started, mode, monkeypatch, value):
    monkeypatch.setenv(large_pages.VARIABLE, value)
    large_pages.restart(mode)
    assert not started and os.environ[large_pages.VARIABLE] == value


@pytest.mark.parametrize("text", ["[always] madvise never\n", "always madvise [never]\n", "", None])
def test_a_system_that_leaves_no_choice_is_left_alone(started, mode, text):
    mode.unlink() if text is None else mode.write_text(text)
    large_pages.restart(mode)
    assert not started and large_pages.VARIABLE not in os.environ


def test_only_glibc_on_linux_is_asked(started, mode, monkeypatch):
    def refuse(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", refuse)
    large_pages.restart(mode)
    monkeypatch.setattr(sys, "platform", "darwin")
    large_pages.restart(mode)
    assert not started


def test_a_command_that_cannot_be_started_again_goes_on(started, mode, monkeypatch):
    def refuse(path, argv):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "execv", refuse)
    large_pages.restart(mode)
    assert not started


CONFIG = """
import os, sys
from ml_collections import ConfigDict

def get_config(argument=None):
    sys.exit(f"{os.getpid()} {os.environ.get('GLIBC_TUNABLES')} {argument} {sys.argv[1:]}")
"""


@pytest.mark.parametrize("given", [None, "", "glibc.malloc.hugetlb=0"])
def test_the_command_line_keeps_its_process_and_arguments(given, tmp_path):
    path = tmp_path / "shows.py"
    path.write_text(CONFIG)
    env = {k: v for k, v in os.environ.items() if k != large_pages.VARIABLE}
    env |= {} if given is None else {large_pages.VARIABLE: given}
    arguments = ["--config", f"{path}:a b", "--config.x=Herz & Gefäß"]
    with subprocess.Popen(
        [sys.executable, "-m", "cmunet_jax.main", *arguments],
        env=env, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        said = process.communicate()[1].strip()
    try:
        asked = "[madvise]" in large_pages._MODE.read_text()
    except OSError:
        asked = False
    wanted = given if given is not None else (large_pages.SETTING if asked else None)
    assert said == f"{process.pid} {wanted} a b {arguments}"
