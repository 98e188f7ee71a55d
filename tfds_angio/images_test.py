"""What is said about a broken image: by us, and not by OpenCV beside it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
CODE = r"""
from tfds_angio import images
try:
    images.decode(b"\x89PNG\r\n\x1a\nbroken", ".png")
except images.UnreadableImage as error:
    print(error)
"""


@pytest.mark.parametrize(("level", "shown"), [(None, False), ("INFO", True)])
def test_opencv_says_nothing_about_a_broken_file_unless_it_is_told_to(level, shown):
    environment = {k: v for k, v in os.environ.items() if k != "OPENCV_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=environment | ({} if level is None else {"OPENCV_LOG_LEVEL": level}),
    )
    assert (done.returncode, done.stdout) == (0, "not an image\n")
    assert bool(done.stderr) == shown
