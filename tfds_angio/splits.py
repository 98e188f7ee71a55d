"""Splits by patient and nested labelled subsets, as functions of a seed and the names alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from tfds_angio.errors import UserError

LABELLED_SIZES = (18, 40, 90, 180, 360, 500)
LABELLED_DRAWS = 5
LABELLED_SEED = 0


def hash_order(names: Sequence[str], *, seed: int, stream: str) -> list[str]:
    """A random order of distinct names: by the SHA-256 of seed, stream and name.

    Unlike a library's generator it gives the same order in every version of every library, and
    adding a name leaves the others in their order.
    """
    if len(set(names)) != len(names):
        raise ValueError("names must be distinct")

    def key(name: str) -> tuple[str, str]:
        return hashlib.sha256(f"{seed}\0{stream}\0{name}".encode()).hexdigest(), name

    return sorted(names, key=key)


def labelled_draws(
    ids: Sequence[str],
    *,
    name: str,
    version: str,
    fingerprint: str,
    seed: int = LABELLED_SEED,
    draws: int = LABELLED_DRAWS,
    sizes: Sequence[int] = LABELLED_SIZES,
) -> list[dict[str, Any]]:
    """One publishable record a draw: an order of the training ids; a subset is a prefix of it.

    Prefixes make the subsets of a draw nested, so that a curve over label counts adds labels and
    never exchanges them (method: 18 images are 1 % of the paper's set, 500 are 30 %).
    """
    kept = [size for size in sizes if size <= len(ids)]
    return [
        {
            "dataset": name,
            "version": version,
            "fingerprint": fingerprint,
            "split": "train",
            "seed": seed,
            "draw": draw,
            "rule": "ids in the order of sha256(seed NUL 'labelled' draw NUL id); "
            "the subset of size n is the first n",
            "sizes": kept,
            "ids": hash_order(ids, seed=seed, stream=f"labelled{draw}"),
        }
        for draw in range(draws)
    ]


def patient_splits(
    images_per_patient: Mapping[str, int], *, fractions: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Assigns whole patients to splits so that the image counts approach the fractions.

    Patients come in a seeded random order; each goes to the split that is furthest below its
    target. The choice does not look at the patient's own number of images, so large and small
    patients are equally likely in every split.

    Args:
      images_per_patient: patient -> number of (labelled) images.
      fractions: split -> share of the images, summing to 1.
      seed: of the order.

    Returns:
      patient -> split.

    Raises:
      UserError: fractions that are no fractions, or a split that would stay empty.
    """
    if any(f < 0 for f in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError(f"split fractions {dict(fractions)} must be ≥ 0 and sum to 1")
    wanted = [split for split, fraction in fractions.items() if fraction > 0]
    if len(images_per_patient) < len(wanted):
        raise UserError(
            f"{len(images_per_patient)} labelled patient(s) cannot fill the splits "
            f"{', '.join(wanted)}; label more patients or set val_fraction or test_fraction to 0"
        )
    total = sum(images_per_patient.values())
    missing = {split: fractions[split] * total for split in wanted}
    order = hash_order(sorted(images_per_patient), seed=seed, stream="patients")
    assigned: dict[str, str] = {}
    for position, patient in enumerate(order):
        empty = [s for s in wanted if s not in assigned.values()]
        # The last patients are kept for splits that have none yet.
        pool = empty if len(order) - position <= len(empty) else wanted
        split = max(pool, key=lambda name: (missing[name], -wanted.index(name)))
        assigned[patient] = split
        missing[split] -= images_per_patient[patient]
    return assigned
