"""Distributes images over the splits: never a patient on both sides."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from tfds_angio import splits
from tfds_angio.angio_folder.identity import Identity
from tfds_angio.angio_folder.problems import Problem
from tfds_angio.errors import UserError

_SIDE = {"train": "train", "unlabelled": "train", "val": "val", "test": "test"}


def _explicit_sides(
    groups: Mapping[str, str], identities: Mapping[str, Identity]
) -> dict[str, str]:
    """Patient -> side, from the splits that the manifest asks for."""
    asked: dict[str, set[str]] = defaultdict(set)
    for image, group in groups.items():
        if identities[image].split:
            asked[group].add(_SIDE[identities[image].split])
    for group, sides in asked.items():
        if len(sides) > 1:
            raise UserError(
                f"patient {group!r} is in the splits {' and '.join(sorted(sides))} of the "
                "manifest; give every image of a patient the same one"
            )
    return {group: next(iter(sides)) for group, sides in asked.items()}


def assign(
    labelled: Mapping[str, bool],
    identities: Mapping[str, Identity],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> tuple[dict[str, str], list[Problem]]:
    """Split of every image.

    Patients without an explicit split are drawn (`splits.patient_splits`) by their labelled images.
    Images without a mask go to `unlabelled`, except those of a val or test patient: these are left
    out, since the training pool must not show the patients of the evaluation.

    Args:
      labelled: id -> has a usable mask.
      identities: id -> identity.
      val_fraction: share of the labelled images; so is `test_fraction`.
      test_fraction: see `val_fraction`.
      seed: of the draw.

    Returns:
      id -> split (left-out images are missing), and what was left out or overruled.

    Raises:
      UserError: too few patients for the splits, or a contradiction in the manifest.
    """
    groups = {i: identities[i].patient or f"image {i}" for i in labelled}
    sides = _explicit_sides(groups, identities)
    wants_mask = {i: has and identities[i].split != "unlabelled" for i, has in labelled.items()}
    free = Counter(g for i, g in groups.items() if wants_mask[i] and g not in sides)
    if free and not any(identities[i].split for i in labelled):
        fractions = {
            "train": 1 - val_fraction - test_fraction,
            "val": val_fraction,
            "test": test_fraction,
        }
        sides |= splits.patient_splits(free, fractions=fractions, seed=seed)
    else:  # the manifest says what is val and test; whoever it does not mention is for training
        sides |= {group: "train" for group in free}
    out: dict[str, str] = {}
    problems = []
    for image, group in groups.items():
        side = sides.get(group, "train")
        if side == "train":
            out[image] = "train" if wants_mask[image] else "unlabelled"
            if labelled[image] and not wants_mask[image]:
                what = "has a mask but is `unlabelled` in the manifest"
                problems.append(Problem("info", image, what, "mask not used"))
        elif wants_mask[image]:
            out[image] = side
        else:
            what = f"no mask, and its patient is in {side}"
            problems.append(Problem("warning", image, what, "left out of the pool"))
    return out, problems
