"""Which images may still be chosen: not labelled ones, few of a patient, some of each centre."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.config import choose
from cmunet_jax.evaluation import statistics
from cmunet_jax.selection.pool import Item
from tfds_angio.errors import UserError

_FEWEST_READ = 16  # at a time, by the threads
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
        return self.most_of(~self.labelled)

    def most_of(self, images: NDArray[np.bool_]) -> int:
        """How many of some unlabelled images, bool [N], can be chosen."""
        labelled = np.bincount(self.patients, weights=self.labelled)
        free = np.bincount(self.patients, weights=images)
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
    limits = _of_items(items, k=k, per_patient=per_patient, centres=centres)
    _require_free(limits)
    if k > limits.most:
        raise _too_many(limits, k, limits.most)
    return limits


def check_readable(
    items: Sequence[Item],
    why_not: Callable[[int], str],
    *,
    k: int,
    per_patient: int,
    centres: str,
    workers: int,
) -> None:
    """Reads images until k can be chosen among those that can be read, and no more.

    So a k that is too large is refused before the features are there, and with the number that is
    left without what cannot be read.

    Args:
      items: of the pool.
      why_not: position -> why an image cannot be used, '' if it can; called from several threads.
      k: as of `of_items`.
      per_patient: as of `of_items`.
      centres: as of `of_items`.
      workers: threads that read.

    Raises:
      UserError: as of `of_items`.
    """
    listed = _of_items(items, k=k, per_patient=per_patient, centres=centres)
    _require_free(listed)
    order, fewest = _one_of_each_first(listed.patients), _FEWEST_READ
    unread, readable = np.ones(len(items), bool), np.zeros(len(items), bool)
    failed: dict[int, str] = {}
    with ThreadPoolExecutor(workers) as threads:
        while True:
            # A labelled image counts for its patient unless it cannot be read.
            limits = replace(listed, labelled=listed.labelled & (unread | readable))
            most = limits.most_of(readable & ~listed.labelled)
            if most >= k:
                return
            counted = np.bincount(listed.patients, weights=limits.labelled | readable)
            full = bool(per_patient) & (counted >= per_patient)[listed.patients]
            wanted = unread & ~listed.labelled & ~full
            if not wanted.any():  # if labelled images fail, more of their patients may be chosen
                wanted = unread & listed.labelled & bool(per_patient)
            positions = order[wanted[order]][: max(fewest, k - most)].tolist()
            if not positions:
                break
            fewest *= 2
            for at, reason in zip(positions, threads.map(why_not, positions), strict=True):
                unread[at], readable[at] = False, not reason
                if reason:
                    failed[at] = reason
    left = [item for at, item in enumerate(items) if at not in failed]
    within = _of_items(left, k=k, per_patient=per_patient, centres=centres)
    _require_free(within)
    raise _too_many(within, k, most, [f"{items[at].id}: {failed[at]}" for at in sorted(failed)])


def _one_of_each_first(patients: NDArray[np.intp]) -> NDArray[np.intp]:
    """Positions [N]: first one of each patient, then a second of each, …"""
    by_patient = np.argsort(patients, kind="stable")
    _, starts, counts = np.unique(patients[by_patient], return_index=True, return_counts=True)
    turn = np.empty(len(patients), np.intp)
    turn[by_patient] = np.arange(len(patients)) - np.repeat(starts, counts)
    return np.argsort(turn, kind="stable")


def _of_items(items: Sequence[Item], *, k: int, per_patient: int, centres: str) -> Limits:
    """As `of_items`, for any k."""
    choose("config.centres", centres, CENTRES)
    names = sorted({item.centre for item in items})
    codes = np.array([names.index(item.centre) for item in items], np.intp)
    labelled = np.array([item.labelled for item in items], bool)
    free = np.bincount(codes[~labelled], minlength=len(names))
    parts = {"proportional": free, "equal": free > 0}.get(centres, np.zeros(0))
    # Less a hair: a third of 18 is 6, also where it is computed as a little more.
    most = np.ceil(k * parts / max(parts.sum(), 1) - 1e-9) if parts.size else [k] * len(names)
    return Limits(
        labelled=labelled,
        patients=statistics.cluster([item.patient for item in items]).codes,
        centres=codes,
        per_patient=per_patient,
        quotas=np.asarray(most, np.intp),
    )


def _require_free(limits: Limits) -> None:
    if limits.labelled.all():
        count = len(limits.labelled)
        has = f"all of its {count} images are labelled" if count else "no image of it can be read"
        raise UserError(
            f"the pool is empty: {has}. Name a split or folder with images to label "
            "(config.split, config.input), or choose among labelled ones with config.masks=ignore."
        )


def _too_many(limits: Limits, k: int, most: int, failed: Sequence[str] = ()) -> UserError:
    """Says how many can be chosen, `most`, and why not more."""
    text = f"config.k={k} is more than the {most} images that can be chosen"
    if most < np.count_nonzero(~limits.labelled):
        text += f" with config.per_patient={limits.per_patient}, labelled images included"
    if failed:
        text += f"; {len(failed)} cannot be read (the first is {failed[0]})"
    text += f". Use at most {most}"
    largest = int(np.bincount(limits.patients).max())
    wider = range(limits.per_patient + 1, largest + 1) if limits.per_patient else ()
    enough = (p for p in wider if replace(limits, per_patient=p).most >= k)
    if fewest := next(enough, 0):
        text += f", or raise config.per_patient (to {fewest} or more; 0: no limit)"
    return UserError(f"{text}.")
