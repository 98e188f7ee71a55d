"""Long runs and large sets, measured: which test_long.py checks in a reduced form.

    python -m tests.faults.long stream 200000    # images through Grain
    python -m tests.faults.long train 20000      # steps of a pre-training, by the stage itself
    python -m tests.faults.long train 20000 1    # ... that saves once, at its end, not 20 times

All print one line a part of the whole: items a second, CPU time, and the anonymous memory
of the process (of Linux: pages of mapped files and libraries come and go with what others need).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import cv2
import numpy as np
import psutil
import tensorflow_datasets as tfds

from cmunet_jax.data import source, stream
from cmunet_jax.data.preprocessing import create
from cmunet_jax.stages import train as train_stage
from cmunet_jax.train import progress
from tests.stage_helpers import tiny
from tfds_angio import builder as builder_lib
from tfds_angio import prepare
from tfds_angio.base import AngioDataset, build

SIDE, DISTINCT, PARTS, BATCH = 128, 64, 20, 32


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the parts of a long run: items done by then, seconds of wall and CPU, memory."""

    done: int
    wall: float
    cpu: float
    mib: float


def _return_what_is_free() -> None:
    """Gives what the allocator keeps back to the system; where it cannot (not glibc), it stays."""
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _anonymous_kib(pid: int) -> int:
    """RssAnon of a process of ours."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])


class Meter:
    """Takes a Part whenever it is told how much is done."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.parts: list[Part] = [self._now(0)]

    def _now(self, done: int) -> Part:
        _return_what_is_free()
        own = [self._process, *self._process.children(recursive=True)]
        times = [p.cpu_times() for p in own]
        return Part(
            done,
            time.perf_counter(),
            sum(t.user + t.system for t in times),
            sum(_anonymous_kib(p.pid) for p in own) / 1024,
        )

    def __call__(self, done: int) -> None:
        """`done` items are done: prints items a second, CPU milliseconds an item and MiB."""
        before, after = self.parts[-1], self._now(done)
        self.parts.append(after)
        count = after.done - before.done
        row = {
            "done": after.done,
            "per_second": count / (after.wall - before.wall),
            "cpu_ms": 1000 * (after.cpu - before.cpu) / count,
            "mib": after.mib,
        }
        print(json.dumps({name: round(value, 3) for name, value in row.items()}), flush=True)


class Large(  # type: ignore[call-arg]
    builder_lib.AngioBuilder, skip_registration=True
):
    """`count` images of 128², few of them distinct and mostly dark: 1 to 2 KB each on disk."""

    name = "large"
    count = 0

    def plan(self, request: builder_lib.Request) -> builder_lib.Plan:
        """Nothing to plan: the records are made below."""
        return builder_lib.Plan({"unlabelled": ()}, generate=lambda task: ())

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
        del dl_manager
        self.built = self.plan(self.request)
        encoded = [builder_lib.encode(_image(seed)) for seed in range(DISTINCT)]
        rows = [{**encoded[i % DISTINCT].row, "id": f"{i:06d}"} for i in range(self.count)]
        self.rows = {"unlabelled": rows}

        def records() -> Iterator[tuple[int, Any]]:
            for i, row in enumerate(rows):
                yield i, encoded[i % DISTINCT].features | {"id": row["id"]}

        return {"unlabelled": records()}


def _image(seed: int) -> builder_lib.Example:
    """A dark field with a few bright lines, which compresses to a fraction of its size."""
    rng = np.random.default_rng(seed)
    image = np.full((SIDE, SIDE), 20, np.uint8)
    for _ in range(3):
        points = rng.integers(10, SIDE - 10, (4, 1, 2)).astype(np.int32)
        cv2.polylines(image, [points], False, int(rng.integers(80, 250)), 3)
    return builder_lib.Example(id=str(seed), image=image)


def large_set(folder: pathlib.Path, count: int) -> AngioDataset:
    """Builds the set with TFDS, as ArrayRecord, and opens it as any other."""
    tfds.disable_progress_bar()
    made = type("Large", (Large,), {"count": count, "name": "large"}, skip_registration=True)
    request = builder_lib.Request(None, {}, folder / "downloads", 0, False)
    final = folder / "large" / "1.0.0"
    prepare._write("large", made, "", request, folder / "scratch", final)
    prepare._move_into_place(folder / "scratch" / "new" / "large" / "1.0.0", final)
    return AngioDataset(final)


def stream_all(dataset: AngioDataset, *, side: int = 64, workers: int = 0) -> Meter:
    """Every image once, through `data.stream`, prepared on the fly."""
    chain = create({"name": "fixed", "size": side})
    rows = source.OnTheFly(dataset, "unlabelled", chain, with_masks=False)
    steps = len(rows) // BATCH
    every = max(steps // PARTS, 1)
    with stream.stream(rows, seed=0, batch_size=BATCH, steps=steps, workers=workers) as batches:
        meter: Meter | None = None
        seen = 0
        for step, batch in enumerate(batches, start=1):
            seen += len(batch["index"])
            if meter is None:  # what the first batch opens is no growth
                meter, skipped = Meter(), seen
            elif step % every == 0:
                meter(seen - skipped)
    assert meter is not None and seen == steps * BATCH
    return meter


def train_steps(folder: pathlib.Path, steps: int, saves: int = PARTS) -> Meter:
    """Pre-trains the smallest network by the train stage, with its reports and checkpoints."""
    dataset = build("angio_synthetic/tiny", data_dir=folder / "data", progress=False)
    config = tiny("pretrain", dataset, steps)
    config.update_from_flattened_dict(
        {"batch_size": 4, "model.width": 2, "log_every": "20 steps", "pictures_every": "20%",
         "checkpoint.every": f"{-(-steps // saves)} steps"}
    )  # fmt: skip
    every, meters = max(steps // PARTS, 1), []

    class Measured(progress.Progress):
        def __call__(self, step: int, t: float | None = None) -> bool:
            if step == 1:  # compiled, and all opened
                meters.append(Meter())
            elif (step - 1) % every == 0:
                meters[0](step - 1)
            return super().__call__(step, t)

    with mock.patch.object(progress, "Progress", Measured):
        assert train_stage.run(config, folder / "run") == 0
    return meters[0]


def main(arguments: list[str]) -> int:
    """`stream COUNT [SIDE [WORKERS]]` or `train COUNT [SAVES]`."""
    kind, count, *rest = arguments[0], int(arguments[1]), *map(int, arguments[2:])
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if kind == "train":
            train_steps(folder, count, *rest)
        else:
            began = time.perf_counter()
            dataset = large_set(folder, count)
            size = sum(f.stat().st_size for f in dataset.directory.rglob("*") if f.is_file())
            took = time.perf_counter() - began
            print(f"built {count} images in {took:.0f} s, {size / 2**20:.0f} MiB on disk")
            options = dict(zip(("side", "workers"), rest, strict=False))
            stream_all(dataset, **options)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
