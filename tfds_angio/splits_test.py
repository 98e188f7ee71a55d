"""Nested subsets and splits by patient."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfds_angio import splits
from tfds_angio.errors import UserError

NAMES = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=60)
FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}


def draws(ids, **options):
    return splits.labelled_draws(ids, name="set", version="1.0.0", fingerprint="f", **options)


@given(NAMES, st.integers(0, 1000))
def test_order_is_a_permutation_and_ignores_the_input_order(names, seed):
    order = splits.hash_order(names, seed=seed, stream="s")
    assert sorted(order) == sorted(names)
    assert order == splits.hash_order(names[::-1], seed=seed, stream="s")


@given(NAMES.filter(bool), st.integers(0, 1000))
def test_a_further_name_leaves_the_others_in_their_order(names, seed):
    whole = splits.hash_order(names, seed=seed, stream="s")
    part = splits.hash_order(names[1:], seed=seed, stream="s")
    assert [name for name in whole if name != names[0]] == part


def test_order_is_the_published_one():
    # Frozen: a change here would change every published subset.
    names = [f"syntax_train_{i}" for i in range(8)]
    order = splits.hash_order(names, seed=0, stream="labelled0")
    assert [int(name[-1]) for name in order] == [2, 4, 0, 1, 6, 7, 5, 3]


def test_repeated_names_are_refused():
    with pytest.raises(ValueError, match="distinct"):
        splits.hash_order(["a", "a"], seed=0, stream="s")


def test_draws_hold_every_id_and_differ():
    ids = [f"image{i}" for i in range(600)]
    records = draws(ids)
    assert len(records) == splits.LABELLED_DRAWS == 5
    for record in records:
        assert record["sizes"] == [18, 40, 90, 180, 360, 500]
        assert sorted(record["ids"]) == sorted(ids)
        assert record["seed"] == 0 and record["fingerprint"] == "f" and record["dataset"] == "set"
    firsts = [frozenset(record["ids"][:18]) for record in records]
    assert len(set(firsts)) == 5


def test_sizes_that_do_not_fit_are_left_out():
    assert draws([f"{i}" for i in range(100)])[0]["sizes"] == [18, 40, 90]
    assert draws([])[0]["sizes"] == []


def test_subsets_are_spread_over_the_ids():
    # Were the order that of the names, the first half of the ids would fill every subset.
    ids = [f"image{i:04d}" for i in range(1000)]
    first_half = [sum(name < "image0500" for name in d["ids"][:180]) for d in draws(ids)]
    assert all(60 < count < 120 for count in first_half)


@given(
    st.dictionaries(st.text(min_size=1, max_size=6), st.integers(1, 12), min_size=3, max_size=80),
    st.integers(0, 99),
)
def test_every_patient_gets_one_split_and_no_split_is_empty(patients, seed):
    assigned = splits.patient_splits(patients, fractions=FRACTIONS, seed=seed)
    assert set(assigned) == set(patients)
    assert set(assigned.values()) == {"train", "val", "test"}


@given(st.integers(0, 200))
def test_image_counts_approach_the_fractions(seed):
    patients = {f"p{i}": 1 + i % 5 for i in range(100)}
    assigned = splits.patient_splits(patients, fractions=FRACTIONS, seed=seed)
    counts: Counter[str] = Counter()
    for patient, split in assigned.items():
        counts[split] += patients[patient]
    for split, fraction in FRACTIONS.items():
        assert abs(counts[split] - fraction * sum(patients.values())) <= 5


def test_a_fraction_of_zero_makes_no_split():
    fractions = {"train": 0.8, "val": 0.0, "test": 0.2}
    assigned = splits.patient_splits({"a": 3, "b": 3, "c": 3}, fractions=fractions, seed=0)
    assert set(assigned.values()) == {"train", "test"}


def test_seeds_draw_different_patients():
    patients = {f"p{i}": 2 for i in range(50)}
    tests = {
        frozenset(
            p
            for p, s in splits.patient_splits(patients, fractions=FRACTIONS, seed=seed).items()
            if s == "test"
        )
        for seed in range(5)
    }
    assert len(tests) == 5


@pytest.mark.parametrize(
    ("patients", "fractions", "message"),
    [
        ({"a": 9, "b": 9}, FRACTIONS, r"2 labelled patient\(s\) cannot fill"),
        ({"a": 9, "b": 9}, {"train": 0.5, "val": 0.6}, "sum to 1"),
        ({"a": 9, "b": 9}, {"train": 1.5, "val": -0.5}, "≥ 0"),
    ],
)
def test_impossible_splits_are_user_errors(patients, fractions, message):
    with pytest.raises(UserError, match=message):
        splits.patient_splits(patients, fractions=fractions, seed=0)
