"""Segments angiograms with an exported network: needs jax, flatbuffers and numpy.

python load.py model.stablehlo frames.npy probabilities.npy

Frames are grey [B, H, W] of any size, uint8, uint16 or float; the result is float32 [B, H, W].
"""

import pathlib
import sys

import jax.export
import numpy as np


def load(path):
    """Returns the function from frames to the probability of artery, in 0..1, of file `path`."""
    exported = jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes()))
    call = jax.jit(exported.call)

    def segment(frames):
        frames = np.asarray(frames)
        if frames.ndim != 3 or frames.dtype.kind not in "uif" or not np.isfinite(frames).all():
            raise ValueError(f"not grey, finite frames [B, H, W]: {frames.dtype} {frames.shape}")
        return np.asarray(call(frames.astype(np.float32), np.bool_(frames.dtype == np.uint8)))

    return segment


if __name__ == "__main__":
    np.save(sys.argv[3], load(sys.argv[1])(np.load(sys.argv[2])))
