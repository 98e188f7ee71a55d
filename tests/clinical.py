"""A synthetic angiographic run as a DICOM file, to try the way of docs/clinical.md with.

    python -m tests.clinical case.dcm

Contrast arrives and washes out while the heart moves the arteries a few pixels; the header is that
of a real run, with the names of nobody.
"""

from __future__ import annotations

import pathlib
import sys

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.imaging import xa
from tfds_angio.angio_synthetic.generator import render_patient

SIZE, SPACING_MM = 256, 0.5
FILLED = (0.1, 0.5, 1.0, 1.0, 0.9, 0.7)  # of the contrast, frame by frame
SEEN = 0.7  # from here on an artery counts as visible
_SEED, _PATIENT = 7, 3


def run() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Frames [T, H, W] and the arteries in them, bool [T, H, W]."""
    (still,) = render_patient(_SEED, _PATIENT, size=SIZE, views=1)
    frames, masks = [], []
    for at, filled in enumerate(FILLED):
        # Attenuation is exponential, so contrast is taken back by a factor.
        image = still.image * np.exp(still.artery_depth * (1 - filled))
        beat = 4 * np.sin(2 * np.pi * at / len(FILLED))
        move = np.array([[1, 0, beat], [0, 1, -beat / 2]], np.float32)
        size = (SIZE, SIZE)
        shown = cv2.warpAffine(image.astype(np.float32), move, size, borderMode=cv2.BORDER_REFLECT)
        frames.append(np.clip(np.rint(shown), 0, 255).astype(np.uint8))
        masks.append(cv2.warpAffine(still.mask, move, size, flags=cv2.INTER_NEAREST) > 0)
    return np.stack(frames), np.stack(masks)


def write(path: pathlib.Path) -> pathlib.Path:
    """Writes the run; returns the path."""
    spacing = [SPACING_MM, SPACING_MM]
    elements = {"ImagerPixelSpacing": spacing, "BurnedInAnnotation": "NO"}
    return xa.write(path.parent, run()[0], name=path.name, elements=elements)


if __name__ == "__main__":
    print(write(pathlib.Path(sys.argv[1]).absolute()))
