"""How many of a patient and of a centre, and what is asked for in vain."""

import numpy as np
import pytest

from cmunet_jax.selection import limits, methods
from tests.selection.groups import items, rules
from tfds_angio.errors import UserError


def test_labelled_images_count_for_their_patient():
    pool = items(6, patients=["a", "a", "a", "b", "b", ""], labelled=(0,))
    within = rules(pool, 1, per_patient=2)
    assert within.allowed([]).tolist() == [False, True, True, True, True, True]
    assert within.allowed([1]).tolist() == [False, False, False, True, True, True]
    assert within.allowed([1, 3, 5]).tolist() == [False] * 4 + [True, False]
    assert within.most == 1 + 2 + 1
    np.testing.assert_allclose(within.weights, [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2, 1])


def test_images_of_unknown_patients_are_each_by_itself():
    assert rules(items(5), 5, per_patient=1).most == 5


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("proportional", {"a": 4, "b": 2}), ("equal", {"a": 3, "b": 3}), ("any", {"a": 6, "b": 0})],
)
def test_a_share_of_each_centre(rule, expected):
    """20 images of centre a, 10 of b; six that lie together in a are what coverage likes."""
    centres = ["a"] * 20 + ["b"] * 10
    pool = items(30, centres=centres)
    within = rules(pool, 6, centres=rule)
    rng = np.random.default_rng(0)
    features = np.concatenate([np.arange(20) * 10.0, 500 + rng.uniform(size=10)])[:, None]
    made = methods.select(
        "coverage", features, [i.id for i in pool], within, 6, seed=0, radius="0.01"
    )
    got = [centres[choice.index] for choice in made.choices]
    assert {name: got.count(name) for name in "ab"} == expected


def test_a_quota_gives_way_when_the_others_have_no_more():
    pool = items(6, centres=["a"] * 5 + ["b"], labelled=(5,))
    within = rules(pool, 4, centres="equal")
    assert within.allowed([0, 1, 2]).tolist() == [False, False, False, True, True, False]


@pytest.mark.parametrize(
    ("pool", "k", "per_patient", "message"),
    [
        (
            items(5),
            6,
            0,
            "config.k=6 is more than the 5 images that can be chosen. Use at most 5.$",
        ),
        (items(3, labelled=(0, 1, 2)), 1, 0, "all of its 3 images are labelled.*config.masks"),
        ([], 1, 0, "the pool is empty: no image of it can be read"),
        (
            items(6, patients=list("aaabbb")),
            4,
            1,
            r"2 images .* with config.per_patient=1, .*most 2, .*\(to 2 or more; 0: no limit\)",
        ),
    ],
)
def test_what_cannot_be_chosen_is_one_line(pool, k, per_patient, message):
    with pytest.raises(UserError, match=message) as error:
        rules(pool, k, per_patient=per_patient)
    assert "\n" not in str(error.value)


def checked(pool, k, *, bad=(), per_patient=0):
    """Which images were read; a UserError where k is too large."""
    read = []

    def why_not(at):
        read.append(at)
        return "cut" if at in bad else ""

    limits.check_readable(
        pool, why_not, k=k, per_patient=per_patient, centres="any", workers=1
    )  # fmt: skip
    return read


@pytest.mark.parametrize(
    ("pool", "bad", "per_patient", "most"),
    [
        (items(9), (2, 5), 0, 7),
        (items(6, patients=list("aaabbc")), (0, 1, 5), 1, 2),  # the third of a can be read
        (items(6, patients=list("aaabbc")), (0, 1, 2), 2, 3),
        (items(4, patients=list("aabb"), labelled=(0,)), (), 1, 1),
        (items(4, patients=list("aabb"), labelled=(0,)), (0,), 1, 2),  # a has no label then
        (items(60, patients=[str(n % 20) for n in range(60)]), range(1, 60, 2), 2, 20),
    ],
)
def test_the_number_that_is_advised_can_be_had(pool, bad, per_patient, most):
    for k in (most + 1, 500):
        with pytest.raises(UserError, match=f"config.k={k} .* the {most} .* at most {most}"):
            checked(pool, k, bad=bad, per_patient=per_patient)
    checked(pool, most, bad=bad, per_patient=per_patient)
    left = [item for at, item in enumerate(pool) if at not in bad]
    assert rules(left, most, per_patient=per_patient).most == most


def test_no_more_is_read_than_shows_that_enough_can_be_chosen():
    runs = items(300, patients=[str(n // 100) for n in range(300)])
    assert checked(items(300), 18) == list(range(18))
    assert set(checked(runs, 3, per_patient=1)[:3]) == {0, 100, 200}
    with pytest.raises(UserError, match="the 3 images .*per_patient=1, .* at most 3"):
        checked(runs, 4, per_patient=1)
    with pytest.raises(UserError, match="5 cannot be read .the first is i000: cut."):
        checked(items(9), 9, bad=range(5))
    with pytest.raises(UserError, match="no image of it can be read"):
        checked(items(3), 1, bad=range(3))


def test_an_unknown_rule_for_centres():
    with pytest.raises(UserError, match="config.centres='each'"):
        limits.of_items(items(2), k=1, per_patient=0, centres="each")
