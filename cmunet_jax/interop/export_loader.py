"""Segments angiograms with an exported network: needs jax alone.

python load.py model.stablehlo frames.npy probabilities.npy
"""

import dataclasses
import hashlib
import pathlib
import sys

import jax.export
import numpy as np

PLATFORMS, CALLING_CONVENTION = ("cpu", "cuda", "tpu"), 10  # of jax.export


def load(path):
    """Returns the function from grey frames [B, H, W] to float32 probabilities of artery."""
    file = pathlib.Path(path).read_bytes()
    if hashlib.sha256(file[:-32]).digest() != file[-32:]:
        raise ValueError(f"{path} is damaged, or no exported network")
    start = file.index(b"ML\xefR")  # the program, MLIR bytecode; its length comes before it
    program = file[start : start + int.from_bytes(file[start - 4 : start], "little")]
    shape = jax.export.symbolic_shape("batch, height, width")
    inputs = jax.ShapeDtypeStruct(shape, np.float32), jax.ShapeDtypeStruct((), np.bool_)
    # What jax keeps beside a program, taken from one of the same signature.
    like = jax.export.export(jax.jit(lambda x, is_8bit: x * is_8bit), platforms=PLATFORMS)(*inputs)
    exported = dataclasses.replace(
        like, mlir_module_serialized=program, calling_convention_version=CALLING_CONVENTION
    )
    call = jax.jit(exported.call)

    def segment(frames):
        frames = np.asarray(frames)  # uint8, uint16 or float, of any size
        grey = frames.ndim == 3 and frames.size and frames.dtype.kind in "uif"
        if not grey or not np.isfinite(values := frames.astype(np.float32)).all():
            raise ValueError(f"not grey, finite frames [B, H, W]: {frames.dtype} {frames.shape}")
        return np.asarray(call(values, np.bool_(frames.dtype == np.uint8)))

    return segment


if __name__ == "__main__":
    np.save(sys.argv[3], load(sys.argv[1])(np.load(sys.argv[2])))
