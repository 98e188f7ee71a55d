"""Methods that choose images by their features, one after the other.

Images that are labelled already count as covered. A patient counts once, however many images there
are of it: frames of one run are near each other, and would make any place look typical.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.config import choose
from cmunet_jax.selection import distances
from cmunet_jax.selection.limits import Limits
from tfds_angio.errors import UserError
from tfds_angio.splits import hash_order

NEIGHBOURS, LEAST_CLUSTER, MOST_CLUSTERS = 20, 5, 500  # of the released TypiClust
PURITY = 0.95  # of ProbCover
RADII = ("half", "purity")

Features = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """One image that was chosen.

    Attributes:
      index: its row.
      cluster: that it stands for, −1 where the method has none.
      score: by which it was taken, larger is better; its meaning is the method's.
      why: in words.
    """

    index: int
    cluster: int
    score: float
    why: str


@dataclass(frozen=True)
class Chosen:
    """The choices in their order, the cluster of every image, and what the method settled on."""

    choices: tuple[Choice, ...]
    clusters: NDArray[np.intp]
    settled: Mapping[str, float]


class Method(Protocol):
    """What every method is."""

    def __call__(
        self, features: Features, ids: Sequence[str], limits: Limits, k: int, *, seed: int,
        radius: str,
    ) -> Chosen:  # fmt: skip
        """Chooses k images among features [N, D] in the order of their ids."""


def random(
    features: Features,
    ids: Sequence[str],
    limits: Limits,
    k: int,
    *,
    seed: int,
    radius: str = RADII[0],
) -> Chosen:
    """Draws images in the order of a hash of seed and id, within the limits: the baseline."""
    del radius
    place = {name: at for at, name in enumerate(ids)}
    order = [place[name] for name in hash_order(list(ids), seed=seed, stream="selection")]
    chosen: list[int] = []
    for _ in range(k):
        allowed = limits.allowed(chosen)
        chosen.append(next(at for at in order if allowed[at]))
    choices = (Choice(at, -1, 0.0, "drawn at random") for at in chosen)
    return Chosen(tuple(choices), np.full(len(features), -1, np.intp), {})


def typiclust(
    features: Features,
    ids: Sequence[str],
    limits: Limits,
    k: int,
    *,
    seed: int,
    radius: str = RADII[0],
) -> Chosen:
    """TPC_RP: the most typical image of each of the largest clusters without a labelled one.

    Hacohen, Dekel & Weinshall 2022 (arXiv 2202.02794), section 3, with the constants of the
    release: k-means into as many clusters as there will be labels, at most 500; clusters below
    five images are noise; typicality is the inverse of the mean distance to the 20 nearest
    neighbours in the cluster (or half of it). Neighbours are of other patients, and a cluster is
    as large as it has patients: see the module.
    """
    del radius, ids
    clusters = min(k + int(limits.labelled.sum()), MOST_CLUSTERS)
    codes = distances.kmeans(features, clusters, seed=seed)
    typical = typicality(features, codes, limits.patients)
    images = np.bincount(codes)
    # Rounded: sums of thirds in another order must not decide between equal clusters.
    patients = np.round(np.bincount(codes, weights=limits.weights), 6)
    chosen: list[int] = []
    choices = []
    for _ in range(k):
        allowed = limits.allowed(chosen)
        done = limits.labelled.copy()
        done[chosen] = True
        covered = np.bincount(codes, weights=done)
        open_ = np.bincount(codes, weights=allowed) > 0
        large = open_ & (images >= LEAST_CLUSTER)
        among = np.flatnonzero(large if large.any() else open_)
        cluster = min(among, key=lambda c: (covered[c], -patients[c], c))
        index = int(np.where(allowed & (codes == cluster), typical, -np.inf).argmax())
        chosen.append(index)
        why = f"most typical of {images[cluster]} images of cluster {cluster}"
        choices.append(Choice(index, int(cluster), float(typical[index]), why))
    return Chosen(tuple(choices), codes, {"clusters": len(images)})


def typicality(
    features: Features, codes: NDArray[np.intp], patients: NDArray[np.intp]
) -> NDArray[np.float64]:
    """1 / mean distance to the nearest neighbours of other patients in the cluster, float64 [N].

    Args:
      features: [N, D].
      codes: int [N], cluster of each image.
      patients: int [N].

    Returns:
      > 0; 0 for an image whose cluster holds no other patient.
    """
    out = np.zeros(len(features))
    for cluster in np.unique(codes):
        members = np.flatnonzero(codes == cluster)
        count = min(NEIGHBOURS, len(members) // 2)
        for part, block in distances.blocks(features[members], features[members]):
            rows = members[part]
            block[patients[rows][:, None] == patients[members]] = np.inf
            near = np.sort(block, axis=1)[:, : max(count, 1)]
            found = np.isfinite(near)
            mean = np.where(found, near, 0).sum(1) / np.maximum(found.sum(1), 1)
            out[rows] = np.where(found.any(1), 1 / (mean + 1e-5), 0)
    return out


def coverage(
    features: Features,
    ids: Sequence[str],
    limits: Limits,
    k: int,
    *,
    seed: int,
    radius: str = RADII[0],
) -> Chosen:
    """ProbCover: the image whose ball holds most that no ball of a labelled image holds yet.

    Yehuda et al. 2022 (arXiv 2205.11320), algorithm 1. The radius is a number or a rule on k-means
    clusters, as many as there will be labels. 'purity' is that of the paper (section 3.3), whose
    clusters are its classes: the largest at which 95 % of the balls lie in one cluster. Angiograms
    have no classes and no gaps between clusters, which makes that very small; 'half' is the scale
    of the clusters (`distances.half_radius`). When all is covered, the image that is furthest from
    every labelled one follows (k-centre greedy, Sener & Savarese 2018).
    """
    del ids
    clusters = min(k + int(limits.labelled.sum()), MOST_CLUSTERS)
    codes = distances.kmeans(features, clusters, seed=seed)
    size = _radius(radius, features, codes)
    weights = limits.weights
    away = distances.nearest(features, np.flatnonzero(limits.labelled))
    open_ = away > size
    gain = np.zeros(len(features))
    for part, block in distances.blocks(features, features):
        gain[part] = (block <= size) @ (weights * open_)
    chosen: list[int] = []
    choices = []
    for _ in range(k):
        allowed = limits.allowed(chosen)
        # Rounded, because gains are sums and differences: equal ones must stay equal.
        index = int(np.where(allowed, np.round(gain, 9), -np.inf).argmax())
        score = gain[index] / weights.sum()
        why = f"near {score:.1%} of the pool that no earlier one covers"
        if gain[index] < 1e-9:
            index = int(np.where(allowed, np.round(away, 9), -np.inf).argmax())
            score, why = 0.0, f"all is covered: furthest from the others ({away[index]:.3g})"
        chosen.append(index)
        choices.append(Choice(index, int(codes[index]), float(score), why))
        to = distances.nearest(features, np.array([index]))
        away, newly = np.minimum(away, to), np.flatnonzero(open_ & (to <= size))
        open_[newly] = False
        for part, block in distances.blocks(features, features[newly]):
            gain[part] -= (block <= size) @ weights[newly]
    covered = float(weights[~open_].sum() / weights.sum())
    settled = {"radius": size, "clusters": int(codes.max()) + 1, "covered": covered}
    return Chosen(tuple(choices), codes, settled)


def _radius(rule: str, features: Features, codes: NDArray[np.intp]) -> float:
    """The radius by a rule of RADII, or the number that the text is."""
    if rule == "half":
        return distances.half_radius(features, codes)
    if rule == "purity":
        return distances.purity_radius(features, codes, purity=PURITY)
    try:
        radius = float(rule)
    except ValueError:
        radius = -1.0
    if not 0 < radius < np.inf:
        raise UserError(
            f"config.radius='{rule}' is no radius: choose {' or '.join(RADII)}, or a number above "
            "0 (features have length 1, so distances lie in 0..2)."
        )
    return radius


METHODS: Mapping[str, Method] = MappingProxyType(
    {"typiclust": typiclust, "coverage": coverage, "random": random}
)
"""Name in `config.method` -> function."""


def select(
    method: str,
    features: Features,
    ids: Sequence[str],
    limits: Limits,
    k: int,
    *,
    seed: int,
    radius: str = RADII[0],
) -> Chosen:
    """Chooses k images; the same set for any order of the rows.

    Args:
      method: a key of METHODS.
      features: [N, D].
      ids: distinct, of the rows.
      limits: of the rows; k images must be possible under them.
      k: at least 1.
      seed: of the clustering, or of the draw.
      radius: of `coverage`: one of RADII, or a number as text.

    Returns:
      Rows as they were given.

    Raises:
      UserError: there is no such method or radius.
    """
    choose("config.method", method, tuple(METHODS))
    order = np.array(sorted(range(len(ids)), key=lambda at: ids[at]), np.intp)
    ordered = Limits(
        limits.labelled[order],
        np.unique(limits.patients[order], return_inverse=True)[1],
        limits.centres[order],
        limits.per_patient,
        limits.quotas,
    )
    made = METHODS[method](
        features[order], [ids[at] for at in order], ordered, k, seed=seed, radius=radius
    )
    codes = np.empty_like(made.clusters)
    codes[order] = made.clusters
    choices = (Choice(int(order[c.index]), c.cluster, c.score, c.why) for c in made.choices)
    return Chosen(tuple(choices), codes, made.settled)
