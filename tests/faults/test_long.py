"""The reduced form of long.py: memory does not grow. No time is asserted."""

import json
import sys

import numpy as np
import pytest
from tensorflow_datasets.core import shuffle

from cmunet_jax import malloc
from tests.faults import long
from tfds_angio.angio_folder.dummy_data import write_folder
from tfds_angio.base import build

pytestmark = pytest.mark.faults


def growth(memory):
    """MiB from the first to the last quarter of a list, by their medians."""
    quarter = max(len(memory) // 4, 1)
    return np.median(memory[-quarter:]) - np.median(memory[:quarter])


def test_a_stream_keeps_nothing_of_what_it_has_read(tmp_path):
    """12,800 images and masks of 128² are 420 MB decoded."""
    dataset = long.large_set(tmp_path, 12_800)
    assert dataset.sizes == {"unlabelled": 12_800}
    assert growth([part.mib for part in long.stream_all(dataset).parts]) < 60


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, sets up glibc")
def test_a_training_keeps_nothing_of_its_steps_and_saves(run_python):
    """The state of 530 arrays is 2.6 MB: 15 saves that each kept it would be 40 MiB."""
    command = ("-m", "tests.faults.long", "train", "400")
    done = run_python(*command, timeout=500, **{malloc.VARIABLE: malloc.settings()})
    parts = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"done"')]
    assert [part["done"] for part in parts] == list(range(20, 400, 20))
    # Without its reports, of which the first pictures (at a fifth) are compiled.
    assert growth([part["mib"] for part in parts if part["done"] > 80]) < 25


def test_records_of_more_than_a_gigabyte_need_no_tensorflow(tmp_path, monkeypatch):
    """Here of more than a kilobyte: beyond its limit TFDS would import TensorFlow."""
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)
    source = write_folder(tmp_path / "source")
    made = build("angio_folder", data_dir=tmp_path, source=source, workers=0, progress=False)
    assert made.source("train")[0]["image"].any()
    assert shuffle.MAX_MEM_BUFFER_SIZE == 1000
