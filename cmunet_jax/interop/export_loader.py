"""Segments angiograms with an exported network: needs jax alone.

python load.py model.stablehlo frames.npy probabilities.npy
"""

import dataclasses
import pathlib
import sys

import jax.export
import numpy as np

PLATFORMS, CALLING_CONVENTION = ("cpu", "cuda", "tpu"), 10  # of jax.export


def load(path):
    """Returns the function from grey frames [B, H, W] to float32 probabilities of artery."""
    head, magic, tail = pathlib.Path(path).read_bytes().partition(b"ML\xefR")  # of MLIR bytecode
    program = (magic + tail)[: int.from_bytes(head[-4:], "little")]  # which comes after its length
    if not magic or len(program) < int.from_bytes(head[-4:], "little"):
        raise ValueError(f"{path} does not hold a whole exported network")
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
        if frames.ndim != 3 or frames.dtype.kind not in "uif" or not np.isfinite(frames).all():
            raise ValueError(f"not grey, finite frames [B, H, W]: {frames.dtype} {frames.shape}")
        return np.asarray(call(frames.astype(np.float32), np.bool_(frames.dtype == np.uint8)))

    return segment


if __name__ == "__main__":
    np.save(sys.argv[3], load(sys.argv[1])(np.load(sys.argv[2])))
