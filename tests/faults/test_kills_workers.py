"""A process that is killed leaves no worker behind."""

import os
import subprocess
import time

import pytest

from tests.faults import kills

pytestmark = pytest.mark.faults

STREAM = """
import multiprocessing, sys, time
from cmunet_jax.data import preprocessing, source
from tfds_angio.base import build
from cmunet_jax.data.prepared import OnTheFly

dataset = build("angio_synthetic/tiny", data_dir=sys.argv[1], progress=False)
rows = OnTheFly(dataset, "train", preprocessing.create({"name": "fixed", "size": 32}))
with source.stream(rows, seed=0, batch_size=2, workers=2) as batches:
    next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(600)
"""
POOL = """
import multiprocessing, time
from tfds_angio import parallel

for _ in parallel.parallel_map(abs, range(100), workers=2, progress=False):
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(600)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("script", [STREAM, POOL], ids=["stream", "pool"])
def test_workers_end_with_the_process_that_started_them(tiny_dataset, script):
    """Those of Grain wait on a queue that nobody empties any more."""
    folder = str(tiny_dataset.directory.parents[2])
    process = kills.start(["-c", script, folder], stdout=subprocess.PIPE)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2 and all(alive(pid) for pid in workers)
    kills.kill(process, after=1)
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers stay for ever"
        time.sleep(0.05)
