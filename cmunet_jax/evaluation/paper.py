"""The six metrics as the paper's released code computes them, for protocol `paper`.

They differ from `metrics` in what they do at the edges, and the edges are what this module holds:
smoothing constants instead of a rule for empty masks, an infinite Hausdorff distance, contours
that stay open at the image border, the first vertex of a closed contour counted twice, the
outermost pixels ignored for the diameter. What coincides is taken from `metrics` and `shapes`.
Source: the evaluation of arXiv 2507.17779, its numbers fixed by running the authors' release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from skimage.measure import find_contours

from cmunet_jax.evaluation.metrics import TABLE, Metric, Pair, Terms, modified_hausdorff, ratio
from cmunet_jax.evaluation.shapes import Mask, Points, Shape


def _smooth_dice(numerator: float, denominator: float) -> float:
    return (numerator + 1e-5) / (denominator + 1e-5)


def _smooth_iou(intersection: float, union: float) -> float:
    return (intersection + 1e-7) / (union + 1e-7)


def _hausdorff(pair: Pair) -> Terms:
    """Modified Hausdorff distance and the number of images, so that a batch has their mean."""
    if pair.empty:
        return (0.0 if pair.empty == "both" else float("inf")), 1
    return modified_hausdorff(_open_contours(pair.truth), _open_contours(pair.prediction)), 1


def _open_contours(shape: Shape) -> Points:
    contours = find_contours(shape.mask, 0.5)
    # A mask that fills its image has no contour inside it; its border is the nearest thing to one.
    return np.concatenate(contours) if contours else shape.vertices


def _diameter_error(pair: Pair) -> Terms:
    return abs(_inner_diameter(pair.truth.mask) - _inner_diameter(pair.prediction.mask)), 1


def _inner_diameter(mask: Mask) -> float:
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1]
    return Shape(inner).mean_diameter


PAPER_TABLE: Mapping[str, Metric] = {
    "dice": Metric("Dice", TABLE["dice"].terms, _smooth_dice, "free"),
    "iou": Metric("intersection over union", TABLE["iou"].terms, _smooth_iou, "free"),
    "cldice": Metric(
        "centreline Dice, soft skeletons",
        TABLE["soft_cldice"].terms,
        TABLE["soft_cldice"].score,
        "free",
    ),
    "hausdorff_modified": Metric(
        "modified Hausdorff distance", _hausdorff, ratio, "free", "px", False
    ),
    "diameter_error_px": Metric(
        "error of the mean diameter", _diameter_error, ratio, "free", "px", False
    ),
    "ce": TABLE["ce"],
}


def paper_metrics(logits: ArrayLike, truth: ArrayLike) -> dict[str, dict[str, np.ndarray]]:
    """The released metrics of one batch.

    Args:
        logits: [N, H, W, 2], channel 1 the artery; the prediction is the larger one.
        truth: [N, H, W], artery where non-zero.

    Returns:
        `batch_pooled` (scalars: Dice, IoU, clDice and cross-entropy over the batch's pixels, the
        two distances as means over its images) and `per_image` ([N]), each by metric name.
    """
    logits = np.asarray(logits, np.float64)
    margins = logits[..., 1] - logits[..., 0]
    pairs = [
        Pair(mask, margin > 0, margin=margin) for mask, margin in zip(np.asarray(truth), margins)
    ]
    return {
        "batch_pooled": {
            name: np.asarray(metric.pooled(_totals(metric, pairs), ""))
            for name, metric in PAPER_TABLE.items()
        },
        "per_image": {
            name: np.asarray([metric.value(pair) for pair in pairs])
            for name, metric in PAPER_TABLE.items()
        },
    }


def _totals(metric: Metric, pairs: Sequence[Pair]) -> list[float]:
    return [sum(column) for column in zip(*map(metric.terms, pairs))]
