"""Where in its pixels the contour of a mask runs, as a probability and its threshold say.

Between a pixel of the mask and a neighbour outside it the probability crosses the threshold; where,
is interpolated in logits, which a network makes and which fall off evenly across a border. That is
all that the probability decides: pixels whose neighbours are all of their own kind keep the mask's
value, so what post-processing took away or filled stays so, and how sure a network is inside a
vessel does not make it wider.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.qca.centreline import Field

Mask = NDArray[np.bool_]
# Logits from the threshold beyond which a pixel is sure. Where the probability is the share of a
# pixel that is covered, this puts the contour where that share lies inside, to 0.05 px.
_SURE = 4.0
_LEAST = 1e-6  # logits of a pixel at the threshold itself


def covered(mask: Mask, probability: NDArray[np.floating], threshold: float) -> Field:
    """The share of each pixel that lies inside the contour, [H, W] in 0..1.

    Args:
        mask: bool [H, W].
        probability: [H, W] in 0..1. A pixel where `probability > threshold` is not what the mask
            says counts as one of which the mask is sure.
        threshold: above 0 and below 1.
    """
    crossings = [_along(mask, axis) for axis in (0, 1)]
    border = np.zeros(mask.shape, bool)
    for first, second in crossings:
        border |= first | second
    some = border & ((probability > threshold) == mask)
    margin = np.full(mask.shape, _SURE, np.float32)
    p = np.clip(probability[some].astype(np.float64), 1e-9, 1 - 1e-9)
    margin[some] = np.clip(np.abs(_logit(p) - _logit(threshold)), _LEAST, _SURE)
    (rows, rows_2), (columns, columns_2) = (_distances(margin, *pair) for pair in crossings)
    # The line through the crossing in a column and that in a row cuts this much off a pixel, with
    # its share taken as even in its distance; what comes from the opposite sides is added.
    with np.errstate(divide="ignore"):  # no crossing is infinitely far
        cut = np.maximum(0.5 - 1 / (1 / rows + 1 / columns), 0)
    cut += np.maximum(0.5 - rows_2, 0) + np.maximum(0.5 - columns_2, 0)
    return np.clip(np.where(mask, 1 - cut, cut), 0, 1).astype(np.float32)


def _logit(p: float | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(p) - np.log1p(-p))


def _along(mask: Mask, axis: int) -> tuple[Mask, Mask]:
    """Pixels [H, W] that the mask parts from the one after, and from the one before, on an axis."""
    differ = np.diff(mask, axis=axis)
    none = np.zeros_like(mask[:1] if axis == 0 else mask[:, :1])
    return np.concatenate([differ, none], axis), np.concatenate([none, differ], axis)


def _distances(
    margin: Field, first: Mask, second: Mask
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distance [H, W] along an axis to the nearer contour, and to that on the other side (px)."""
    after, before = np.full((2, *margin.shape), np.inf, np.float32)
    here, there = margin[first], margin[second]  # the same pairs in the same order
    after[first] = here / (here + there)
    before[second] = there / (here + there)
    return np.minimum(after, before), np.maximum(after, before)
