"""Writes a small archive in ARCADE's layout: invented images, made for the tests.

python -m tfds_angio.arcade.dummy_data FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZE = 256
CATEGORIES = [{"id": i, "name": str(i)} for i in range(1, 26)] + [{"id": 26, "name": "stenosis"}]


def _smooth_noise(rng: np.random.Generator, sigma: float, amplitude: float) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.normal(size=(SIZE, SIZE)), (0, 0), sigma)
    return noise / noise.std() * amplitude


def centreline(seed: int, *, points: int = 60) -> np.ndarray:
    """float64 [points, 2] x, y of a vessel across the image."""
    rng = np.random.default_rng([seed, 1])
    t = np.linspace(0, 1, points)
    bend, phase = rng.uniform(15, 50), rng.uniform(0, 2 * np.pi)
    x = 40 + (SIZE - 80) * t
    y = rng.uniform(90, SIZE - 90) + bend * np.sin(phase + 5 * t)
    return np.stack([x, y], 1)


def outline(line: np.ndarray, *, width: float) -> np.ndarray:
    """float64 [2 n, 2]: polygon around a centreline [n, 2]."""
    tangent = np.gradient(line, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    normal *= width / 2 / np.linalg.norm(normal, axis=1, keepdims=True)
    return np.concatenate([line + normal, (line - normal)[::-1]])


def angiogram(seed: int, *, background: int | None = None) -> np.ndarray:
    """uint8 [256, 256]; equal `background` gives two patients the same view and shutter."""
    shared = np.random.default_rng([seed if background is None else background, 2])
    rng = np.random.default_rng([seed, 3])
    image = 130 + _smooth_noise(shared, 40, 25) + _smooth_noise(rng, 3, 6)
    vessel = np.zeros((SIZE, SIZE), np.float32)
    line = np.rint(centreline(seed)).astype(np.int32)
    cv2.polylines(vessel, [line.reshape(-1, 1, 2)], False, 1.0, 8)
    image -= 50 * cv2.GaussianBlur(vessel, (0, 0), 1.5)
    image += rng.normal(size=image.shape) * 2
    image[:10] = image[:, -12:] = 5
    return np.clip(image, 0, 255).astype(np.uint8)


def segments(seed: int) -> list[tuple[int, np.ndarray]]:
    """Two neighbouring segments with a gap of a pixel, as (class, polygon)."""
    line = centreline(seed)
    half = len(line) // 2
    second = line[half:] + np.array([1.0 - (line[half] - line[half - 1])[0], 0.0])
    return [(1, outline(line[:half], width=8)), (2, outline(second, width=7))]


def write_part(
    root: Path,
    task: str,
    part: str,
    images: Mapping[str, np.ndarray],
    annotations: Mapping[str, list[tuple[int, np.ndarray]]],
    *,
    suffix: str = ".png",
) -> None:
    """Writes images and the COCO file of one part; `images` maps a stem to uint8 [H, W]."""
    folder = root / task / part
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    listed: list[dict[str, Any]] = []
    polygons: list[dict[str, Any]] = []
    for number, (stem, image) in enumerate(images.items(), start=1):
        cv2.imwrite(str(folder / "images" / f"{stem}{suffix}"), image)
        height, width = image.shape[:2]
        listed.append(
            {"id": number, "file_name": f"{stem}{suffix}", "width": width, "height": height}
        )
        for category, xy in annotations.get(stem, []):
            polygons.append(
                {
                    "id": len(polygons) + 1,
                    "image_id": number,
                    "category_id": category,
                    "segmentation": [np.asarray(xy).round(2).ravel().tolist()],
                    "iscrowd": 0,
                }
            )
    content = {"images": listed, "annotations": polygons, "categories": CATEGORIES}
    (folder / "annotations" / f"{part}.json").write_text(json.dumps(content))


def write_archive(root: Path) -> None:
    """A minimal archive: five training, three validation, three test and four stenosis images."""
    for part, seeds in (("train", range(5)), ("val", range(10, 13)), ("test", range(20, 23))):
        images = {str(i + 1): angiogram(seed) for i, seed in enumerate(seeds)}
        drawn = {str(i + 1): segments(seed) for i, seed in enumerate(seeds)}
        write_part(root, "syntax", part, images, drawn)
    stenosis = {str(i + 1): angiogram(seed) for i, seed in enumerate(range(30, 34))}
    write_part(root, "stenosis", "train", stenosis, {})


if __name__ == "__main__":
    write_archive(Path(sys.argv[1]))
