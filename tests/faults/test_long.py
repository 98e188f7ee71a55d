"""The reduced form of long.py: memory does not grow. No time is asserted."""

import numpy as np
import pytest
from tensorflow_datasets.core import shuffle

from tests.faults import long
from tfds_angio.angio_folder.dummy_data import write_folder
from tfds_angio.base import build

pytestmark = pytest.mark.faults


def growth(meter):
    """MiB from the first to the last quarter of the parts, by their medians."""
    memory = [part.mib for part in meter.parts]
    quarter = max(len(memory) // 4, 1)
    return np.median(memory[-quarter:]) - np.median(memory[:quarter])


def test_a_stream_keeps_nothing_of_what_it_has_read(tmp_path):
    """12,800 images and masks of 128² are 420 MB decoded."""
    dataset = long.large_set(tmp_path, 12_800)
    assert dataset.sizes == {"unlabelled": 12_800}
    assert growth(long.stream_all(dataset)) < 60


def test_records_of_more_than_a_gigabyte_need_no_tensorflow(tmp_path, monkeypatch):
    """Here of more than a kilobyte: beyond its limit TFDS would import TensorFlow."""
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)
    source = write_folder(tmp_path / "source")
    made = build("angio_folder", data_dir=tmp_path, source=source, workers=0, progress=False)
    assert made.source("train")[0]["image"].any()
    assert shuffle.MAX_MEM_BUFFER_SIZE == 1000
