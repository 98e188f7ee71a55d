"""What David Clunie's dciodvfy says of the segmentations that are written (docs/dicom.md).

    python -m tests.imaging.conformance [FOLDER]

Writes 90 of them, into FOLDER or a temporary folder: of runs of all SOP classes that are read, of
one frame and of five, with spacing, with a Frame of Reference, with neither, binary and fractional.
Then dciodvfy (Debian: dicom3tools) looks at each. Prints what it complains of, and how often.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import shutil
import subprocess
import tempfile
from collections import Counter

import numpy as np
from pydicom import uid

from cmunet_jax.imaging import dicom, seg
from tests.imaging import xa

REFERENCES: dict[str, dict[str, object]] = {
    "plain": {},
    "spacing": {"PixelSpacing": [0.2, 0.3]},
    "reference": {"FrameOfReferenceUID": f"{xa.ROOT}.9"},
}


def write(folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the segmentations into `folder`; returns their paths."""
    written = []
    sources = itertools.product(dicom.READABLE, (1, 5), REFERENCES.items())
    for number, (kind, count, (name, elements)) in enumerate(sources):
        if kind == uid.SecondaryCaptureImageStorage and count > 1:
            continue  # has no frames
        home = folder / f"{number:02d}-{name}"
        home.mkdir(parents=True)
        path = xa.write(home, xa.run(count), bits=12, elements={"SOPClassUID": kind, **elements})
        case = dicom.open_dicom(path)
        sure = np.random.default_rng(number).random((count, case.height, case.width), np.float32)
        seg.write(
            home / "seg.dcm",
            source=case,
            masks={index: plane > 0.5 for index, plane in enumerate(sure)},
            probabilities=dict(enumerate(sure)),
            algorithm_version="conformance",
        )
        written += [home / "seg.dcm", home / "seg_probability.dcm"]
    return written


def complaints(path: pathlib.Path) -> list[str]:
    """What dciodvfy says of a file beside the name of its kind."""
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if line.startswith(("Error", "Warning"))]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.imaging.conformance")
    parser.add_argument("folder", nargs="?", type=pathlib.Path, help="kept; it must be new")
    options = parser.parse_args(argv)
    if shutil.which("dciodvfy") is None:
        parser.error("dciodvfy is not on the path (Debian: apt-get install dicom3tools)")
    with tempfile.TemporaryDirectory() as temporary:
        paths = write(options.folder or pathlib.Path(temporary))
        found = Counter(line for path in paths for line in complaints(path))
    for line, times in found.most_common():
        print(f"{times} x {line}")
    print(f"{len(paths)} segmentations, {sum(found.values())} errors and warnings")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
