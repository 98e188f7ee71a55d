"""A data set in memory and a network that can be told how to err."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from cmunet_jax.data import geometry, preprocessing
from tests.evaluation.masks import vessel

SIZE = 64


class FakeDataset:
    """Behaves as an opened `AngioDataset`; the image is bright where the artery is."""

    name, fingerprint = "fake/one", "f1f2"

    def __init__(self, masks: list[np.ndarray], *, patients: list[str] | None = None):
        self.masks = masks
        self.names = patients or [""] * len(masks)
        self.reads: list[int] = []

    def ids(self, split: str) -> list[str]:
        return [f"image{at:02d}" for at in range(len(self.masks))]

    def patients(self, split: str) -> list[str]:
        return self.names

    def source(self, split: str) -> FakeDataset:
        return self

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, at: int) -> dict[str, Any]:
        self.reads.append(at)
        mask = self.masks[at].astype(np.uint8)[..., None]
        return {
            "image": 60 + 120 * mask,
            "mask": mask,
            "has_mask": True,
            "id": f"image{at:02d}",
            "patient": self.names[at],
            "centre": "here",
        }


class Plain(preprocessing.Preprocessing):
    """Pads and resizes as `fixed`, but leaves the grey levels alone: 60 and 180."""

    def apply(self, image: np.ndarray) -> preprocessing.Prepared:
        height, width = image.shape[:2]
        window = geometry.pad_to_square(height, width, self.size)
        square = geometry.extract(image[..., 0], window, fill=60)
        code = cv2.resize(square, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return preprocessing.Prepared(
            np.asarray(code, np.uint8), np.float32(1 / 60), np.float32(-1), window
        )


def dataset(n: int = 7, *, shape: tuple[int, int] = (SIZE, SIZE), patients: int = 0) -> Any:
    """`n` vessels of which the last image is empty; `patients` of them, or none known."""
    masks = [vessel(seed, shape=shape) for seed in range(n - 1)] + [np.zeros(shape, bool)]
    return FakeDataset(
        masks, patients=[f"p{at % patients}" for at in range(n)] if patients else None
    )


def chain(name: str = "plain", size: int = SIZE) -> preprocessing.Preprocessing:
    if name != "plain":
        return preprocessing.create({"name": name, "size": size})
    fixed = preprocessing.create({"name": "fixed", "size": size})
    return Plain("fixed", size, fixed.version, fixed.options)


def bright(variables: Any, images: np.ndarray) -> np.ndarray:
    """A network that calls artery what is brighter than `variables` (background 0, artery 2)."""
    return np.stack([np.zeros(images.shape[:3]), images[..., 0] - variables], -1)
