"""A command gets malloc's settings by starting itself anew; any other process is left alone."""

import os
import subprocess
import sys

import pytest

from cmunet_jax import malloc

MODULE = "cmunet_jax.main"


@pytest.fixture
def started(monkeypatch):
    """What would replace this process, which runs `python -m MODULE --a` without the variable."""
    monkeypatch.delenv(malloc.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", MODULE, "--a"])
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    commands = []
    monkeypatch.setattr(os, "execv", lambda path, argv: commands.append((path, argv)))
    yield commands
    os.environ.pop(malloc.VARIABLE, None)


def test_the_same_command_is_started_again_with_the_settings(started, monkeypatch):
    given = ["-B", "-X", "dev", "-W", "ignore", "-m", MODULE, "--a=b c", "-m", "x"]
    monkeypatch.setattr(sys, "orig_argv", ["python", *given])
    malloc.restart(MODULE)
    assert started == [(sys.executable, [sys.executable, *given])]
    assert os.environ[malloc.VARIABLE] == malloc.settings()
    malloc.restart(MODULE)  # what then starts has the variable
    assert len(started) == 1


def test_there_is_an_arena_for_each_core_and_never_only_one(monkeypatch):
    for cores, arenas in ((1, 2), (2, 2), (16, 16)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, n=cores: set(range(n)))
        assert malloc.settings() == f"glibc.malloc.hugetlb=1:glibc.malloc.arena_max={arenas}"


@pytest.mark.parametrize("value", ["", "glibc.malloc.hugetlb=0", "glibc.malloc.arena_max=1"])
def test_what_the_user_has_set_is_left_alone(started, monkeypatch, value):
    monkeypatch.setenv(malloc.VARIABLE, value)
    malloc.restart(MODULE)
    assert not started and os.environ[malloc.VARIABLE] == value


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-"],
        ["-c", "import cmunet_jax.main"],
        ["script.py", "-m", MODULE],
        ["-m", "pdb", "-m", MODULE],
        ["-X", "-m", "other"],
        ["-m"],
    ],
)
def test_a_process_that_runs_something_else_is_left_alone(started, monkeypatch, arguments):
    monkeypatch.setattr(sys, "orig_argv", ["python", *arguments])
    malloc.restart(MODULE)
    assert not started and malloc.VARIABLE not in os.environ


def test_only_glibc_on_linux_is_asked(started, monkeypatch):
    def refuse(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", refuse)
    malloc.restart(MODULE)
    monkeypatch.setattr(sys, "platform", "darwin")
    malloc.restart(MODULE)
    assert not started


def test_a_command_that_cannot_be_started_again_goes_on(started, monkeypatch):
    def refuse(path, argv):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "execv", refuse)
    malloc.restart(MODULE)
    assert not started


CONFIG = """
import os, sys
from ml_collections import ConfigDict

def get_config(argument=None):
    sys.exit(f"{os.getpid()} {os.environ.get('GLIBC_TUNABLES')} {argument} {sys.argv[1:]}")
"""


def told(path, arguments, given=None, **options):
    """What CONFIG says, and the number of the process."""
    path.write_text(CONFIG)
    env = {k: v for k, v in os.environ.items() if k != malloc.VARIABLE}
    env |= {} if given is None else {malloc.VARIABLE: given}
    with subprocess.Popen(
        [sys.executable, *arguments],
        env=env, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        return process.communicate(options.get("stdin"))[1].strip(), process.pid


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has glibc")
@pytest.mark.parametrize("given", [None, "", "glibc.malloc.hugetlb=0"])
def test_the_command_line_keeps_its_process_and_arguments(given, tmp_path):
    path = tmp_path / "shows.py"
    arguments = ["--config", f"{path}:a b", "--config.x=Herz & Gefäß"]
    said, pid = told(path, ["-m", MODULE, *arguments], given)
    wanted = malloc.settings() if given is None else given
    assert said == f"{pid} {wanted} a b {arguments}"


def test_a_script_from_a_pipe_is_not_started_again(tmp_path):
    path = tmp_path / "shows.py"
    script = (
        f"import runpy, sys\nsys.argv = ['main', '--config', {str(path)!r}]\n"
        f"runpy.run_module({MODULE!r}, run_name='__main__')\n"
    )
    said, pid = told(path, ["-"], stdin=script)
    assert said == f"{pid} None None ['--config', {str(path)!r}]"
