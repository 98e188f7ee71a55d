"""Whether a probability of 0.7 is right seven times in ten: reliability, ECE and Brier score.

The probability of artery is the softmax of the two logits, restored to the size at which truth and
prediction are compared; pixels that the network has not seen have none and do not count. Most
pixels are background with a probability near 0, which weighs on every number here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 15  # Guo et al. 2017 (arXiv 1706.04599)


@dataclass(frozen=True)
class Reliability:
    """Sums over pixels, which add up over images.

    Attributes:
        count: pixels in each bin of probability, int [BINS].
        probability: sum of their probabilities, [BINS].
        positives: artery pixels among them, [BINS].
        squared: sum of (probability − truth)² over all pixels.
    """

    count: NDArray[np.int64]
    probability: NDArray[np.float64]
    positives: NDArray[np.int64]
    squared: float

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return int(self.count.sum())

    @property
    def ece(self) -> float | None:
        """Expected calibration error: mean |probability − fraction of artery|, by pixels of bins.

        None without a pixel.
        """
        if not self.pixels:
            return None
        return float(np.abs(self.probability - self.positives).sum() / self.pixels)

    @property
    def brier(self) -> float | None:
        """Mean squared difference of probability and truth, of the artery class; None without."""
        return self.squared / self.pixels if self.pixels else None

    def to_dict(self) -> dict[str, Any]:
        """The bins, ECE and Brier score; an empty bin has no means."""
        edges = np.linspace(0, 1, BINS + 1)
        bins = [
            {
                "low": float(edges[at]),
                "high": float(edges[at + 1]),
                "count": int(count),
                "mean_probability": float(self.probability[at] / count) if count else None,
                "fraction_positive": float(self.positives[at] / count) if count else None,
            }
            for at, count in enumerate(self.count)
        ]
        return {"bins": bins, "ece": self.ece, "brier": self.brier}


def reliability(truth: ArrayLike, margin: ArrayLike) -> Reliability:
    """The sums of one image.

    Bins are (low, high], the first with its lower end.

    Args:
        truth: [H, W], artery where non-zero.
        margin: artery logit minus background logit, float [H, W]; NaN where nothing was seen.
    """
    logit = np.asarray(margin, np.float64)
    positive = np.asarray(truth) != 0
    seen = ~np.isnan(logit)
    if not seen.all():
        logit, positive = logit[seen], positive[seen]
    logit, positive = logit.ravel(), positive.ravel()
    small = np.exp(-np.abs(logit))  # never overflows
    probability = np.where(logit >= 0, 1.0, small) / (1.0 + small)
    place = np.maximum(np.ceil(probability * BINS).astype(np.intp) - 1, 0)
    # (p − y)² = p² for background and (1 − p)² for artery, whose difference is 1 − 2 p.
    squared = np.square(probability).sum() + np.sum(1.0 - 2.0 * probability[positive])
    return Reliability(
        count=np.bincount(place, minlength=BINS),
        probability=np.bincount(place, probability, BINS).astype(np.float64),
        positives=np.bincount(place[positive], minlength=BINS),
        squared=float(squared),
    )


def pooled(parts: Iterable[Reliability]) -> Reliability:
    """All pixels of several images as one."""
    parts = list(parts)
    return Reliability(
        count=np.sum([part.count for part in parts], axis=0),
        probability=np.sum([part.probability for part in parts], axis=0),
        positives=np.sum([part.positives for part in parts], axis=0),
        squared=float(sum(part.squared for part in parts)),
    )
