"""Weights that need no file to be known: a function of name and shape, small when compressed."""

import zlib

import numpy as np


def pattern(name, shape, dtype=np.float32):
    """Values on a grid of 1/64 with a period of 251: all float formats hold them exactly."""
    count = int(np.prod(shape))
    start = zlib.crc32(name.encode()) % 251
    values = ((start + np.arange(count)) % 251 - 125) / 64
    if name.endswith("running_var"):
        values = np.abs(values) + 0.5
    return values.reshape(shape).astype(dtype)
