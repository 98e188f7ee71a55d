"""Writes a small folder of invented images with masks, in the layout that angio_folder reads.

python -m tfds_angio.angio_folder.dummy_data FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

SHAPE = (48, 40)


def picture(seed: int, *, top: int = 255, dtype: type = np.uint8) -> np.ndarray:
    """A noisy ramp [48, 40] from 0 to `top`."""
    ramp = np.linspace(0, top, SHAPE[0] * SHAPE[1]).reshape(SHAPE)
    noise = np.random.default_rng(seed).normal(size=SHAPE) * top / 20
    return np.clip(ramp + noise, 0, top).astype(dtype)


def stripe(value: float = 1, dtype: type = np.uint8) -> np.ndarray:
    """A mask [48, 40]: a horizontal vessel of `value`, 0 elsewhere."""
    mask: np.ndarray = np.zeros(SHAPE, dtype)
    mask[10:14, 5:35] = value
    return mask


def save(path: Path, array: np.ndarray) -> None:
    """Writes an image file by its extension; colours are in RGB order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
        return
    colour = array[..., ::-1] if array.ndim == 3 else array
    if not cv2.imwrite(str(path), colour):
        raise ValueError(f"{path} cannot be written")


def write_folder(root: Path, patients: int = 6, *, views: int = 2) -> Path:
    """Labelled images AA-0_0, AA-0_1 … of some patients; returns `root`."""
    for patient in range(patients):
        for view in range(views):
            name = f"AA-{patient}_{view}.png"
            save(root / "imgs" / name, picture(100 * patient + view))
            save(root / "masks" / name, stripe())
    return root


if __name__ == "__main__":
    write_folder(Path(sys.argv[1]))
