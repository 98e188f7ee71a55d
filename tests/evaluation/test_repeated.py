"""Bands over runs and patients agree with brute force; corrections with their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from cmunet_jax.evaluation import repeated
from cmunet_jax.evaluation.statistics import bootstrap_intervals, cluster


def brute_force(values, codes, draws, *, resamples, seed):
    """The definition, one replicate at a time, with the library's Student's t."""
    rng = np.random.default_rng(seed)
    patients = sorted(set(codes))
    units = sorted(set(draws)) if len(set(draws)) > 1 else range(len(draws))
    names = np.asarray(draws if len(set(draws)) > 1 else range(len(draws)))
    found = []
    for _ in range(resamples):
        chosen = rng.choice(patients, size=len(patients))
        images = np.concatenate([np.flatnonzero(codes == p) for p in chosen])
        means = np.array([np.nanmean(values[names == u][:, images]) for u in units])
        noise = scipy.stats.t.rvs(len(means) - 1, random_state=rng)
        found.append(means.mean() + means.std(ddof=1) / np.sqrt(len(means)) * noise)
    return np.array(found)


@pytest.mark.parametrize("draws", [[0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5], [0] * 6])
def test_agrees_with_the_definition(draws):
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 9, 30)
    values = rng.normal(size=(len(draws), 30)) + rng.normal(size=9)[codes]
    values += 0.5 * rng.normal(size=len(draws))[:, None]
    values[:, 4] = np.nan
    clusters = cluster([f"p{code}" for code in codes])
    ours = repeated.resampled_means(values[:, :, None], clusters, draws, resamples=20_000, seed=3)
    slow = brute_force(values, codes, draws, resamples=6000, seed=4)
    tails = [0.025, 0.25, 0.5, 0.75, 0.975]
    expected = np.quantile(slow, tails)
    assert np.quantile(ours, tails) == pytest.approx(expected, abs=0.05 * np.ptp(expected))


def test_unequal_numbers_of_seeds_keep_the_mean_over_runs():
    values = np.random.default_rng(0).random((4, 20, 1))
    replicates = repeated.resampled_means(values, cluster([""] * 20), [0, 0, 0, 1], resamples=9000)
    assert np.median(replicates) == pytest.approx(values.mean(), abs=0.01)


def test_one_run_is_the_cluster_bootstrap():
    values = np.random.default_rng(0).gamma(2, size=60)
    clusters = cluster([f"p{at // 3}" for at in range(60)])
    replicates = repeated.resampled_means(values[None, :, None], clusters, [0], resamples=20_000)
    low, high = repeated.interval(replicates)
    plain = bootstrap_intervals(values, clusters, resamples=20_000)
    assert [low[0], high[0]] == pytest.approx(plain, abs=0.02)


def test_runs_that_differ_widen_the_band_and_equal_ones_do_not():
    rng = np.random.default_rng(2)
    values = rng.normal(size=40)
    clusters = cluster([""] * 40)
    same = np.repeat(values[None], 3, axis=0)[:, :, None]
    apart = same + np.array([-1.0, 0.0, 1.0])[:, None, None]
    alone = repeated.resampled_means(same[:1], clusters, [0], resamples=4000)
    widths = [
        np.ptp(repeated.interval(repeated.resampled_means(table, clusters, [0, 1, 2])))
        for table in (same, apart)
    ]
    assert widths[0] == pytest.approx(np.ptp(repeated.interval(alone)), rel=0.1)
    assert widths[1] > 1.8 * 4.3 / np.sqrt(3)  # Student's t of two degrees of freedom, s = 1


@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_three_draws_cover_the_truth_as_often_as_stated(spread):
    covered = 0
    clusters = cluster([f"{at % 25}" for at in range(50)])
    for seed in range(200):
        rng = np.random.default_rng([11, seed])
        patients, runs = rng.normal(size=25), spread * rng.normal(size=3)
        values = patients[None, np.arange(50) % 25] + runs[:, None] + 0.3 * rng.normal(size=(3, 50))
        replicates = repeated.resampled_means(values[:, :, None], clusters, range(3), resamples=400)
        low, high = repeated.interval(replicates)
        covered += bool(low[0] <= 0 <= high[0])
    assert 0.9 <= covered / 200 <= 1


def test_columns_of_one_replicate_are_paired():
    rng = np.random.default_rng(0)
    base = rng.random((3, 20))
    table = np.stack([base, base + 0.1], axis=2)
    replicates = repeated.resampled_means(table, cluster([""] * 20), [0, 1, 2], resamples=200)
    np.testing.assert_allclose(replicates[:, 1] - replicates[:, 0], 0.1)
    np.testing.assert_allclose(repeated.mean(table), [base.mean(), base.mean() + 0.1])


def test_columns_with_infinities_have_no_band_and_leave_others_alone():
    rng = np.random.default_rng(0)
    table = rng.random((2, 10, 2))
    clusters = cluster([""] * 10)
    clean = repeated.resampled_means(table, clusters, [0, 1], resamples=50)
    table[1, 3, 1] = np.inf
    mixed = repeated.resampled_means(table, clusters, [0, 1], resamples=50)
    np.testing.assert_allclose(mixed[:, 0], clean[:, 0])
    assert np.isnan(mixed[:, 1]).all() and np.isnan(repeated.mean(table)[1])
    low, high = repeated.interval(mixed)
    assert np.isfinite(low[0]) and np.isnan([low[1], high[1]]).all()


def test_one_patient_has_no_band():
    table = np.random.default_rng(0).random((2, 4, 1))
    assert np.isnan(repeated.resampled_means(table, cluster(["p"] * 4), [0, 1])).all()


def test_many_replicates_are_drawn_in_chunks(monkeypatch):
    table, clusters = np.random.default_rng(0).random((3, 30, 1)), cluster([""] * 30)
    whole = repeated.resampled_means(table, clusters, [0, 1, 2], resamples=3000)
    monkeypatch.setattr(repeated, "_CHUNK", 33 * 100)
    parts = repeated.resampled_means(table, clusters, [0, 1, 2], resamples=3000)
    assert parts.shape == whole.shape and np.isfinite(parts).all()
    assert np.ptp(repeated.interval(parts)) == pytest.approx(
        np.ptp(repeated.interval(whole)), rel=0.1
    )


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4), st.integers(2, 8), st.floats(-5, 5), st.floats(0.1, 3), st.integers(0, 99)
)
def test_shift_and_scale_go_through(runs, images, shift, scale, seed):
    table = np.random.default_rng(seed).random((runs, images, 1))
    clusters = cluster([""] * images)
    plain = repeated.resampled_means(table, clusters, range(runs), resamples=40, seed=seed)
    moved = repeated.resampled_means(
        scale * table + shift, clusters, range(runs), resamples=40, seed=seed
    )
    np.testing.assert_allclose(moved, scale * plain + shift, atol=1e-9)


# --------------------------------------------------------------------------------------- tests


def signed_rank_by_enumeration(values):
    """Exact two-sided p: every pattern of signs on the observed ranks."""
    ranks = scipy.stats.rankdata(np.abs(values))
    observed = abs(np.sum(np.sign(values) * ranks))
    patterns = itertools.product((-1, 1), repeat=len(values))
    extreme = [abs(np.dot(signs, ranks)) >= observed - 1e-9 for signs in patterns]
    return np.mean(extreme)


@pytest.mark.parametrize("seed", range(5))
def test_wilcoxon_agrees_with_every_pattern_of_signs(seed):
    values = np.random.default_rng(seed).normal(0.4, 1, 8).round(seed % 2)  # some with ties
    values = values[values != 0]
    assert repeated.wilcoxon(values) == pytest.approx(signed_rank_by_enumeration(values))


@pytest.mark.parametrize("count", [5, 13, 14, 40, 200])
def test_wilcoxon_agrees_with_scipy(count):
    values = np.random.default_rng(count).normal(0.2, 1, count)
    assert repeated.wilcoxon(values) == pytest.approx(scipy.stats.wilcoxon(values).pvalue)
    assert repeated.wilcoxon(-values) == pytest.approx(repeated.wilcoxon(values))


def test_wilcoxon_drops_zeros_rounding_and_what_is_missing():
    values = np.array([0.3, -0.1, 0.5, 0.2, 0.7, 0.4])
    padded = np.r_[values, 0.0, 1e-17, np.nan]
    assert repeated.wilcoxon(padded) == repeated.wilcoxon(values)
    assert repeated.wilcoxon([0.0, 0.0]) == 1
    assert np.isnan(repeated.wilcoxon([])) and np.isnan(repeated.wilcoxon([np.nan]))


def closed_testing(p_values):
    """Holm is the closed testing procedure with Bonferroni: every subset must be rejected."""
    found = []
    for index in range(len(p_values)):
        others = [p for at, p in enumerate(p_values) if at != index]
        subsets = itertools.chain.from_iterable(
            itertools.combinations(others, size) for size in range(len(p_values))
        )
        found.append(
            max(min(1, (len(s) + 1) * min([p_values[index], *s], default=1)) for s in subsets)
        )
    return found


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_is_closed_testing_with_bonferroni(p_values):
    ours = repeated.holm(p_values)
    np.testing.assert_allclose(ours, closed_testing(p_values), atol=1e-12)
    assert (ours >= np.asarray(p_values) - 1e-15).all()


def test_holm_leaves_out_what_was_not_tested():
    np.testing.assert_allclose(
        repeated.holm([0.01, np.nan, 0.04, 0.03]), [0.03, np.nan, 0.06, 0.06]
    )


def test_means_by_patient():
    clusters = cluster(["a", "b", "a", "b"])
    np.testing.assert_allclose(repeated.by_patient([1, 5, 3, np.nan], clusters), [2, 5])
    assert np.isnan(repeated.by_patient([1, np.nan, 1, np.nan], clusters)[1])
