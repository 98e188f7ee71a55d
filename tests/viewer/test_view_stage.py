"""The command: it says where it listens, ends when it is told to, and is clear about mistakes."""

from __future__ import annotations

import importlib
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from cmunet_jax.stages import STAGES, WITHOUT_DEVICE, view
from cmunet_jax.viewer import server
from tests.conftest import ROOT
from tests.viewer import fake_run
from tfds_angio.errors import UserError


def config_for(**changed):
    config = importlib.import_module("configs.view").get_config()
    config.update(changed)
    return config


# The same server as the stage's, without the seconds that importing all stages takes.
ALONE = """
import pathlib, sys
from cmunet_jax.viewer import app, labels, runs, server
run, folder = map(pathlib.Path, sys.argv[1:])
labels.prepare(folder)
server.serve(app.Served(runs.of_runs(run, None), folder, False), port=0, open_browser=False)
"""
COMMAND = ["-m", "cmunet_jax.main", "--config", "configs/view.py"]


def serve_and_end(arguments: list[str], number: signal.Signals) -> list[str]:
    """Starts Python, asks the server for its page and ends it; returns what it said before."""
    with subprocess.Popen(
        [sys.executable, "-u", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            lines: list[str] = []
            assert process.stdout and process.stderr
            while not (lines and lines[-1] == "Ctrl-C ends.\n"):
                lines.append(process.stdout.readline())
                assert lines[-1], process.stderr.read()
            address = re.fullmatch(r"Open (http://127\.0\.0\.1:\d+/)#(\S{32})\n", lines[-2])
            assert address
            with urllib.request.urlopen(address[1], timeout=60) as page:
                assert b"<title>CM-UNet viewer</title>" in page.read()
            token = {"X-Viewer-Token": address[2]}
            asked = urllib.request.Request(f"{address[1]}api/cases", headers=token)
            with urllib.request.urlopen(asked, timeout=60) as cases:
                assert cases.status == 200
            process.send_signal(number)
            out, errors = process.communicate(timeout=60)
            assert (process.returncode, out, errors) == (0, "", "")
        finally:
            process.kill()
    return lines[:-2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_it_serves_until_it_is_told_to_end(two_runs, tmp_path: Path, number: signal.Signals):
    assert not serve_and_end(["-c", ALONE, str(two_runs[0]), str(tmp_path / "labels")], number)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_so_does_the_command(two_runs, tmp_path: Path, number: signal.Signals):
    flags = [f"--config.input={two_runs[0]}", f"--config.labels={tmp_path / 'labels'}"]
    (said,) = serve_and_end([*COMMAND, *flags], number)
    assert said.startswith("2 cases, 6 frames; corrected masks go to")


def test_it_needs_no_device():
    assert STAGES["view"] is view.run and "view" in WITHOUT_DEVICE


def test_a_port_that_is_taken_is_named(two_runs, tmp_path: Path):
    with server.listen(0) as taken:
        port = taken.getsockname()[1]
        config = config_for(input=str(two_runs[0]), labels=str(tmp_path / "labels"), port=port)
        with pytest.raises(UserError, match=rf"config\.port={port} cannot be used"):
            view.run(config, None)


def test_mistakes_are_one_line(two_runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run, labels = str(two_runs[0]), str(tmp_path / "labels")
    with pytest.raises(UserError, match="runs/predictions/predictions.json: No such file"):
        view.run(config_for(), None)
    with pytest.raises(UserError, match=r"config\.compare"):
        view.run(config_for(input=run, compare=str(tmp_path)), None)
    with pytest.raises(UserError, match="give one"):
        view.run(config_for(input=run, images=run), None)
    with pytest.raises(UserError, match=r"--config\.labels"):
        view.run(config_for(input=run, labels=labels), tmp_path / "work")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"config\.labels=.* cannot be written"):
        view.run(config_for(input=run, labels=str(tmp_path / "file")), None)
    assert not (tmp_path / "runs").exists()


def test_images_need_no_run(tmp_path: Path):
    fake_run.build(tmp_path / "run")
    catalogue = view.catalogue_of(config_for(images=str(tmp_path / "run/frames")))
    assert len(catalogue.cases) == 6 and not catalogue.checkpoints
