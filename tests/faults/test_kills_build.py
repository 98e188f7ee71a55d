"""A build killed at random: the old data set, the new one, or none; never a part of one."""

import subprocess
import time

import pytest

from tests.faults import kills
from tfds_angio.angio_folder.dummy_data import write_folder
from tfds_angio.base import UserError, build, open_dataset

pytestmark = pytest.mark.faults

CODE = """
import sys
from tfds_angio.base import build
print("go", flush=True)
options = {"seed": int(sys.argv[3])}
build("angio_folder", data_dir=sys.argv[1], source=sys.argv[2], options=options, rebuild=True,
      workers=0, progress=False)
"""


def launch(data, source, seed):
    process = kills.start(["-c", CODE, str(data), str(source), str(seed)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == "go\n"
    return process


def content(dataset):
    """What a reader gets of it, in order."""
    return [
        (example["id"], example["image"].tobytes(), example["mask"].tobytes())
        for split in dataset.sizes
        for example in map(dataset.source(split).__getitem__, range(dataset.sizes[split]))
    ]


def test_a_killed_build_leaves_a_whole_data_set_or_none(tmp_path):
    rng = kills.generator("build")
    source, data = write_folder(tmp_path / "source"), tmp_path / "data"
    options = dict(source=source, workers=0, progress=False)
    whole = {
        seed: build(
            "angio_folder", data_dir=tmp_path / f"{seed}", options={"seed": seed}, **options
        )
        for seed in (0, 1)
    }
    expected = {dataset.fingerprint: content(dataset) for dataset in whole.values()}
    process = launch(tmp_path / "timed", source, 0)
    began = time.monotonic()
    assert process.wait() == 0
    seconds = time.monotonic() - began
    found, killed = [], 0
    for number in range(kills.KILLS["build"]):
        process = launch(data, source, number % 2)
        killed += kills.kill(process, after=rng.uniform(0, seconds))
        try:
            dataset = open_dataset("angio_folder", data_dir=data)
        except UserError:
            assert not found, "the data set that was there is gone"
            continue
        assert content(dataset) == expected[dataset.fingerprint]
        found.append(dataset.fingerprint)
    assert killed >= kills.KILLS["build"] // 2
    last = build("angio_folder", data_dir=data, options={"seed": 1}, rebuild=True, **options)
    assert last.fingerprint == whole[1].fingerprint and content(last) == content(whole[1])
    assert not [p for p in data.glob(".building-*") if p.is_dir()]
    assert [p.name for p in last.directory.parent.iterdir()] == [last.directory.name]
