"""Small images and a data set in memory, with the interface of the real one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np


def vessels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Mask uint8 0/1 [H, W] of a few curved lines, 3 to 10 pixels wide."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(4):
        steps = rng.normal(size=(30, 2)).cumsum(0).cumsum(0)
        steps = (steps - steps.mean(0)) / np.ptp(steps, axis=0).max() * 0.8
        points = (steps + 0.5) * [width, height]
        thick = int(rng.integers(3, 11))
        cv2.polylines(mask, [np.round(points).astype(np.int32)], False, 1, thick)
    return mask


def angiogram(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Grey image uint8 [H, W]: uneven bright background, noise, dark vessels; levels 40..220."""
    rng = np.random.default_rng([seed, 1])
    shade = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), max(height, width) / 5)
    image = 150 + 25 * shade / np.abs(shade).max() + rng.normal(0, 4, (height, width))
    dark = cv2.GaussianBlur(vessels(height, width, seed).astype(float), (0, 0), 1)
    return np.clip(image - 70 * dark, 40, 220).astype(np.uint8)


class FakeSource:
    """Random access to decoded examples; picklable."""

    def __init__(self, shapes: list[tuple[int, int]], labelled: bool):
        self._shapes = shapes
        self._labelled = labelled

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        shape = self._shapes[index]
        return {
            "image": angiogram(*shape, index)[..., None],
            "mask": vessels(*shape, index)[..., None] * np.uint8(self._labelled),
            "has_mask": self._labelled,
            "id": f"image{index}",
            "patient": f"patient{index // 2}",
            "centre": "here",
        }


class FakeDataset:
    """``count`` images of alternating native sizes."""

    name = "fake"

    def __init__(self, directory: Path, count: int = 10, *, labelled: bool = True):
        self.directory = directory
        self.shapes = [((96, 96), (80, 112))[i % 2] for i in range(count)]
        self.labelled = labelled
        self.fingerprint = hashlib.sha256(f"{count}{labelled}".encode()).hexdigest()
        self.sizes = {"train": count}

    def ids(self, split: str) -> list[str]:
        assert split == "train"
        return [f"image{i}" for i in range(len(self.shapes))]

    def patients(self, split: str) -> list[str]:
        return [f"patient{i // 2}" for i in range(len(self.shapes))]

    def source(self, split: str) -> FakeSource:
        return FakeSource(self.shapes, self.labelled)


class Unreadable(FakeDataset):
    """Fails when an image is decoded: proves that a cache was used."""

    def source(self, split: str) -> Any:
        raise AssertionError("the images were decoded again")
