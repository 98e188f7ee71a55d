"""Makes the inputs of the throughput table in docs/clinical.md.

    python -m tests.predict.large FOLDER                                # synthetic frames
    python -m tests.predict.large FOLDER --images 'arcade/images/*.png'   # of angiograms

Writes FOLDER/images/ (100 PNG files of 512²), FOLDER/run50.dcm and FOLDER/run500.dcm (uncompressed
8-bit XA runs of those frames, with the headers of tests/imaging/xa.py) and FOLDER/large.png (4096²:
64 of them side by side). Nothing that is there is replaced.
"""

from __future__ import annotations

import argparse
import glob
import pathlib

import cv2
import numpy as np

from tests.data.fakes import angiogram
from tests.imaging import xa

SIDE, IMAGES, RUNS, ACROSS = 512, 100, (50, 500), 8


def frames(pattern: str, *, count: int, side: int) -> np.ndarray:
    """Grey uint8 [count, side, side], all different: the first files of a glob, or synthetic."""
    if not pattern:
        return np.stack([angiogram(side, side, seed) for seed in range(count)])
    paths = sorted(glob.glob(pattern, recursive=True))[:count]
    if len(paths) < count:
        raise SystemExit(f"--images {pattern} matches {len(paths)} files: give {count}")
    found = []
    for path in paths:
        grey = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
        if grey is None:
            raise SystemExit(f"--images: {path} is no image")
        found.append(grey if grey.shape == (side, side) else cv2.resize(grey, (side, side)))
    return np.stack(found)


def make(folder: pathlib.Path, planes: np.ndarray, *, runs: tuple[int, ...], across: int) -> None:
    """Writes the inputs.

    Args:
      folder: made where it is missing; it is empty.
      planes: grey uint8 [N, S, S].
      runs: frames of each DICOM run, which begins again at the first plane after the last.
      across: planes along each side of the large image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty: name another folder")
    (folder / "images").mkdir()
    for number, plane in enumerate(planes):
        cv2.imwrite(str(folder / "images" / f"{number:03d}.png"), plane)
    for count in runs:
        repeated = np.resize(planes, (count, *planes.shape[1:]))
        xa.write(folder, repeated, name=f"run{count}.dcm", planted=False)
    tiles = np.resize(planes, (across, across, *planes.shape[1:]))
    cv2.imwrite(str(folder / "large.png"), np.vstack([np.hstack(row) for row in tiles]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.predict.large")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--images", default="", help="glob of at least 100 frames")
    options = parser.parse_args(argv)
    planes = frames(options.images, count=IMAGES, side=SIDE)
    make(options.folder, planes, runs=RUNS, across=ACROSS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
