"""What each method chooses where the right answer is known, and what no method may depend on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from cmunet_jax.selection import distances, limits, methods
from tests.selection.groups import blobs, items, rules
from tfds_angio.errors import UserError

CLEVER = ("typiclust", "coverage")
SIZES = (30, 20, 12, 8, 6)


def chosen(method, features, pool, k, *, seed=0, radius="half", **limited):
    ids = [item.id for item in pool]
    made = methods.select(
        method, features, ids, rules(pool, k, **limited), k, seed=seed, radius=radius
    )
    return [choice.index for choice in made.choices]


@pytest.mark.parametrize("method", CLEVER)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_of_each_cluster_the_largest_first(method, seed):
    features, codes = blobs(SIZES, seed=seed)
    # Of coverage: a radius that holds a blob. By its rule, half of a blob is another's match.
    got = chosen(method, features, items(len(codes)), len(SIZES), seed=seed, radius="0.5")
    assert codes[got].tolist() == [0, 1, 2, 3, 4]


def test_typiclust_takes_the_middle_of_a_cluster():
    features, codes = blobs((41,), spread=0.0, numbers=4)
    angle = np.linspace(-0.5, 0.5, 41) ** 3  # densest at 0, thinning out to both sides
    features = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert chosen("typiclust", features, items(41), 1) == [20]


def test_typicality_by_hand():
    """Four images on a line, half of the cluster as neighbours; image 3 is of patient 0, too."""
    features = np.array([[0.0], [1.0], [3.0], [0.1]])
    got = methods.typicality(features, np.zeros(4, int), np.array([0, 1, 2, 0]))
    means = np.array([(1 + 3) / 2, (0.9 + 1) / 2, (2 + 2.9) / 2, (0.9 + 2.9) / 2])
    np.testing.assert_allclose(got, 1 / (means + 1e-5))


def test_typicality_of_a_cluster_of_one_patient_is_least():
    got = methods.typicality(np.zeros((3, 1)), np.zeros(3, int), np.zeros(3, int))
    assert got.tolist() == [0, 0, 0]


@pytest.mark.parametrize("method", CLEVER)
def test_a_long_run_of_one_patient_does_not_attract(method):
    """40 frames that are nearly one image weigh as much as one other patient."""
    features, codes = blobs((40, 12), spread=0.02)
    pool = items(52, patients=["run"] * 40 + [f"p{at}" for at in range(12)])
    assert codes[chosen(method, features, pool, 1, radius="0.5")].tolist() == [1]
    alone = items(52)
    assert codes[chosen(method, features, alone, 1, radius="0.5")].tolist() == [0]


@pytest.mark.parametrize("method", CLEVER)
def test_what_is_labelled_is_covered_and_never_chosen(method):
    features, codes = blobs(SIZES)
    labelled = (3, 31)  # one in each of the two largest: as many clusters as blobs
    got = chosen(method, features, items(len(codes), labelled=labelled), 3, radius="0.5")
    assert sorted(codes[got]) == [2, 3, 4]


def test_coverage_counts_what_is_new_and_then_goes_far():
    """Angles on a circle, balls of 0.15 rad; of equals the first."""
    angles = np.array([0.0, 0.1, 0.2, 0.3, 1.0, 1.1, 2.0])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ids = [item.id for item in items(7)]
    made = methods.select("coverage", features, ids, rules(items(7), 6), 6, seed=0, radius="0.15")
    # 1 holds 0, 1, 2; 4 holds 4 and 5; only 3 is left beside 6, and 2 is the first that holds it.
    # Then all is covered, and 3 lies 0.1 from 2, 5 as far from 4, 0 from 1.
    assert [choice.index for choice in made.choices] == [1, 4, 2, 6, 0, 3]
    np.testing.assert_allclose(
        [choice.score for choice in made.choices], np.array([3, 2, 1, 1, 0, 0]) / 7
    )
    assert made.settled["covered"] == 1 and "furthest" in made.choices[4].why


def test_radii_by_hand():
    features = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [14.0]])
    codes = np.array([0, 0, 0, 1, 1, 1])
    # Middles are 1 and 11; distances 1 0 1 | 1 0 3.
    assert distances.half_radius(features, codes) == 1
    # To the other cluster: 10 9 8 8 9 12; a share of 0.8 stays pure up to the smallest but one.
    assert distances.purity_radius(features, codes, purity=0.8) == 8
    assert distances.purity_radius(features, codes, purity=0.5) == 9
    assert distances.purity_radius(features, codes * 0, purity=0.95) == np.inf


@pytest.mark.parametrize("radius", ["half", "purity", "0.3"])
def test_a_radius_by_rule_or_number(radius):
    features, codes = blobs(SIZES)
    assert len(set(chosen("coverage", features, items(76), 5, radius=radius))) == 5


@pytest.mark.parametrize("radius", ["0", "-1", "nan", "inf", "wide"])
def test_a_radius_that_is_none(radius):
    features, codes = blobs((6, 6))
    with pytest.raises(UserError, match=f"config.radius='{radius}' is no radius: choose half"):
        chosen("coverage", features, items(12), 2, radius=radius)


def test_an_unknown_method():
    with pytest.raises(UserError, match="config.method='typiclus'.* did you mean 'typiclust'"):
        chosen("typiclus", *blobs((5,))[:1], items(5), 1)


def test_random_draws_are_uniform_enough_and_differ_by_seed():
    features, _ = blobs((20,))
    draws = [chosen("random", features, items(20), 5, seed=seed) for seed in range(200)]
    counts = np.bincount(np.ravel(draws), minlength=20)
    assert counts.min() > 20 and counts.max() < 85  # 50 expected, deviation 6
    assert draws[0] != draws[1] and draws[0] == chosen("random", features, items(20), 5, seed=0)


def test_kmeans_agrees_with_scikit_learn():
    features, codes = blobs(SIZES, spread=0.1)
    theirs = KMeans(5, n_init=5, random_state=0).fit_predict(features)
    ours = distances.kmeans(features, 5, seed=0)
    assert adjusted_rand_score(theirs, ours) == 1 == adjusted_rand_score(codes, ours)


def test_kmeans_of_images_that_are_equal():
    features = np.repeat(np.eye(3), 4, axis=0)
    assert len(set(distances.kmeans(features, 8, seed=0))) == 3
    assert set(distances.kmeans(features, 2, seed=0)) == {0, 1}


def test_blocks_are_the_whole(monkeypatch):
    features, _ = blobs((9, 4))
    whole = distances.nearest(features, np.array([0, 11]))
    monkeypatch.setattr(distances, "_BLOCK", 5)
    np.testing.assert_array_equal(distances.nearest(features, np.array([0, 11])), whole)
    assert len(list(distances.blocks(features, features))) == 13


@st.composite
def pools(draw):
    """(features, items, k, limits) of a random small pool under which k images can be chosen."""
    count = draw(st.integers(4, 24))
    names = draw(st.lists(st.sampled_from(["", "p", "q", "r"]), min_size=count, max_size=count))
    where = draw(st.lists(st.sampled_from("ab"), min_size=count, max_size=count))
    labelled = draw(st.sets(st.integers(0, count - 1), max_size=count // 3))
    pool = items(count, patients=names, centres=where, labelled=labelled)
    limited = {
        "per_patient": draw(st.integers(0, 3)),
        "centres": draw(st.sampled_from(limits.CENTRES)),
    }
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    features = rng.normal(size=(count, 3))
    # Whole numbers among them, so that there are ties and equal images.
    if draw(st.booleans()):
        features = np.round(features)
    try:
        most = rules(pool, 1, **limited).most
    except UserError:
        most = 0
    return features, pool, min(draw(st.integers(1, 8)), most), limited


@settings(max_examples=60, deadline=None)
@given(pools(), st.sampled_from(sorted(methods.METHODS)), st.randoms(use_true_random=False))
def test_no_choice_breaks_a_limit_or_depends_on_the_order(pool, method, random):
    features, listed, k, limited = pool
    if not k:
        return
    got = chosen(method, features, listed, k, **limited)
    assert len(set(got)) == k
    assert not any(listed[at].labelled for at in got)
    if limited["per_patient"]:
        known = [i for at, i in enumerate(listed) if (at in got or i.labelled) and i.patient]
        for name in {listed[at].patient for at in got} - {""}:
            assert sum(i.patient == name for i in known) <= limited["per_patient"]

    order = random.sample(range(len(listed)), len(listed))
    again = chosen(method, features[order], [listed[at] for at in order], k, **limited)
    assert [order[at] for at in again] == got
