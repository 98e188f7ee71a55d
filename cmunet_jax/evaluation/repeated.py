"""Intervals and tests over several runs that were measured on the same images.

Two things vary: which patients were measured, and which run (draw of labelled images, seed) they
were measured with. A band that resamples only one of them is too narrow.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from cmunet_jax.evaluation.statistics import LEVEL, RESAMPLES, Clusters

_CHUNK = 1 << 21  # numbers drawn at a time
_ENUMERATED = 13  # differences whose patterns of signs are gone through one by one

Floats = NDArray[np.float64]


def mean(values: ArrayLike) -> Floats:
    """Mean over runs and images.

    Args:
        values: [R, N, M], M columns of N images in R runs; NaN where an image has no value.

    Returns:
        [M]; NaN where a column has no value at all, or an infinite one.
    """
    table = np.asarray(values, np.float64)
    missing = np.isnan(table)
    total = np.where(missing, 0, table).sum(axis=(0, 1))
    present = (~missing).sum(axis=(0, 1))
    found = np.full(table.shape[2], np.nan)
    usable = (present > 0) & np.isfinite(total)
    found[usable] = total[usable] / present[usable]
    return found


def resampled_means(
    values: ArrayLike,
    clusters: Clusters,
    draws: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Floats:
    """Bootstrap replicates of `mean`: patients resampled, crossed with perturbed runs.

    In each replicate patients are drawn with replacement, with all their images. Independently of
    them, draws of the labelled subset get random weights (a multiplier bootstrap) such that the
    mean varies around itself as Student's t with (draws − 1) degrees of freedom: s/√D · t, with s
    the standard deviation of the draws' means. Resampling three draws instead would give intervals
    that cover 75 % at most, since they end at the best and the worst draw. Seeds are averaged
    within their draw; with one draw they are the units. All columns see the same replicate, so
    functions of columns (differences, ratios) of one row are replicates of that function, paired
    by image and run.

    Args:
        values: [R, N, M] as in `mean`.
        clusters: of the N images.
        draws: [R], the draw that each run belongs to; runs of one draw differ in their seed.
        resamples: number of replicates B.
        seed: of the replicates.

    Returns:
        [B, M]; all NaN for columns with an infinite value. With one run only patients vary, with
        one patient (or one image) nothing can be learnt about others: all NaN.
    """
    table = np.asarray(values, np.float64)
    runs, _, columns = table.shape
    replicates = np.full((resamples, columns), np.nan)
    usable = ~np.isinf(table).any(axis=(0, 1))
    if clusters.count < 2 or not usable.any():
        return replicates
    table = table[:, :, usable]
    missing = np.isnan(table)
    sums = _by_cluster(np.where(missing, 0, table), clusters)
    sizes = _by_cluster((~missing).astype(np.float64), clusters)
    rng = np.random.default_rng([seed, 2])
    step = max(1, _CHUNK // (clusters.count + runs))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        patients = _times(rng, rows, clusters.count)
        weights = _run_weights(rng, rows, draws)
        total = _weighted(patients, weights, sums)
        present = _weighted(patients, weights, sizes)
        # A replicate may hold no image that has a value (a rare vessel calibre): none, not zero.
        ratio = np.divide(total, present, out=np.full_like(total, np.nan), where=present > 0)
        replicates[start : start + rows, usable] = ratio
    return replicates


def _by_cluster(table: Floats, clusters: Clusters) -> Floats:
    """Sums [C, R·M] over the images of each cluster of [R, N, M]."""
    runs, images, columns = table.shape
    flat = table.transpose(1, 0, 2).reshape(images, runs * columns)
    sums = np.zeros((clusters.count, runs * columns))
    np.add.at(sums, clusters.codes, flat)
    return sums


def _weighted(patients: Floats, weights: Floats, sums: Floats) -> Floats:
    """[B, C], [B, R], [C, R·M] -> [B, M]."""
    per_run = (patients @ sums).reshape(len(patients), weights.shape[1], -1)
    return np.einsum("br,brm->bm", weights, per_run)


def _times(rng: np.random.Generator, rows: int, count: int) -> Floats:
    """How often each of `count` things is drawn, [rows, count]; each row sums to count."""
    drawn = rng.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
    return np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(float)


def _run_weights(rng: np.random.Generator, rows: int, draws: Sequence[Hashable]) -> Floats:
    """How much each run counts, [rows, R]; each row sums to R, single weights may be negative."""
    names = list(draws) if len(set(draws)) > 1 else list(range(len(draws)))
    units = list(dict.fromkeys(names))
    count = len(units)
    if count < 2:
        return np.ones((rows, len(names)))
    unit_of = np.array([units.index(name) for name in names])
    normal = rng.normal(size=(rows, count))
    spread = np.sqrt((count - 1) / rng.chisquare(count - 1, size=(rows, 1)))
    # Of the deviations of `count` means this makes s / sqrt(count) times Student's t.
    pushes = (normal * spread * np.sqrt(count / (count - 1)))[:, unit_of]
    return 1 + pushes - pushes.mean(axis=1, keepdims=True)


def interval(replicates: ArrayLike, *, level: float = LEVEL) -> tuple[Floats, Floats]:
    """Percentile interval of bootstrap replicates [B, M] -> (low [M], high [M]).

    Replicates without a value are left out; a column without any has NaN ends.
    """
    table = np.asarray(replicates, np.float64)
    ends = np.full((2, table.shape[1]), np.nan)
    finite, tails = np.isfinite(table), [(1 - level) / 2, (1 + level) / 2]
    whole = finite.all(axis=0)
    if len(table) and whole.any():
        ends[:, whole] = np.quantile(table[:, whole], tails, axis=0)
    partly = finite.any(axis=0) & ~whole
    if partly.any():
        column = np.where(finite, table, np.nan)[:, partly]
        ends[:, partly] = np.nanquantile(column, tails, axis=0)
    return ends[0], ends[1]


def by_patient(values: ArrayLike, clusters: Clusters) -> Floats:
    """Means [C] of values [N] over the images of each cluster; NaN is left out."""
    column = np.asarray(values, np.float64)
    known = np.isfinite(column)
    sums = np.bincount(clusters.codes[known], column[known], minlength=clusters.count)
    sizes = np.bincount(clusters.codes[known], minlength=clusters.count)
    return np.divide(sums, sizes, out=np.full(clusters.count, np.nan), where=sizes > 0)


def wilcoxon(differences: ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test that paired differences are centred at 0.

    Zeros are dropped (Wilcoxon 1945). The null distribution is exact up to 13 differences, ties
    included, and up to 50 without ties; else a normal approximation.

    Args:
        differences: [N]; values that are not finite are left out.

    Returns:
        In [0, 1]; 1 if all differences are 0, NaN if there are none.
    """
    values = np.asarray(differences, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan")
    # The last bits of two means of the same numbers must not become ranks.
    values = np.where(np.abs(values) <= 1e-12, 0, values)
    values = values[values != 0]
    if not len(values):
        return 1.0
    if len(values) <= _ENUMERATED:
        return _exact(values)
    return float(scipy.stats.wilcoxon(values, zero_method="wilcox").pvalue)


def _exact(values: Floats) -> float:
    """Share of all patterns of signs whose rank sum is as far from 0 as the observed one.

    SciPy would do the same for ties, one pattern at a time, a hundred times slower.
    """
    ranks = scipy.stats.rankdata(np.abs(values))
    bits = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
    sums = np.abs((2 * bits - 1) @ ranks)
    return float(np.mean(sums >= abs(np.sign(values) @ ranks) - 1e-9))


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down correction (Holm 1979): family-wise error over all that are not NaN.

    Args:
        p_values: [K] in [0, 1]; NaN stands for a test that was not made.

    Returns:
        [K] adjusted, in [0, 1], never below the given; NaN stays NaN.
    """
    given = np.asarray(p_values, np.float64)
    adjusted = np.full(given.shape, np.nan)
    known = np.flatnonzero(np.isfinite(given))
    order = known[np.argsort(given[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(given[order] * factors))
    return adjusted
