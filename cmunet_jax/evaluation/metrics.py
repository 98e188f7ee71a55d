"""Metrics of one predicted artery mask against the truth: one definition each, one table.

`TABLE[name](truth, prediction)` is the value for one image; `TABLE[name].value(pair)` of one `Pair`
computes what several share (contours, skeletons, distances) only once. Every value is finite.
Distances are in pixels of the masks that are given. A ratio is kept as the *terms* it is made of,
whose sums over images give its pooled value: the two columns cannot drift apart.

To add a metric: write a function from `Pair` to terms, add a row to `TABLE`, test it against a
second implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmunet_jax.evaluation.shapes import Mask, Points, Shape, bounding_crop, tree

Empty = Literal["", "both", "truth", "prediction"]
Kind = Literal["overlap", "distance", "free"]
Terms = tuple[float, ...]

# The rule for empty masks, in words here and in code in `_by_empty_rule`, and nowhere else.
EMPTY_MASK_RULE = (
    "Truth and prediction both empty: agreement, so overlap metrics are 1 and distances 0. "
    "Exactly one of them empty: a complete miss, so overlap metrics are 0 and distances are the "
    "diagonal of the image, the largest distance that it can hold. An empty mask has diameter 0. "
    "The cross-entropy needs no rule. No image is left out of any mean."
)


class Pair:
    """Truth and prediction of one image, cropped to what they contain; geometry computed once.

    Args:
        truth: [H, W], artery where non-zero.
        prediction: [H, W], artery where non-zero.
        margin: artery logit minus background logit, float [H, W]; only the cross-entropy needs it.
        covered: bool [H, W], where the network has seen the image; everywhere if left out.

    Raises:
        ValueError: shapes differ or are not [H, W].
    """

    def __init__(
        self,
        truth: ArrayLike,
        prediction: ArrayLike,
        *,
        margin: ArrayLike | None = None,
        covered: ArrayLike | None = None,
    ):
        masks = [_binary(truth, "truth"), _binary(prediction, "prediction")]
        if masks[0].shape != masks[1].shape:
            raise ValueError(f"truth is {masks[0].shape} but prediction is {masks[1].shape}")
        self.shape: tuple[int, ...] = masks[0].shape
        rows, columns = bounding_crop(masks)
        self.truth, self.prediction = (Shape(mask[rows, columns]) for mask in masks)
        self.cross_entropy_terms: Terms | None = None
        if margin is not None:
            self.cross_entropy_terms = _cross_entropy_terms(masks[0], margin, covered)

    @property
    def diagonal(self) -> float:
        """Length of the image diagonal (px)."""
        return float(np.hypot(self.shape[0], self.shape[1]))

    @property
    def empty(self) -> Empty:
        """Which of the masks is empty."""
        return _EMPTY[self.truth.area == 0, self.prediction.area == 0]

    @cached_property
    def hits(self) -> int:
        """True-positive pixels."""
        return int(np.count_nonzero(self.truth.mask & self.prediction.mask))

    @cached_property
    def surface_distances(self) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """(distance to the other surface, length) of each element, for truth and prediction."""
        (points, lengths), (others, other_lengths) = self.truth.surface, self.prediction.surface
        return [
            (self.prediction.surface_tree.query(points)[0], lengths),
            (self.truth.surface_tree.query(others)[0], other_lengths),
        ]


_EMPTY: dict[tuple[bool, bool], Empty] = {
    (False, False): "",
    (True, True): "both",
    (True, False): "truth",
    (False, True): "prediction",
}


def _binary(mask: ArrayLike, name: str) -> Mask:
    array = np.asarray(mask)
    if array.ndim != 2:
        raise ValueError(f"{name} must be [H, W] but is {array.shape}")
    return array != 0


def _cross_entropy_terms(truth: Mask, margin: ArrayLike, covered: ArrayLike | None) -> Terms:
    logit = np.asarray(margin, np.float64)
    if covered is not None and not np.all(covered):
        where = np.asarray(covered, bool)
        truth, logit = truth[where], logit[where]
    # −log softmax of the true class, log(1 + exp(x)), written so that no logit overflows. This is
    # np.logaddexp(0, x), whose loop is not vectorised and takes twice as long.
    wrong = np.where(truth, -logit, logit)
    loss = np.maximum(wrong, 0.0) + np.log1p(np.exp(-np.abs(wrong)))
    return float(loss.sum()), float(loss.size)


# ---------------------------------------------------------------------------- the definitions


def _dice(pair: Pair) -> Terms:
    return 2 * pair.hits, pair.truth.area + pair.prediction.area


def _iou(pair: Pair) -> Terms:
    return pair.hits, pair.truth.area + pair.prediction.area - pair.hits


def _precision(pair: Pair) -> Terms:
    return pair.hits, pair.prediction.area


def _recall(pair: Pair) -> Terms:
    return pair.hits, pair.truth.area


def _cldice(pair: Pair) -> Terms:
    return _centreline_hits(pair, pair.truth.skeleton, pair.prediction.skeleton)


def _soft_cldice(pair: Pair) -> Terms:
    return _centreline_hits(pair, pair.truth.soft_skeleton, pair.prediction.soft_skeleton)


def _centreline_hits(pair: Pair, of_truth: Mask, of_prediction: Mask) -> Terms:
    """Skeleton pixels of each mask: those inside the other mask, and all of them."""
    return (
        int(np.count_nonzero(of_prediction & pair.truth.mask)),
        int(np.count_nonzero(of_prediction)),
        int(np.count_nonzero(of_truth & pair.prediction.mask)),
        int(np.count_nonzero(of_truth)),
    )


def _surface_dice(pair: Pair) -> Terms:
    distances, lengths = (np.concatenate(column) for column in zip(*pair.surface_distances))
    return float(lengths[distances <= NSD_TOLERANCE].sum()), float(lengths.sum())


def modified_hausdorff(points: Points, others: Points) -> float:
    """Mean distance to the nearest point of the other set, the larger of the two directions (px).

    Dubuisson & Jain 1994. Points are [K, 2], at least one in each set.
    """
    return max(
        float(np.mean(tree(others).query(points)[0])), float(np.mean(tree(points).query(others)[0]))
    )


def _contour_distance(pair: Pair) -> Terms:
    truth, prediction = pair.truth, pair.prediction
    there = prediction.vertex_tree.query(truth.vertices)[0]
    back = truth.vertex_tree.query(prediction.vertices)[0]
    return (max(float(np.mean(there)), float(np.mean(back))),)


def _hausdorff_95(pair: Pair) -> Terms:
    return (max(_weighted_quantile(*column, 0.95) for column in pair.surface_distances),)


def _weighted_quantile(
    values: NDArray[np.float64], weights: NDArray[np.float64], quantile: float
) -> float:
    order = np.lexsort((weights, values))
    cumulative = np.cumsum(weights[order])
    index = int(np.searchsorted(cumulative / cumulative[-1], quantile))
    return float(values[order[min(index, len(order) - 1)]])


def _average_surface_distance(pair: Pair) -> Terms:
    distances, lengths = (np.concatenate(column) for column in zip(*pair.surface_distances))
    return (float(np.average(distances, weights=lengths)),)


def _diameter_error(pair: Pair) -> Terms:
    return (abs(pair.truth.mean_diameter - pair.prediction.mean_diameter),)


def _cross_entropy(pair: Pair) -> Terms:
    if pair.cross_entropy_terms is None:
        raise ValueError("the cross-entropy needs the logits: give a margin")
    return pair.cross_entropy_terms


def _itself(term: float) -> float:
    return term


def ratio(numerator: float, denominator: float) -> float:
    """Score of the metrics whose terms are a numerator and a denominator."""
    return numerator / denominator


def _harmonic(hit_a: float, all_a: float, hit_b: float, all_b: float) -> float:
    precision, recall = hit_a / all_a, hit_b / all_b
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _smooth_harmonic(hit_a: float, all_a: float, hit_b: float, all_b: float) -> float:
    return _harmonic(hit_a + 1, all_a + 1, hit_b + 1, all_b + 1)


# ---------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Metric:
    """One row of `TABLE`; calling it with two masks gives its value.

    Attributes:
        text: what it is, for tables and reports.
        terms: what is measured on one image.
        score: terms -> value.
        kind: which part of the rule for empty masks applies; 'free' metrics need none.
        unit: '' for ratios, 'px', 'nat'.
        higher_is_better: direction.
    """

    text: str
    terms: Callable[[Pair], Terms]
    score: Callable[..., float]
    kind: Kind = "overlap"
    unit: str = ""
    higher_is_better: bool = True

    def __call__(
        self, truth: ArrayLike, prediction: ArrayLike, *, margin: ArrayLike | None = None
    ) -> float:
        """The value for one image; masks [H, W], `margin` as in `Pair`."""
        return self.value(Pair(truth, prediction, margin=margin))

    def value(self, pair: Pair) -> float:
        """The value for one image."""
        ruled = _by_empty_rule(self, pair.empty, pair.diagonal)
        return float(self.score(*self.terms(pair))) if ruled is None else ruled

    @property
    def poolable(self) -> bool:
        """Whether sums of terms mean anything: distances have no pooled value."""
        return self.score is not _itself

    def pooled(self, totals: Iterable[float], empty: Empty) -> float:
        """The value of many images taken as one, from their summed terms.

        Args:
            totals: terms, summed over the images.
            empty: which of the two sides has no artery pixel in any of the images.
        """
        ruled = _by_empty_rule(self, empty, float("nan"))
        return float(self.score(*totals)) if ruled is None else ruled


def _by_empty_rule(metric: Metric, empty: Empty, diagonal: float) -> float | None:
    """What `EMPTY_MASK_RULE` says, or None where the metric's own definition holds."""
    if not empty or metric.kind == "free":
        return None
    if metric.kind == "overlap":
        return 1.0 if empty == "both" else 0.0
    return 0.0 if empty == "both" else diagonal


NSD_TOLERANCE = 2.0  # px

TABLE: Mapping[str, Metric] = {
    "dice": Metric("Dice", _dice, ratio),
    "iou": Metric("intersection over union", _iou, ratio),
    "precision": Metric("precision", _precision, ratio),
    "recall": Metric("recall (sensitivity)", _recall, ratio),
    "cldice": Metric("centreline Dice, true skeletons", _cldice, _harmonic),
    "soft_cldice": Metric("centreline Dice, soft skeletons", _soft_cldice, _smooth_harmonic),
    "nsd_2px": Metric("normalised surface Dice at 2 px", _surface_dice, ratio),
    "hausdorff_modified": Metric(
        "modified Hausdorff distance", _contour_distance, _itself, "distance", "px", False
    ),
    "hd95": Metric(
        "95th-percentile Hausdorff distance", _hausdorff_95, _itself, "distance", "px", False
    ),
    "assd": Metric(
        "average symmetric surface distance",
        _average_surface_distance,
        _itself,
        "distance",
        "px",
        False,
    ),
    "diameter_error_px": Metric(
        "error of the mean diameter", _diameter_error, _itself, "free", "px", False
    ),
    "ce": Metric("cross-entropy", _cross_entropy, ratio, "free", "nat", False),
}
