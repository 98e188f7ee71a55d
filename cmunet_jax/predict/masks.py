"""From probabilities to a mask: threshold, shortest vessel, largest components."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.morphology import skeletonize

from cmunet_jax.imaging.case import Spacing
from tfds_angio.errors import UserError

_LENGTH = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*(px|mm)\s*$")


@dataclass(frozen=True)
class Rules:
    """What becomes of a probability map.

    Attributes:
      threshold: artery where the probability is above it, in 0..1.
      keep_components: how many of the largest components (8-connected, by pixels) stay; 0: all.
      min_length: components whose centreline is shorter are removed; 0: none.
      unit: of `min_length`: 'px' or 'mm'.
    """

    threshold: float = 0.5
    keep_components: int = 0
    min_length: float = 0.0
    unit: str = "px"


def parse_length(text: str) -> tuple[float, str]:
    """'20 px' or '5 mm' -> (20.0, 'px').

    Raises:
      UserError: it is neither.
    """
    match = _LENGTH.match(str(text))
    if not match:
        raise UserError(f"config.min_length='{text}' is no length. Write it as '20 px' or '5 mm'.")
    return float(match[1]), match[2]


def make(
    probability: NDArray[np.float32], rules: Rules, spacing: Spacing | None
) -> NDArray[np.bool_]:
    """The mask bool [H, W] of a probability map [H, W] in 0..1.

    Short components go first, then all but the largest. A length in mm needs a spacing; without
    one nothing is removed for its length, which `run` notes.
    """
    mask = probability > rules.threshold
    if rules.min_length and (rules.unit == "px" or spacing is not None):
        pixel = (1.0, 1.0)
        if rules.unit == "mm" and spacing is not None:
            pixel = (spacing.rows_mm, spacing.columns_mm)
        labels = _label(mask)
        long = centreline_lengths(mask, labels, pixel) >= rules.min_length
        long[0] = False  # background
        mask = long[labels]
    if rules.keep_components:
        labels = _label(mask)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        # Of equal ones the first in reading order: a stable sort of the negated sizes.
        kept = np.argsort(-sizes, kind="stable")[: rules.keep_components]
        mask = np.isin(labels, kept) & (labels > 0)
    return mask


def _label(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    return np.asarray(cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1])


def centreline_lengths(
    mask: NDArray[np.bool_], labels: NDArray[np.int32], pixel: tuple[float, float] = (1.0, 1.0)
) -> NDArray[np.float64]:
    """Length of the skeleton of each component, [number of labels], in the unit of `pixel`.

    Branches are added. A step between neighbours counts as the distance of their centres; a
    diagonal one only where no two straight ones lead around it.

    Args:
      mask: bool [H, W].
      labels: of its components, 0 is background.
      pixel: distance of neighbouring rows and columns.
    """
    line = np.pad(skeletonize(mask), 1)
    down = line[:-1] & line[1:]
    right = line[:, :-1] & line[:, 1:]
    falling = line[:-1, :-1] & line[1:, 1:] & ~line[:-1, 1:] & ~line[1:, :-1]
    rising = line[:-1, 1:] & line[1:, :-1] & ~line[:-1, :-1] & ~line[1:, 1:]
    known = np.pad(labels, 1)
    lengths = np.zeros(int(labels.max(initial=0)) + 1)
    for steps, place, distance in (
        (down, known[:-1], pixel[0]),
        (right, known[:, :-1], pixel[1]),
        (falling, known[:-1, :-1], math.hypot(*pixel)),
        (rising, known[:-1, 1:], math.hypot(*pixel)),
    ):
        lengths += distance * np.bincount(place[steps], minlength=len(lengths))
    return lengths
