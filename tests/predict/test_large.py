"""The inputs of the throughput table are what predict reads."""

import cv2
import numpy as np
import pytest

from cmunet_jax.imaging import inputs
from tests.predict import large


def test_the_inputs_are_read_by_predict(tmp_path):
    planes = large.frames("", count=3, side=40)
    large.make(tmp_path / "in", planes, runs=(2, 5), across=2)
    found = inputs.find(str(tmp_path / "in"))
    assert not found.refused and not found.ignored
    cases = {item.path.name: inputs.open_case(item) for item in found.inputs}
    assert sorted(cases) == ["000.png", "001.png", "002.png", "large.png", "run2.dcm", "run5.dcm"]
    assert [cases[f"run{n}.dcm"].frames for n in (2, 5)] == [2, 5]
    for index in range(5):
        frame = inputs.read_frame(cases["run5.dcm"], index)
        np.testing.assert_array_equal(frame, planes[index % 3])
    whole = inputs.read_frame(cases["large.png"], 0)
    np.testing.assert_array_equal(whole[:40, 40:], planes[1])
    assert whole.shape == (80, 80)


def test_frames_may_be_of_files(tmp_path):
    for number in range(2):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((20, 30), number, np.uint8))
    assert large.frames(f"{tmp_path}/*.png", count=2, side=8).tolist() == [
        np.full((8, 8), number).tolist() for number in range(2)
    ]
    with pytest.raises(SystemExit, match="matches 2 files: give 3"):
        large.frames(f"{tmp_path}/*.png", count=3, side=8)
    with pytest.raises(SystemExit, match="not empty"):
        large.make(tmp_path, large.frames("", count=1, side=8), runs=(), across=1)
