"""Intervals cover, clusters widen them, paired tests find what is there."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from cmunet_jax.evaluation.statistics import bootstrap_intervals, cluster, paired_difference
from tfds_angio.errors import UserError


def rows(values, *, patients=None, name="dice"):
    patients = patients or [""] * len(values)
    return [
        {"id": f"i{at}", "patient": patient, name: value}
        for at, (value, patient) in enumerate(zip(values, patients))
    ]


def test_images_without_patient_stand_for_themselves():
    clusters = cluster(["a", "", "b", "a", ""])
    assert clusters.count == 4
    assert clusters.codes[0] == clusters.codes[3]
    assert len(set(clusters.codes[[0, 1, 2, 4]])) == 4
    assert clusters.unit == "patient"
    assert "2 images without a known patient" in clusters.note
    assert "2 patients" in clusters.note


def test_unknown_patients_are_said_to_be_unknown():
    clusters = cluster(["", "", ""])
    assert (clusters.unit, clusters.count) == ("image", 3)
    assert "unknown" in clusters.note


@given(st.lists(st.sampled_from(["", "p", "q", "0"]), max_size=12))
def test_clusters_are_numbered_without_gaps(patients):
    clusters = cluster(patients)
    assert sorted(set(clusters.codes)) == list(range(clusters.count))


def test_interval_agrees_with_scipy():
    values = np.random.default_rng(0).gamma(2, size=80)
    ours = bootstrap_intervals(values, cluster([""] * 80), resamples=20_000, seed=1)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours == pytest.approx(theirs, abs=0.02)


def test_clustered_interval_agrees_with_scipy_on_cluster_sums():
    rng = np.random.default_rng(0)
    patients = [f"p{at}" for at in range(25) for _ in range(rng.integers(1, 7))]
    values = rng.normal(size=len(patients)) + np.repeat(
        rng.normal(size=25), np.unique(patients, return_counts=True)[1]
    )
    clusters = cluster(patients)
    sums = np.bincount(clusters.codes, values)
    sizes = np.bincount(clusters.codes)
    theirs = scipy.stats.bootstrap(
        (sums, sizes),
        lambda total, n, axis: total.sum(axis) / n.sum(axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert bootstrap_intervals(values, clusters, resamples=20_000) == pytest.approx(
        theirs, abs=0.03
    )


def test_repeating_every_image_does_not_narrow_a_clustered_interval():
    values = np.random.default_rng(1).normal(size=30)
    names = [f"p{at}" for at in range(30)]
    once = bootstrap_intervals(values, cluster(names))
    thrice = bootstrap_intervals(np.tile(values, 3), cluster(names * 3))
    naive = bootstrap_intervals(np.tile(values, 3), cluster([""] * 90))
    np.testing.assert_allclose(thrice, once)
    assert np.ptp(naive) < 0.7 * np.ptp(once)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng([7, seed])
        values = np.repeat(rng.normal(size=30), 4) + 0.3 * rng.normal(size=120)
        low, high = bootstrap_intervals(
            values, cluster([f"{at}" for at in range(30) for _ in range(4)]), resamples=500
        )
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_columns_see_the_same_draws_and_do_not_disturb_each_other():
    table = np.random.default_rng(2).random((20, 3))
    clusters = cluster([f"p{at // 2}" for at in range(20)])
    together = bootstrap_intervals(table, clusters, seed=4)
    for column in range(3):
        np.testing.assert_allclose(
            bootstrap_intervals(table[:, column], clusters, seed=4), together[:, column]
        )
    infinite = table.copy()
    infinite[3, 1] = np.inf
    mixed = bootstrap_intervals(infinite, clusters, seed=4)
    assert np.isnan(mixed[:, 1]).all()
    np.testing.assert_allclose(mixed[:, [0, 2]], together[:, [0, 2]])


def test_one_cluster_has_no_interval_and_equal_values_have_no_width():
    assert np.isnan(bootstrap_intervals([0.1, 0.9], cluster(["p", "p"]))).all()
    np.testing.assert_allclose(bootstrap_intervals([0.3] * 5, cluster([""] * 5)), [0.3, 0.3])


def test_the_seed_decides():
    values, clusters = np.random.default_rng(0).random(40), cluster([""] * 40)
    first = bootstrap_intervals(values, clusters, seed=1)
    np.testing.assert_array_equal(first, bootstrap_intervals(values, clusters, seed=1))
    assert (first != bootstrap_intervals(values, clusters, seed=2)).any()


def test_many_clusters_are_drawn_in_chunks_to_the_same_end():
    values = np.random.default_rng(0).normal(size=5000)  # more than one chunk at 1,000 resamples
    ends = bootstrap_intervals(values, cluster([""] * 5000), resamples=1000)
    half = 1.96 * values.std() / np.sqrt(5000)
    assert ends == pytest.approx([values.mean() - half, values.mean() + half], abs=0.006)


# ------------------------------------------------------------------------------------- paired


def test_a_small_steady_gain_is_found_although_images_differ_much():
    rng = np.random.default_rng(0)
    hard = rng.normal(0.6, 0.2, 60)
    a, b = hard + 0.02 + rng.normal(0, 0.02, 60), hard
    result = paired_difference(rows(a), rows(b)[::-1], "dice")
    assert result.low > 0 and result.p_value < 0.001
    assert result.mean == pytest.approx(np.mean(a - b))
    assert result.wins == np.sum(a > b)
    mirrored = paired_difference(rows(b), rows(a), "dice")
    assert (mirrored.mean, mirrored.low) == pytest.approx((-result.mean, -result.high), abs=1e-3)


def test_a_gain_in_one_patient_only_is_not_a_finding():
    difference = np.r_[np.full(40, 0.2), np.random.default_rng(0).normal(0, 0.05, 8)]
    patients = ["big"] * 40 + [f"p{at}" for at in range(8)]
    zero = rows(np.zeros(48), patients=patients)
    clustered = paired_difference(rows(difference, patients=patients), zero, "dice")
    naive = paired_difference(rows(difference), rows(np.zeros(48)), "dice")
    assert clustered.low < 0.05 < naive.low
    assert clustered.p_value > 0.05 > naive.p_value


def test_p_value_agrees_with_scipy_and_is_uniform_enough_without_effect():
    difference = np.random.default_rng(5).normal(0.1, 0.3, 25)
    ours = paired_difference(rows(difference), rows(np.zeros(25)), "dice").p_value
    theirs = scipy.stats.permutation_test(
        (difference, np.zeros(25)),
        lambda a, b, axis: np.mean(a - b, axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(0),
    ).pvalue
    assert ours == pytest.approx(theirs, abs=0.02)
    small = sum(
        paired_difference(
            rows(np.random.default_rng([9, seed]).normal(size=20)),
            rows(np.zeros(20)),
            "dice",
            resamples=500,
        ).p_value
        < 0.1
        for seed in range(200)
    )
    assert 5 <= small <= 38


def test_equal_evaluations_do_not_differ():
    result = paired_difference(rows([0.1, 0.5, 0.9]), rows([0.1, 0.5, 0.9]), "dice")
    assert (result.mean, result.low, result.high, result.p_value) == (0, 0, 0, 1)
    assert result.wins == 1.5


@pytest.mark.parametrize(
    "other",
    [
        rows([0.1, 0.2, 0.3]),
        rows([0.1]),
        rows([0.1, 0.2]) + rows([0.1, 0.2]),
        rows([0.1, np.inf]),
    ],
)
def test_evaluations_of_other_images_are_refused(other):
    with pytest.raises(UserError):
        paired_difference(rows([0.1, 0.2]), other, "dice")
