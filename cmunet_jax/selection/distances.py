"""Distances between features, in blocks: memory grows with the pool, not with its square."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.cluster import vq
from scipy.spatial.distance import cdist

_BLOCK = 1 << 22  # distances held at a time
_RESTARTS, _ITERATIONS = 5, 30

Features = NDArray[np.float64]


def blocks(rows: Features, columns: Features) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yields (rows, distances [r, M]) of Euclidean distances [N, D] × [M, D]."""
    step = max(1, _BLOCK // max(len(columns), 1))
    for start in range(0, len(rows), step):
        part = slice(start, min(start + step, len(rows)))
        yield part, cdist(rows[part], columns)


def nearest(features: Features, chosen: NDArray[np.intp]) -> NDArray[np.float64]:
    """Distance of each image to the nearest of `chosen`, float64 [N]; infinite if there is none."""
    out = np.full(len(features), np.inf)
    if len(chosen):
        for part, block in blocks(features, features[chosen]):
            out[part] = block.min(axis=1)
    return out


def kmeans(features: Features, clusters: int, *, seed: int) -> NDArray[np.intp]:
    """Cluster of each image, int [N]: the best of a few seeded runs of k-means++.

    SciPy's, which is there already and runs in one thread: the result depends on the seed alone,
    not on the number of cores. Fewer clusters come back where there are fewer distinct images.

    Args:
      features: [N, D].
      clusters: at least 1.
      seed: of the initial centres.
    """
    distinct = np.unique(features, axis=0)
    clusters = min(clusters, len(distinct))
    if clusters == len(distinct):
        return np.unique(features, axis=0, return_inverse=True)[1].reshape(-1).astype(np.intp)
    best, least = np.zeros(len(features), np.intp), np.inf
    for restart in range(_RESTARTS):
        generator = np.random.default_rng([seed, restart])
        with warnings.catch_warnings():
            # An empty cluster is no harm: nothing is chosen from it.
            warnings.filterwarnings("ignore", message="One of the clusters is empty")
            centres, codes = vq.kmeans2(
                features, clusters, iter=_ITERATIONS, minit="++", seed=generator
            )
        inertia = float(((features - centres[codes]) ** 2).sum())
        if inertia < least:
            best, least = codes.astype(np.intp), inertia
    return best


def half_radius(features: Features, codes: NDArray[np.intp]) -> float:
    """The median distance of an image to the image in the middle of its cluster.

    As many balls of this size as there are clusters can hold half of the images: the scale at which
    a pool can be covered, which shrinks with the number of labels.

    Args:
      features: [N, D].
      codes: int [N], cluster of each image.
    """
    away = np.zeros(len(features))
    for cluster in np.unique(codes):
        members = features[codes == cluster]
        middle = np.linalg.norm(members - members.mean(axis=0), axis=1).argmin()
        away[codes == cluster] = np.linalg.norm(members - members[middle], axis=1)
    return float(np.median(away))


def purity_radius(features: Features, codes: NDArray[np.intp], *, purity: float) -> float:
    """The largest radius at which a share `purity` of the balls holds images of one cluster alone.

    Yehuda et al. 2022, section 3.3. A ball is pure as long as it is smaller than the distance from
    its centre to the nearest image of another cluster, so the radius is a quantile of those
    distances. Infinite with a single cluster.

    Args:
      features: [N, D].
      codes: int [N], cluster of each image.
      purity: in (0, 1).
    """
    other = np.full(len(features), np.inf)
    for part, block in blocks(features, features):
        other[part] = np.where(codes[part][:, None] != codes, block, np.inf).min(axis=1)
    return float(np.quantile(other, 1 - purity, method="lower"))
