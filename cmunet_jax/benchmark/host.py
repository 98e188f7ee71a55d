"""Cases that the host's processors do alone: building and preparing data, evaluation metrics."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from cmunet_jax.benchmark import memory
from cmunet_jax.benchmark.rows import Row
from cmunet_jax.benchmark.timing import Effort, Task, measure, once_each
from cmunet_jax.data import source
from cmunet_jax.data.preprocessing import Preprocessing, create
from cmunet_jax.evaluation import evaluator
from tfds_angio import base
from tfds_angio.angio_synthetic.generator import render_patient

_PATIENTS, _VIEWS = 3, 4  # rendered for the metrics; the images are repeated


def build_rows(
    name: str, chain: Preprocessing, *, repetitions: int, workers: int | None
) -> Iterator[Row]:
    """Builds an embedded data set anew each time, then prepares it for training anew each time."""
    splits = "train+unlabelled"
    with tempfile.TemporaryDirectory() as folder, memory.watch() as peak:
        numbered = (pathlib.Path(folder, str(i)) for i in range(2 * repetitions))
        built: list[base.AngioDataset] = []

        def build() -> None:
            into = next(numbered)
            built.append(base.build(name, data_dir=into, workers=workers, progress=False))

        samples = once_each(build, repetitions)
        dataset = built[-1]
        yield Row(
            "build", f"build {name}", samples, images=sum(dataset.sizes.values()), peak=peak,
            note=f"{workers or base.default_workers()} processes, each run from the beginning",
        )  # fmt: skip

        def prepare() -> None:
            source.prepare(
                dataset, splits, chain, with_masks=False, workers=workers, progress=False,
                cache_dir=next(numbered),
            )  # fmt: skip

        samples = once_each(prepare, repetitions)
        count = len(dataset.ids(splits))
        yield Row("build", f"prepare {name} at {chain.size}²", samples, images=count)


class RenderedSplit:
    """A few rendered angiograms of one size, repeated, with the interface of an opened data set.

    The image shows, bright on dark, the artery as a network might: shifted by two pixels and with
    a piece missing. `segments` turns it into logits.
    """

    name, fingerprint = "rendered", "rendered"

    def __init__(self, count: int, side: int):
        """Renders a dozen frames; `count` images of `side`² pixels refer to them."""
        frames = [
            frame
            for patient in range(min(_PATIENTS, -(-count // _VIEWS)))
            for frame in render_patient(0, patient, size=side, views=_VIEWS)
        ]
        self._masks = [np.asarray(frame.mask, np.uint8).reshape(side, side) for frame in frames]
        self._count = count

    def ids(self, split: str) -> list[str]:
        """One an image."""
        return [f"image{i:05d}" for i in range(self._count)]

    def patients(self, split: str) -> list[str]:
        """As many patients as frames."""
        return [f"patient{i % len(self._masks)}" for i in range(self._count)]

    def source(self, split: str) -> RenderedSplit:
        """Itself: it is its examples."""
        return self

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, at: int) -> dict[str, Any]:
        """An example as data sets give it."""
        mask = self._masks[at % len(self._masks)]
        predicted = np.roll(mask, 2, axis=0)
        predicted[: len(mask) // 8] = 0
        return {
            "image": (60 + 120 * predicted)[..., None].astype(np.uint8),
            "mask": mask[..., None],
            "has_mask": True,
            "id": f"image{at:05d}",
            "patient": f"patient{at % len(self._masks)}",
            "centre": "",
        }


def segments(variables: Any, images: np.ndarray) -> np.ndarray:
    """Logits [B, S, S, 2] of the images of `RenderedSplit`, at once: no network is timed."""
    del variables
    artery = np.asarray(images)[..., 0] - 0.5
    return np.stack([-artery, artery], -1).astype(np.float32)


def metrics_rows(
    *, images: int, side: int, size: int, effort: Effort, workers: int | None
) -> Iterator[Row]:
    """The evaluator with all metrics at native resolution, without a network."""
    dataset: Any = RenderedSplit(images, side)
    chain = create({"name": "fixed", "size": size})

    def evaluate() -> None:
        evaluator.evaluate(segments, None, dataset, "test", chain, workers=workers, progress=False)

    with memory.watch() as peak:
        samples = measure(Task(evaluate), effort)
    yield Row(
        "metrics", f"metrics of {images} images {side}²", samples, images=images,
        peak=peak, note="preparing the images and the bootstrap included, the network not",
    )  # fmt: skip
