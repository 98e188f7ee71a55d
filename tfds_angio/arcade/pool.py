"""Decides which images stay, so that nothing of the evaluation is in the training pool."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence

from tfds_angio.arcade.near_duplicates import Pair, Signature, compare, find_pairs

# Whose images win when two parts share a run. train and unlabelled form one pool.
_SIDES = {"test": 0, "val": 1, "train": 2, "unlabelled": 2}


@dataclasses.dataclass(frozen=True)
class Item:
    """An image before the decision: its id, the split it would be in, its annotated area."""

    id: str
    split: str
    area: float = 0.0


@dataclasses.dataclass(frozen=True)
class Removed:
    """An image that was left out, and the one that stays in its place."""

    item: Item
    kept: Item
    pair: Pair
    reason: str


def components(n: int, edges: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Connected components with at least two members, sorted."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in edges:
        parent[max(root(i), root(j))] = min(root(i), root(j))
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(n):
        groups[root(i)].append(i)
    return [group for group in groups.values() if len(group) > 1]


class _Decider:
    def __init__(self, items: Sequence[Item], signatures: Sequence[Signature], pairs: list[Pair]):
        self.items, self.signatures, self.pairs = items, signatures, pairs
        self.removed: dict[int, Removed] = {}

    def groups(self, threshold: float) -> list[list[int]]:
        edges = [
            (p.first, p.second)
            for p in self.pairs
            if p.correlation >= threshold
            and p.first not in self.removed
            and p.second not in self.removed
        ]
        return components(len(self.items), edges)

    def remove(self, i: int, stay: Sequence[int], reason: str) -> None:
        """Leaves image i out in favour of the most similar of those that stay."""
        best = max((compare(self.signatures, i, j) for j in stay), key=lambda p: p.correlation)
        kept = best.first if best.second == i else best.second
        self.removed[i] = Removed(self.items[i], self.items[kept], best, reason)


def decide(
    items: Sequence[Item],
    signatures: Sequence[Signature],
    *,
    run_correlation: float,
    frame_correlation: float,
) -> tuple[list[Pair], list[Removed]]:
    """Finds what must go.

    1. Images of one run (correlation ≥ `run_correlation`, directly or through others) stay on one
       side only: test before val before the pool. Frames of a run are of one patient, so this is
       as near to a split by patient as a set without patient ids allows.
    2. Of images of one frame (correlation ≥ `frame_correlation`) on the same side one stays: a
       labelled one before an unlabelled one, then the larger mask, then the first.

    Returns:
      the similar pairs, strongest first, and the removals in the order of `items`.
    """
    decider = _Decider(items, signatures, find_pairs(signatures, threshold=run_correlation))
    for group in decider.groups(run_correlation):
        sides = {i: _SIDES[items[i].split] for i in group}
        stay = [i for i in group if sides[i] == min(sides.values())]
        for i in sorted(set(group) - set(stay)):
            decider.remove(i, stay, f"shares a run with {items[stay[0]].split}")
    for group in decider.groups(frame_correlation):

        def preference(i: int) -> tuple[bool, float, int]:
            return items[i].split == "unlabelled", -items[i].area, i

        best = min(group, key=preference)
        for i in group:
            if i != best:
                decider.remove(i, [best], f"same frame as in {items[best].split}")
    return decider.pairs, [decider.removed[i] for i in sorted(decider.removed)]


def runs(ids: Sequence[str], pairs: Iterable[Pair]) -> dict[str, str]:
    """For each id the name of its run, for images that share one, directly or through others.

    Images that were left out count: two frames may be known to be of one run through a third.

    Args:
      ids: in the order that the pairs refer to.
      pairs: the similar ones, from `decide`.
    """
    groups = components(len(ids), [(pair.first, pair.second) for pair in pairs])
    return {ids[i]: f"run of {ids[group[0]]}" for group in groups for i in group}


def removed_csv(removed: Sequence[Removed]) -> str:
    """The list of removed images as CSV text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "id",
            "split",
            "kept_id",
            "kept_split",
            "correlation",
            "hamming",
            "shift_y",
            "shift_x",
            "reason",
        ]
    )
    for one in removed:
        shift_y, shift_x = (4 * shift for shift in one.pair.shift)  # in pixels of a 512 image
        ids = [one.item.id, one.item.split, one.kept.id, one.kept.split]
        how = [f"{one.pair.correlation:.4f}", one.pair.hamming, shift_y, shift_x, one.reason]
        writer.writerow([*ids, *how])
    return out.getvalue()
