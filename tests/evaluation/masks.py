"""Masks that the evaluation tests share: random vessels, random noise, hand-made shapes."""

from __future__ import annotations

import cv2
import hypothesis.strategies as st
import numpy as np
from hypothesis.extra import numpy as hnp

from cmunet_jax.evaluation.metrics import TABLE, Pair

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14)


def measure(truth, prediction, names=tuple(TABLE), *, margin=None) -> dict[str, float]:
    """Several metrics of one image by name, from one `Pair` as in the evaluator."""
    pair = Pair(truth, prediction, margin=margin)
    return {name: TABLE[name].value(pair) for name in names}


def vessel(seed: int, *, shape: tuple[int, int] = (72, 96), width: int = 5) -> np.ndarray:
    """A few random thick poly-lines, some of which leave the image."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    for _ in range(3):
        points = np.cumsum(rng.normal(0, 14, (6, 2)), 0) + np.array(shape)[::-1] * rng.random(2)
        cv2.polylines(
            mask, [np.rint(points).astype(np.int32)], False, 1, int(rng.integers(2, width + 1))
        )
    return mask.astype(bool)


def shifted(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Moved by whole pixels; what comes in is background."""
    out = np.zeros_like(mask)
    height, width = mask.shape
    out[max(rows, 0) : height + min(rows, 0), max(columns, 0) : width + min(columns, 0)] = mask[
        max(-rows, 0) : height + min(-rows, 0), max(-columns, 0) : width + min(-columns, 0)
    ]
    return out


@st.composite
def pairs(draw: st.DrawFn, *, filled: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Two random masks of one size; `filled`: neither is empty."""
    shape = draw(SHAPES)
    masks = [draw(hnp.arrays(bool, shape)) for _ in range(2)]
    if filled:
        for mask in masks:
            mask[draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))] = True
    return masks[0], masks[1]
