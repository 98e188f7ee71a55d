"""Intervals and paired tests over images that are not independent of each other.

Views of one patient resemble each other, so an interval that treats them as independent is too
narrow. Everything here resamples whole clusters: patients where they are known, else images.
All draws come from a seed, in chunks, so memory stays bounded and results are reproducible.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfds_angio.errors import UserError

LEVEL = 0.95
RESAMPLES = 10_000
_CHUNK = 1 << 21  # numbers drawn at a time


@dataclass(frozen=True)
class Clusters:
    """Which images belong together.

    Attributes:
        codes: int [N], the cluster of each image, 0 .. count − 1.
        count: number of clusters.
        unit: 'patient', or 'image' where no patient is known.
        note: one sentence for the reader of an interval.
    """

    codes: NDArray[np.intp]
    count: int
    unit: str
    note: str


def cluster(patients: Sequence[str]) -> Clusters:
    """Groups images by patient; an image without a known patient ('') stands for itself."""
    index: dict[str | int, int] = {}
    codes = np.array(
        [index.setdefault(patient or at, len(index)) for at, patient in enumerate(patients)],
        np.intp,
    )
    count = len(index)
    unknown = sum(not patient for patient in patients)
    if unknown == len(patients):
        note = (
            "Patients are unknown: images were resampled as if independent. If several images "
            "show one patient, the intervals are too narrow."
        )
        return Clusters(codes, count, "image", note)
    note = f"Patients were resampled, with all their images ({count - unknown} patients)."
    if unknown:
        note += f" {unknown} images without a known patient counted as one patient each."
    return Clusters(codes, count, "patient", note)


def bootstrap_intervals(
    values: ArrayLike,
    clusters: Clusters,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Percentile bootstrap intervals of the mean over images, clusters resampled.

    Clusters are drawn with replacement, as many as there are; the statistic is the mean over all
    images that they hold (Field & Welsh 2007, the cluster bootstrap). All columns see the same
    draws.

    Args:
        values: [N] or [N, M], M metrics of N images.
        clusters: of the N images.
        level: coverage, in (0, 1).
        resamples: number of draws.
        seed: of the draws.

    Returns:
        [2] or [2, M]: lower and upper end; NaN where a column holds a value that is not finite, or
        everywhere with fewer than two clusters, from which no spread can be learnt.
    """
    table = np.asarray(values, np.float64)
    columns = table.reshape(len(table), -1)
    ends = np.full((2, columns.shape[1]), np.nan)
    finite = np.isfinite(columns).all(axis=0)
    if clusters.count >= 2 and finite.any():
        sums = _cluster_sums(columns[:, finite], clusters)
        sizes = np.bincount(clusters.codes, minlength=clusters.count)
        rng = np.random.default_rng(seed)
        means = np.concatenate(
            [times @ sums / (times @ sizes)[:, None] for times in _draws(rng, clusters, resamples)]
        )
        tails = [(1 - level) / 2, (1 + level) / 2]
        ends[:, finite] = np.quantile(means, tails, axis=0)
    return ends.reshape(2, *table.shape[1:])


def _cluster_sums(columns: NDArray[np.float64], clusters: Clusters) -> NDArray[np.float64]:
    sums = np.zeros((clusters.count, columns.shape[1]))
    np.add.at(sums, clusters.codes, columns)
    return sums


def _draws(
    rng: np.random.Generator, clusters: Clusters, resamples: int
) -> Iterator[NDArray[np.float64]]:
    """How often each cluster is drawn: blocks [r, C] whose rows each sum to C."""
    count = clusters.count
    step = max(1, _CHUNK // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=rows * count)
        yield times.reshape(rows, count).astype(np.float64)


@dataclass(frozen=True)
class PairedDifference:
    """The mean of (a − b) over the same images.

    Attributes:
        metric: name.
        n: images.
        mean: mean difference, in the metric's unit.
        low: lower end of the bootstrap interval; NaN with fewer than two clusters.
        high: upper end.
        p_value: two-sided sign-flip permutation test of no difference, clusters flipped whole.
        wins: images where a > b; ties count half.
        unit: what was resampled, 'patient' or 'image'.
        note: one sentence about it.
    """

    metric: str
    n: int
    mean: float
    low: float
    high: float
    p_value: float
    wins: float
    unit: str
    note: str

    def to_dict(self) -> dict[str, Any]:
        """A plain dict, for JSON and tables."""
        return asdict(self)


def paired_difference(
    rows_a: Sequence[Mapping[str, Any]],
    rows_b: Sequence[Mapping[str, Any]],
    metric: str,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Compares two evaluations of the same images, image by image.

    Args:
        rows_a: rows of one evaluation (`Evaluation.rows` or `results.read_cases`), with `id`,
            `patient` and the metric.
        rows_b: rows of the other, the same ids in any order.
        metric: name of the column.
        level: coverage of the interval.
        resamples: draws of the bootstrap and of the permutation test.
        seed: of both.

    Raises:
        UserError: the ids differ, repeat, or a value is not finite.
    """
    by_id = {row["id"]: row for row in rows_b}
    ids = [row["id"] for row in rows_a]
    if len(set(ids)) != len(ids) or len(by_id) != len(rows_b) or set(ids) != set(by_id):
        raise UserError(
            "the two evaluations are not of the same images, each once: evaluate both checkpoints "
            "on the same split of the same data set"
        )
    difference = np.array([float(row[metric]) - float(by_id[row["id"]][metric]) for row in rows_a])
    if not len(ids) or not np.isfinite(difference).all():
        raise UserError(
            f"{metric} has no images or infinite values, so there is no mean difference: compare "
            "evaluations of protocol 'fixed', whose values are all finite"
        )
    clusters = cluster([row["patient"] for row in rows_a])
    low, high = bootstrap_intervals(
        difference, clusters, level=level, resamples=resamples, seed=seed
    )
    return PairedDifference(
        metric=metric,
        n=len(ids),
        mean=float(difference.mean()),
        low=float(low),
        high=float(high),
        p_value=_sign_flip(difference, clusters, resamples, seed),
        wins=float(np.sum(difference > 0) + 0.5 * np.sum(difference == 0)),
        unit=clusters.unit,
        note=clusters.note,
    )


def _sign_flip(
    difference: NDArray[np.float64], clusters: Clusters, resamples: int, seed: int
) -> float:
    """Share of random sign patterns whose mean is at least as far from 0, the observed included."""
    sums = _cluster_sums(difference[:, None], clusters)[:, 0]
    # Rounding must not decide whether a pattern ties with the observed one.
    observed = abs(sums.sum()) * (1 - 1e-9)
    rng = np.random.default_rng([seed, 1])
    step = max(1, _CHUNK // clusters.count)
    extreme = 0
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        signs = rng.integers(2, size=(rows, clusters.count)) * 2 - 1
        extreme += int(np.count_nonzero(np.abs(signs @ sums) >= observed))
    return (extreme + 1) / (resamples + 1)
