"""The same images divided anew: a held-out part of train, the released split, a fold.

Views of a built data set: nothing is written, no image is copied, ids and content stay the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfds_angio.dataset import AngioDataset, Source
from tfds_angio.errors import UserError
from tfds_angio.splits import hash_order

BUILT, HOLDOUT, PAPER = "built", "holdout", "paper"
SEED = 0  # of the held-out part and of the folds; the draws of labels have streams of their own
PAPER_SEED, PAPER_TEST = 42, 0.2


class Selection(Source):
    """Random access to some examples of a source, in an order of its own; picklable."""

    def __init__(self, source: Source, positions: Sequence[int], name: str):
        self._source = source
        self._positions = np.asarray(positions, np.int64)
        self._name = name
        self._length = len(self._positions)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """Decodes one example; negative indices count from the end."""
        position = int(index)
        if not -self._length <= position < self._length:
            raise IndexError(f"index {position} of {self._length} examples of {self._name}")
        return self._source[int(self._positions[position])]

    def __repr__(self) -> str:
        """For logs (Grain prints its sources)."""
        return f"Selection({self._source!r}, {self._name!r}, {self._length})"


class Resplit(AngioDataset):
    """A data set whose images are divided in another way; everything else is that of `base`.

    Attributes:
      left_out: ids that are in no split any more, with the reason; empty but for a held-out part.
    """

    def __init__(
        self,
        base: AngioDataset,
        parts: Mapping[str, Sequence[str]],
        *,
        splits: str,
        left_out: Mapping[str, str] | None = None,
    ):
        self.__dict__.update(base.__dict__)
        self._base = base
        self.splits = splits
        self.left_out = {**base.left_out, **(left_out or {})}
        everything = "+".join(base.sizes)
        columns = zip(base.ids(everything), base.patients(everything), base.centres(everything))
        facts = {i: (patient, centre) for i, patient, centre in columns}
        self._splits = {
            split: {
                "ids": list(ids),
                "patients": [facts[i][0] for i in ids],
                "centres": [facts[i][1] for i in ids],
            }
            for split, ids in parts.items()
            if len(ids)
        }
        self.sizes = {split: len(columns["ids"]) for split, columns in self._splits.items()}

    def source(self, split: str) -> Source:
        """Picklable random access to the decoded examples; `split` may be 'a+b'."""
        everything = "+".join(self._base.sizes)
        place = {i: position for position, i in enumerate(self._base.ids(everything))}
        positions = [place[i] for i in self.ids(split)]
        return Selection(self._base.source(everything), positions, split)

    def labelled_order(self, draw: int) -> list[str]:
        """The order of `base`, without what is not in train: subsets stay nested."""
        train = set(self._splits.get("train", {"ids": []})["ids"])
        return [i for i in self._base.labelled_order(draw) if i in train]


class Released(Resplit):
    """The split of the released code (method: split by image, `train_test_split` of sorted files).

    The labelled subset is the `test` part of a second `train_test_split` with the same seed, whose
    parts of different sizes are prefixes of one permutation, and so nested. Draw d > 0, which the
    release does not have, takes seed 42 + d.
    """

    def labelled_order(self, draw: int) -> list[str]:
        """All training ids in the order in which the release would label them."""
        if draw < 0:
            raise UserError(f"{self.name}: no labelled draw {draw}; draws count from 0")
        train = self.ids("train")
        return [train[i] for i in _permutation(len(train), PAPER_SEED + draw)]


def _permutation(n: int, seed: int) -> np.ndarray:
    # What scikit-learn's ShuffleSplit draws; numpy guarantees this legacy stream for ever.
    return np.random.RandomState(seed).permutation(n)


def resplit(dataset: AngioDataset, rule: str) -> AngioDataset:
    """Divides the images as `rule` says.

    Args:
      dataset: as built.
      rule: 'built' (unchanged), 'holdout:N' (see `hold_out`) or 'paper' (see `as_released`).

    Raises:
      UserError: an unknown rule, or one that this data set cannot follow.
    """
    kind, _, argument = rule.partition(":")
    if kind == HOLDOUT and argument.isdecimal():
        return hold_out(dataset, int(argument))
    if rule == PAPER:
        return as_released(dataset)
    if rule != BUILT:
        raise UserError(
            f"data.splits='{rule}' is not known. Choose built, paper, or holdout:N with the number "
            "of images to hold out of train, e.g. holdout:100"
        )
    return dataset


def _units(dataset: AngioDataset, split: str) -> dict[str, str]:
    """For each id what must stay together with it: its patient, its run, or itself."""
    pairs = zip(dataset.ids(split), dataset.groups(split), strict=True)
    return {i: f"group {group}" if group else f"image {i}" for i, group in pairs}


def hold_out(dataset: AngioDataset, n: int) -> AngioDataset:
    """Takes `n` images of train, whole patients or runs, into the split `holdout`.

    Groups come in an order that only their names decide, the same whatever the labels and draws;
    each is taken if it still fits, so there may be a few images less than `n` where groups are
    large. Unlabelled images of a held-out group are left out of every split: pre-training on them
    would show the network its judges.

    Raises:
      UserError: `n` is no number of images of train, no group fits, or the data set was built
        before its groups were recorded.
    """
    rule = f"{HOLDOUT}:{n}"
    available = dataset.sizes.get("train", 0)
    if not 0 < n < available:
        raise UserError(
            f"data.splits='{rule}': train of {dataset.name} has {available} images, so hold out at "
            f"least 1 and at most {max(available - 1, 0)}"
        )
    if not dataset.knows_groups:
        raise UserError(
            f"data.splits='{rule}': {dataset.directory} was built before groups of images (frames "
            "of one run) were recorded; build it again: its `python -m tfds_angio.build` command "
            "with --rebuild (the fingerprint stays the same)"
        )
    units = _units(dataset, "train")
    sizes = Counter(units.values())
    taken: set[str] = set()
    missing = n
    for unit in hash_order(sorted(sizes), seed=SEED, stream=HOLDOUT):
        if sizes[unit] <= missing:
            taken.add(unit)
            missing -= sizes[unit]
    if not taken:
        raise UserError(
            f"data.splits='{rule}': the smallest patient of {dataset.name} has "
            f"{min(sizes.values())} images, and patients are held out whole; hold out at least that"
        )
    parts = {split: dataset.ids(split) for split in dataset.sizes}
    parts[HOLDOUT] = [i for i in parts["train"] if units[i] in taken]
    parts["train"] = [i for i in parts["train"] if units[i] not in taken]
    left_out: dict[str, str] = {}
    if "unlabelled" in parts:
        pool = _units(dataset, "unlabelled")
        left_out = {i: f"shares a patient or run with {HOLDOUT}" for i in pool if pool[i] in taken}
        parts["unlabelled"] = [i for i in parts["unlabelled"] if i not in left_out]
    return Resplit(dataset, parts, splits=rule, left_out=left_out)


def as_released(dataset: AngioDataset) -> AngioDataset:
    """The paper's protocol: all labelled images sorted by id, 20 % of them test, by image.

    Views of one patient fall on both sides; that is defect 5 of the release, and this rule exists
    to measure it. There is no val split. `unlabelled` stays.

    Raises:
      UserError: too few labelled images for two parts.
    """
    labelled = [split for split in ("train", "val", "test") if split in dataset.sizes]
    ids = sorted(dataset.ids("+".join(labelled))) if labelled else []
    held = math.ceil(PAPER_TEST * len(ids))
    if held >= len(ids):
        raise UserError(
            f"data.splits='{PAPER}': {dataset.name} has {len(ids)} labelled images, too few to "
            "divide into train and test"
        )
    order = _permutation(len(ids), PAPER_SEED)
    parts = {"train": [ids[i] for i in order[held:]], "test": [ids[i] for i in order[:held]]}
    if "unlabelled" in dataset.sizes:
        parts["unlabelled"] = dataset.ids("unlabelled")
    return Released(dataset, parts, splits=PAPER)


def assign_folds(dataset: AngioDataset, ids: Iterable[str], *, folds: int) -> dict[str, int]:
    """Divides labelled training images into folds of about the same size.

    Whole patients and runs, in a seeded order, each into the fold that is smallest so far. Under
    'paper' splits by image, as released.

    Args:
      dataset: whose train holds the ids.
      ids: the labelled subset.
      folds: how many, at least 2.

    Returns:
      id -> fold in 0..folds−1.

    Raises:
      UserError: fewer groups of images than folds.
    """
    units = _units(dataset, "train")
    if dataset.splits == PAPER:
        units = {i: f"image {i}" for i in units}
    chosen = {i: units[i] for i in ids}
    sizes = Counter(chosen.values())
    if not 2 <= folds <= len(sizes):
        groups = "" if len(sizes) == len(chosen) else f" of {len(sizes)} patients or runs"
        raise UserError(
            f"config.folds={folds}: the {len(chosen)} labelled images{groups} can be divided into "
            f"2 to {len(sizes)} folds, for nothing of a patient may be in two of them"
        )
    filled = [0] * folds
    fold_of: dict[str, int] = {}
    for unit in hash_order(sorted(sizes), seed=SEED, stream=f"{folds} folds"):
        fold_of[unit] = filled.index(min(filled))
        filled[fold_of[unit]] += sizes[unit]
    return {i: fold_of[unit] for i, unit in chosen.items()}


def with_fold(
    dataset: AngioDataset, ids: Sequence[str], *, folds: int, fold: int
) -> tuple[AngioDataset, list[str]]:
    """Moves one fold of a labelled subset from train into the split `fold`.

    Args:
      dataset: whose train holds the ids.
      ids: the labelled subset.
      folds: how many folds; see `assign_folds`.
      fold: which one, in 0..folds−1.

    Returns:
      The view, and the ids that are left to train on, in their order.

    Raises:
      UserError: folds or fold out of range.
    """
    assigned = assign_folds(dataset, ids, folds=folds)
    if not 0 <= fold < folds:
        raise UserError(f"config.fold={fold} must be in 0..{folds - 1}: config.folds={folds}")
    parts = {split: dataset.ids(split) for split in dataset.sizes}
    parts["fold"] = [i for i in ids if assigned[i] == fold]
    parts["train"] = [i for i in parts["train"] if assigned.get(i) != fold]
    view = Resplit(dataset, parts, splits=dataset.splits)
    return view, [i for i in ids if assigned[i] != fold]
