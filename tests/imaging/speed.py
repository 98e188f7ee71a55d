"""How long a frame takes to read from a DICOM run, by transfer syntax.

    python -m tests.imaging.speed

Prints for each syntax the size of a frame in the file, the time to open the run of 20 frames of
512 x 512 pixels of 12 bits with a detector's noise, and the least time of a frame (the median
of a busy machine says more of its other work).
"""

from __future__ import annotations

import pathlib
import tempfile
import time

import numpy as np
from pydicom import uid

from cmunet_jax.imaging import dicom
from tests.imaging import xa

COUNT, SIDE = 20, 512


def main() -> None:
    """Prints the table, in Markdown."""
    row, column = np.mgrid[:SIDE, :SIDE]
    smooth = 1500 + 600 * np.sin(row / 60) + 500 * np.cos(column / 45)
    noise = np.random.default_rng(0).normal(0, 12, (COUNT, SIDE, SIDE))
    frames = (smooth + noise).astype(np.uint16)
    print("| syntax | kB a frame | open, ms | a frame, ms |\n|---|---|---|---|")
    syntaxes = xa.EXACT | {name: syntax for name, (syntax, _, _) in xa.LOSSY.items()}
    with tempfile.TemporaryDirectory() as folder:
        for name, syntax in syntaxes.items():
            eight = syntax == uid.JPEGBaseline8Bit
            planes = (frames >> 4).astype(np.uint8) if eight else frames
            path = xa.write(pathlib.Path(folder), planes, syntax=syntax, bits=8 if eight else 12)
            dicom.open_dicom(path).read(0)  # imports, and starts GDCM's process
            start = time.perf_counter()
            case = dicom.open_dicom(path)
            opened = time.perf_counter() - start
            times = []
            for index in range(COUNT):
                start = time.perf_counter()
                case.read(index)
                times.append(time.perf_counter() - start)
            size = path.stat().st_size / COUNT / 1000
            print(f"| {name} | {size:.0f} | {opened * 1e3:.0f} | {min(times) * 1e3:.1f} |")


if __name__ == "__main__":
    main()
