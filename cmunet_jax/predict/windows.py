"""Which parts of a frame a network sees, and how their results become one map.

A network sees a square of S × S pixels. `whole` gives it the frame as its training did: `fixed`
pads it to a square, so nothing is lost; `paper` cuts 475 pixels out of the centre, and the rest is
never seen. `tiles` lays overlapping windows over the frame, each prepared by the checkpoint's own
preprocessing, as if it were an image of its own. No choice distorts the aspect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunet_jax.config import choose
from cmunet_jax.data import geometry, released
from cmunet_jax.data.preprocessing import PaperOptions, Prepared, Preprocessing

FITS = ("auto", "whole", "tiles")
OVERLAP = 0.25
"""Least part of a window that its neighbour sees too."""
LONGEST_ASPECT = 2.0
"""Above it a padded square is mostly padding, and its vessels are thinner than in training."""
_MOST_ALONG = 16  # an extreme strip is cut into windows of no less than this part of its length
_FAINT = 1e-2  # weight of a window's border: pixels at the frame's border have nothing else


@dataclass(frozen=True)
class Window:
    """A part of a frame.

    Attributes:
      rows: slice of them.
      columns: slice of them.
      whole: whether it is the frame itself, prepared as in training.
    """

    rows: slice
    columns: slice
    whole: bool = False


def plan(height: int, width: int, chain: Preprocessing, *, fit: str, side: int = 0) -> list[Window]:
    """The windows of a frame of this size; together they hold every pixel of it.

    `auto` is `whole` where training saw whole frames of that kind: under `fixed`, up to an aspect
    of 2:1; under `paper`, where the centre crop is the frame. Else it is `tiles`.

    Args:
      height: H of the frame.
      width: W of the frame.
      chain: the network's preprocessing.
      fit: one of FITS.
      side: of the windows in pixels of the frame; 0: the crop of `paper`; the shorter side of the
        frame for `fixed`, which saw whole fields of view.
    """
    choose("config.fit", fit, FITS)
    long, short = max(height, width), min(height, width)
    everything = Window(slice(0, height), slice(0, width), whole=True)
    crop = chain.options.centre_crop if isinstance(chain.options, PaperOptions) else 0
    if fit == "auto":
        seen = long <= crop and long == short if crop else long <= LONGEST_ASPECT * short
        fit = "whole" if seen else "tiles"
    if fit == "whole":
        return [everything]
    if not side and crop:
        # A frame a little smaller than the crop is cut at its own height, as in training; a strip
        # is padded rather than enlarged to vessels as wide as no network has seen them.
        side = min(crop, max(short, crop // 2), long)
    elif not side:
        side = max(short, math.ceil(long / _MOST_ALONG))
    return [Window(r, c) for r in _cuts(height, side) for c in _cuts(width, side)]


def _cuts(length: int, side: int) -> list[slice]:
    """Evenly spaced stretches of `side` pixels that overlap by OVERLAP or more."""
    if length <= side:
        return [slice(0, length)]
    count = 1 + math.ceil((length - side) / max(side * (1 - OVERLAP), 1))
    starts = np.rint(np.linspace(0, length - side, count)).astype(int)
    return [slice(int(start), int(start) + side) for start in starts]


def prepare(frame: NDArray[np.generic], window: Window, chain: Preprocessing) -> Prepared:
    """What the network sees of a window.

    Raises:
      UserError: the frame holds NaN or infinity.
    """
    part = frame if window.whole else frame[window.rows, window.columns]
    if window.whole or not isinstance(chain.options, PaperOptions):
        return chain.apply(part)
    # `paper` would crop a strip to its height: pad it to a square by its edge.
    height, width = part.shape
    square = geometry.pad_to_square(height, width, chain.size)
    return chain.apply(geometry.extract(part, square, fill=None))


def to_grey_levels(frame: NDArray[np.generic], chain: Preprocessing) -> NDArray[np.generic]:
    """The frame in the levels that its windows are cut from: of the whole frame, not of each.

    `paper` maps what is not 8-bit by minimum and maximum; `fixed` needs no such thing.
    """
    # NaN has no level: it stays, and preparing a window refuses it.
    finite = frame.dtype.kind != "f" or bool(np.isfinite(frame).all())
    return released.to_uint8(frame) if isinstance(chain.options, PaperOptions) and finite else frame


def restore(
    margin: NDArray[np.float32], prepared: Prepared, window: Window, chain: Preprocessing
) -> NDArray[np.float32]:
    """Brings the network's margin [S, S] to the window's pixels [h, w]; NaN where it saw none."""
    native = chain.restore(margin[..., None], prepared.geometry, fill=float("nan"))[..., 0]
    height = window.rows.stop - window.rows.start
    width = window.columns.stop - window.columns.start
    if native.shape == (height, width):
        return native
    rows, columns = geometry.pad_to_square(height, width, chain.size).margins[0::2]
    return native[rows : rows + height, columns : columns + width]


class Canvas:
    """One map [H, W] from the margins of windows, weighted down towards their borders.

    Overlapping windows are averaged as logits, as nnU-Net does (Isensee et al., Nature Methods
    2021, methods, inference), here with a raised cosine in place of its Gaussian.
    """

    def __init__(self, height: int, width: int, windows: int):
        """Takes no memory before the first window is added."""
        self._shape = (height, width)
        self.missing = windows
        self._sum: NDArray[np.float32] | None = None
        self._weight: NDArray[np.float32] | None = None

    def add(self, window: Window, margin: NDArray[np.float32]) -> None:
        """Adds the margin [h, w] of one window."""
        self.missing -= 1
        if margin.shape == self._shape:
            self._sum = margin
            return
        if self._sum is None or self._weight is None:
            self._sum = np.zeros(self._shape, np.float32)
            self._weight = np.zeros(self._shape, np.float32)
        weight = np.outer(*(_taper(length) for length in margin.shape))
        part = (window.rows, window.columns)
        self._sum[part] += weight * margin
        self._weight[part] += weight

    def probability(self) -> NDArray[np.float32]:
        """Probability of artery, float32 [H, W] in 0..1; 0 where nothing was seen."""
        assert self._sum is not None
        margin = self._sum if self._weight is None else self._sum / self._weight
        # cv2.exp of large numbers is infinite, and 1 / infinity the 0 that is right.
        with np.errstate(over="ignore"):
            probability = 1 / (1 + cv2.exp(-margin))
        return np.nan_to_num(probability, copy=False, nan=0.0)


def _taper(length: int) -> NDArray[np.float32]:
    places = (np.arange(length, dtype=np.float32) + 0.5) / length
    return np.asarray(_FAINT + np.sin(np.pi * places) ** 2, np.float32)
