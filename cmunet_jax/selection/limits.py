"""Which images may still be chosen: not labelled ones, few of a patient, some of each centre."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.config import choose
from cmunet_jax.evaluation import statistics
from cmunet_jax.selection.pool import Item
from tfds_angio.errors import UserError

CENTRES = ("proportional", "equal", "any")


@dataclass(frozen=True)
class Limits:
    """The rules of one selection.

    Attributes:
      labelled: bool [N].
      patients: int [N], code of the patient (or run); an image without one is by itself.
      centres: int [N], code of the centre.
      per_patient: most images of a patient, labelled ones included; 0 for no limit.
      quotas: int [C], most images to choose of a centre while others have some.
    """

    labelled: NDArray[np.bool_]
    patients: NDArray[np.intp]
    centres: NDArray[np.intp]
    per_patient: int
    quotas: NDArray[np.intp]

    def allowed(self, chosen: Sequence[int]) -> NDArray[np.bool_]:
        """Which images may be next, bool [N]; false everywhere when there is none left."""
        taken = self.labelled.copy()
        taken[list(chosen)] = True
        free = ~taken
        if self.per_patient:
            free &= np.bincount(self.patients, weights=taken)[self.patients] < self.per_patient
        filled = np.bincount(self.centres[list(chosen)], minlength=len(self.quotas))
        within = free & (filled < self.quotas)[self.centres]
        return within if within.any() else free

    @property
    def most(self) -> int:
        """How many images can be chosen at all."""
        labelled = np.bincount(self.patients, weights=self.labelled)
        free = np.bincount(self.patients, weights=~self.labelled)
        if self.per_patient:
            free = np.minimum(free, np.maximum(self.per_patient - labelled, 0))
        return int(free.sum())

    @property
    def weights(self) -> NDArray[np.float64]:
        """float64 [N] in (0, 1]: a patient counts once, however many images there are of it."""
        return 1 / np.bincount(self.patients)[self.patients]


def of_items(items: Sequence[Item], *, k: int, per_patient: int, centres: str) -> Limits:
    """The limits of a pool.

    Args:
      items: of the pool.
      k: images to choose.
      per_patient: most images of a patient, labelled ones included; 0 for no limit.
      centres: 'proportional' (of a centre at most its share of the images to choose from, rounded
        up), 'equal' (at most the same number of each, rounded up) or 'any'.

    Raises:
      UserError: the pool is empty, or too small for k under these limits.
    """
    choose("config.centres", centres, CENTRES)
    names = sorted({item.centre for item in items})
    codes = np.array([names.index(item.centre) for item in items], np.intp)
    labelled = np.array([item.labelled for item in items], bool)
    free = np.bincount(codes[~labelled], minlength=len(names))
    parts = {"proportional": free, "equal": free > 0}.get(centres, np.zeros(0))
    # Less a hair: a third of 18 is 6, also where it is computed as a little more.
    most = np.ceil(k * parts / max(parts.sum(), 1) - 1e-9) if parts.size else [k] * len(names)
    limits = Limits(
        labelled=labelled,
        patients=statistics.cluster([item.patient for item in items]).codes,
        centres=codes,
        per_patient=per_patient,
        quotas=np.asarray(most, np.intp),
    )
    _require(limits, k)
    return limits


def _require(limits: Limits, k: int) -> None:
    free = int(np.count_nonzero(~limits.labelled))
    if not free:
        count = len(limits.labelled)
        has = f"all of its {count} images are labelled" if count else "no image of it can be read"
        raise UserError(
            f"the pool is empty: {has}. Name a split or folder with images to label "
            "(config.split, config.input), or choose among labelled ones with config.masks=ignore."
        )
    if k > free:
        raise UserError(
            f"config.k={k} is more than the {free} images to choose from. Use at most {free}."
        )
    if k > limits.most:
        fewest = math.ceil(k / max(len(set(limits.patients[~limits.labelled])), 1))
        raise UserError(
            f"config.k={k}: with config.per_patient={limits.per_patient}, labelled images "
            f"included, {limits.most} images can be chosen. Choose fewer, or raise "
            f"config.per_patient (to {max(fewest, limits.per_patient + 1)} or more; 0: no limit)."
        )
