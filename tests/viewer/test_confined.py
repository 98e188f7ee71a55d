"""Between looking at a file and opening it nothing can take its place."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cmunet_jax.viewer import confined
from tests.viewer.fake_run import HEIGHT, WIDTH


@pytest.fixture
def run(two_runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the first run, to be changed."""
    return shutil.copytree(two_runs[0], tmp_path / "run")


@pytest.mark.parametrize("part", ["frames", "frames/left-anterior.png", "."])
@pytest.mark.parametrize("look", [1, 2])
def test_a_link_made_between_look_and_opening_is_not_followed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, look: int
):
    """A folder, or the file, is exchanged right after the first, or the last, look at it."""
    outside = shutil.copytree(run, tmp_path / "outside")
    secret = cv2.imencode(".png", np.full((HEIGHT, WIDTH), 200, np.uint8))[1].tobytes()
    (outside / "frames/left-anterior.png").write_bytes(secret)
    inside, looks = confined.inside, []

    def exchanging(*args: Any) -> Path:
        found = inside(*args)
        looks.append(found)
        if len(looks) == look:
            (run / part).rename(tmp_path / "moved")
            (run / part).symlink_to(outside / part)
        return found

    monkeypatch.setattr(confined, "inside", exchanging)
    with pytest.raises(confined.Unreadable, match=r"out of the folder|cannot be read|not exist"):
        confined.read(run, "frames/left-anterior.png", limit=10_000_000)
    assert len(looks) >= look
