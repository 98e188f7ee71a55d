"""Divided anew, no image is lost or doubled, groups stay whole and label subsets stay nested."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from tfds_angio import resplit, splits
from tfds_angio.base import AngioDataset
from tfds_angio.errors import UserError

# (images, of which unlabelled) of each patient; 0: single images of unknown patients.
PATIENTS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=2, max_size=12)


def built(
    directory: Path,
    patients: list[tuple[int, int]],
    *,
    singles: int = 0,
    run: tuple[int, ...] | None = (),
    val: int = 0,
    test: int = 0,
) -> AngioDataset:
    """The index of a data set without its records: nothing here decodes an image."""
    train, pool = [], []
    for p, (labelled, unlabelled) in enumerate(patients):
        train += [(f"p{p}_{v}", f"p{p}") for v in range(labelled)]
        pool += [(f"p{p}_u{v}", f"p{p}") for v in range(unlabelled)]
    train += [(f"single{i}", "") for i in range(singles)]
    parts = {"train": train, "unlabelled": pool}
    for split, n in (("val", val), ("test", test)):
        parts[split] = [(f"{split}{i}", f"{split}{i}") for i in range(n)]
    index = {
        "name": "invented",
        "version": "1.0.0",
        "fingerprint": "f" * 64,
        "options": {},
        "source_signature": "",
        "splits": {
            split: {
                "ids": [i for i, _ in rows],
                "patients": [p for _, p in rows],
                "centres": ["" for _ in rows],
            }
            for split, rows in parts.items()
            if rows
        },
    }
    if run is not None:
        index["groups"] = {f"single{i}": "run of single0" for i in run}
    (directory / "splits").mkdir(parents=True, exist_ok=True)
    draws = splits.labelled_draws(
        [i for i, _ in train], name="invented", version="1.0.0", fingerprint="f" * 64
    )
    for draw in draws:
        (directory / "splits" / f"labelled_draw{draw['draw']}.json").write_text(json.dumps(draw))
    (directory / "index.json").write_text(json.dumps(index))
    return AngioDataset(directory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder that hypothesis may write an index into again and again."""
    return tmp_path_factory.mktemp("invented")


def all_ids(dataset: AngioDataset) -> list[str]:
    return [i for split in dataset.sizes for i in dataset.ids(split)]


@settings(max_examples=60, deadline=None)
@given(patients=PATIENTS, singles=st.integers(0, 12), data=st.data())
def test_a_held_out_part_keeps_groups_whole_and_loses_nothing(folder, patients, singles, data):
    base = built(folder, patients, singles=singles, run=tuple(range(min(singles, 3))))
    n = data.draw(st.integers(1, base.sizes["train"] - 1))
    try:
        view = resplit.resplit(base, f"holdout:{n}")
    except UserError as error:
        assert "held out whole" in str(error)
        assert min(base.groups("train").count(g) for g in base.groups("train")) > n
        return
    assert sorted([*all_ids(view), *view.left_out]) == sorted(all_ids(base))
    assert set(view.left_out) <= set(base.ids("unlabelled") if "unlabelled" in base.sizes else [])
    assert 0 < view.sizes["holdout"] <= n
    judges = set(view.groups("holdout")) - {""}
    pool = "train+unlabelled"
    assert not judges & set(view.groups(pool))
    # What does not fit is a whole group: none of those left would have fitted.
    missing = n - view.sizes["holdout"]
    left = view.groups("train")
    assert all((left.count(g) if g else 1) > missing for g in left)
    for draw in range(2):
        order = view.labelled_order(draw)
        assert sorted(order) == sorted(view.ids("train"))
        assert order == [i for i in base.labelled_order(draw) if i not in view.ids("holdout")]
    assert (view.fingerprint, view.splits) == (base.fingerprint, f"holdout:{n}")


def test_the_held_out_part_is_exact_for_single_images_and_does_not_depend_on_others(tmp_path):
    few = resplit.hold_out(built(tmp_path / "few", [], singles=30), 10)
    more = resplit.hold_out(built(tmp_path / "more", [], singles=40), 10)
    assert few.sizes == {"train": 20, "holdout": 10}
    assert few.ids("holdout") != few.labelled_order(0)[:10], "drawn as the labels are"
    # A larger set takes others before them, and leaves the rest in their order.
    assert len(set(few.ids("holdout")) & set(more.ids("holdout"))) >= 5
    assert isinstance(few, resplit.Resplit)
    nested = [set(resplit.hold_out(few._base, n).ids("holdout")) for n in (5, 10, 15)]
    assert nested[0] < nested[1] < nested[2]


@settings(max_examples=40, deadline=None)
@given(train=st.integers(1, 60), val=st.integers(0, 20), test=st.integers(0, 9), data=st.data())
def test_the_released_split_is_that_of_scikit_learn(folder, train, val, test, data):
    base = built(folder, [(1, 1)] * train, val=val, test=test)
    labelled = sorted(i for i in all_ids(base) if "_u" not in i)
    if len(labelled) < 2:
        with pytest.raises(UserError, match="1 labelled images, too few"):
            resplit.resplit(base, "paper")
        return
    view = resplit.resplit(base, "paper")
    pool, held = train_test_split(labelled, test_size=0.2, random_state=42)
    assert (view.ids("train"), view.ids("test")) == (pool, held)
    assert view.ids("unlabelled") == base.ids("unlabelled")
    assert "val" not in view.sizes and sorted(all_ids(view)) == sorted(all_ids(base))
    if len(pool) > 1:
        n = data.draw(st.integers(1, len(pool) - 1))
        unused, chosen = train_test_split(pool, test_size=n, random_state=42)
        assert view.labelled_ids(n, draw=0) == chosen
        assert set(unused).isdisjoint(chosen)
    orders = [view.labelled_order(draw) for draw in range(2)]
    assert all(sorted(order) == sorted(pool) for order in orders)


def test_a_fraction_of_the_whole_set_is_what_the_release_labels(tmp_path):
    view = resplit.as_released(built(tmp_path, [], singles=1800))
    pool = view.ids("train")
    for fraction in (0.01, 0.3):
        _, chosen = train_test_split(pool, test_size=fraction / 0.8, random_state=42)
        assert view.labelled_ids(math.ceil(fraction * 1800), draw=0) == chosen


@settings(max_examples=60, deadline=None)
@given(patients=PATIENTS, singles=st.integers(0, 12), folds=st.integers(2, 5), data=st.data())
def test_folds_partition_the_labels_and_keep_groups_whole(folder, patients, singles, folds, data):
    base = built(folder, patients, singles=singles)
    n = data.draw(st.integers(1, base.sizes["train"]))
    ids = base.labelled_ids(n, draw=1)
    group_of = dict(zip(base.ids("train"), base.groups("train")))
    units = {group_of[i] or i for i in ids}
    if len(units) < folds:
        with pytest.raises(UserError, match=f"config.folds={folds}"):
            resplit.with_fold(base, ids, folds=folds, fold=0)
        return
    held: list[str] = []
    sizes: list[int] = []
    for fold in range(folds):
        view, left = resplit.with_fold(base, ids, folds=folds, fold=fold)
        assert sorted(left + view.ids("fold")) == sorted(ids)
        assert left == [i for i in ids if i in set(left)]
        assert not {group_of[i] for i in left} & {group_of[i] for i in view.ids("fold")} - {""}
        assert sorted(all_ids(view)) == sorted(all_ids(base))
        assert set(left) <= set(view.ids("train"))
        held += view.ids("fold")
        sizes.append(view.sizes["fold"])
    assert sorted(held) == sorted(ids)
    largest = max(Counter(group_of[i] or i for i in ids).values())
    assert max(sizes) - min(sizes) <= largest


def test_folds_of_the_released_split_are_by_image(tmp_path):
    base = resplit.as_released(built(tmp_path, [(5, 0)] * 4))
    ids = base.labelled_ids(9, draw=0)
    sizes = [resplit.with_fold(base, ids, folds=3, fold=f)[0].sizes["fold"] for f in range(3)]
    assert sizes == [3, 3, 3]


def test_a_fold_within_a_held_out_part(tmp_path):
    base = resplit.hold_out(built(tmp_path, [(2, 1)] * 10), 6)
    view, left = resplit.with_fold(base, base.labelled_ids(6, draw=0), folds=3, fold=2)
    assert view.splits == "holdout:6" and view.sizes["holdout"] == 6
    assert view.left_out == base.left_out and len(view.left_out) == 3
    assert not set(view.ids("fold")) & {*left, *view.ids("holdout"), *view.ids("train")}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("holdout:30", "train of invented has 30 images, so hold out at least 1 and at most 29"),
        ("holdout:0", "at least 1"),
        ("holdout", "not known. Choose built, paper, or holdout:N"),
        ("holdout:-3", "not known"),
        ("holdout:1e2", "not known"),
        ("Paper", "data.splits='Paper' is not known"),
        ("", "not known"),
    ],
)
def test_rules_that_cannot_be_followed(tmp_path, rule, message):
    with pytest.raises(UserError, match=message) as error:
        resplit.resplit(built(tmp_path, [], singles=30), rule)
    assert "\n" not in str(error.value)


def test_folds_out_of_range(tmp_path):
    base = built(tmp_path, [(3, 0)] * 2, singles=1)
    ids = base.ids("train")
    with pytest.raises(UserError, match="7 labelled images of 3 patients or runs .* 2 to 3 folds"):
        resplit.with_fold(base, ids, folds=4, fold=0)
    with pytest.raises(UserError, match="config.folds=1"):
        resplit.with_fold(base, ids, folds=1, fold=0)
    with pytest.raises(UserError, match=r"config.fold=3 must be in 0..2"):
        resplit.with_fold(base, ids, folds=3, fold=3)


def test_patients_are_too_large_to_hold_out(tmp_path):
    with pytest.raises(UserError, match="smallest patient of invented has 4 images"):
        resplit.hold_out(built(tmp_path, [(4, 0)] * 3), 3)


def test_a_build_without_a_record_of_its_groups(tmp_path):
    old = built(tmp_path / "a", [], singles=9, run=None)
    with pytest.raises(UserError, match="was built before groups .* --rebuild"):
        resplit.hold_out(old, 3)
    known = built(tmp_path / "b", [(3, 0)] * 3, run=None)
    assert resplit.hold_out(known, 3).sizes["holdout"] == 3, "patients say it all"
    assert resplit.resplit(old, "built") is old
