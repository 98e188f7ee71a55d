"""The centreline graph: what is a branch, what a bifurcation, and what is taken off."""

from __future__ import annotations

import time

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.ndimage import gaussian_filter, label
from scipy.sparse.csgraph import connected_components
from skimage.morphology import skeletonize

from cmunet_jax import qca
from cmunet_jax.qca import graph as graphs
from cmunet_jax.viewer import analysis
from tests.qca import vessels


def of(mask: np.ndarray, spur: float = 2.0) -> graphs.Graph:
    return graphs.centreline_graph(mask, graphs.inscribed_radius(mask), spur=spur)


def forks(graph: graphs.Graph) -> list[int]:
    """Branches at each bifurcation."""
    return sorted(d for d in graph.degrees().values() if d >= 3)


def picture(text: str) -> np.ndarray:
    return np.array([[c == "#" for c in line] for line in text.split()])


def straight(**options) -> vessels.Tube:
    return vessels.tube(**{"angle": 0.3, "length": 70, "diameter": 8, "middle": (50, 50)} | options)


@pytest.mark.parametrize(
    ("text", "lengths", "degrees"),
    [
        ("..... .###. .....", [2.0], []),
        ("#.... .#... ..#..", [2 * 2**0.5], []),
        ("..#.. ..#.. #####", [2.0, 2.0, 2.0], [3]),
        ("#...# .#.#. ..#.. ..#..", [1.0, 2 * 2**0.5, 2 * 2**0.5], [3]),
        ("..#.. ..#.. ##### ..#.. ..#..", [2.0] * 4, [4]),
        (".##. #..# #..# .##.", [4 + 4 * 2**0.5], []),
        ("###. ...# ##.. ..##", [2 + 2**0.5, 2 + 2**0.5], []),
    ],
)
def test_a_skeleton_is_traced(text, lengths, degrees):
    graph = graphs._trace(picture(text))
    np.testing.assert_allclose(sorted(b.length for b in graph.branches), sorted(lengths))
    assert forks(graph) == degrees


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), grain=st.floats(0.7, 4), share=st.floats(0.05, 0.9))
def test_every_piece_of_a_skeleton_is_in_one_piece_of_the_graph(seed, grain, share):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(40, 50)), grain)
    skeleton = np.asarray(skeletonize(noise > np.quantile(noise, 1 - share), method="lee"), bool)
    graph = graphs._trace(skeleton)
    edges = np.array([(b.start, b.end) for b in graph.branches], int).reshape(-1, 2).T
    groups = connected_components(graphs._adjacency(edges, len(graph.nodes)), directed=False)[0]
    assert groups == label(skeleton, np.ones((3, 3)))[1]
    points = np.concatenate([b.points for b in graph.branches])
    whole = {tuple(p) for p in points[(points % 1 == 0).all(axis=1)].astype(int).tolist()}
    missing = {tuple(p) for p in np.argwhere(skeleton).tolist()} - whole
    centres = np.array([n for n, d in graph.degrees().items() if d >= 3])
    for pixel in missing:  # those of a bifurcation are near its centre
        assert np.linalg.norm(graph.nodes[centres] - pixel, axis=1).min() < 4


@pytest.mark.parametrize(("reach", "branches"), [(6.0, 1), (25.0, 3)])
def test_a_side_branch_stays_and_a_bump_does_not(reach, branches):
    twig = straight(angle=0.3 + np.pi / 2, length=2 * reach, diameter=5).half()
    graph = of(vessels.draw(straight(), twig, shape=(100, 100)))
    assert len(graph.branches) == branches and len(forks(graph)) == branches // 3


def test_a_blob_beside_a_vessel_is_not_a_spur():
    mask = vessels.draw(straight(angle=0.0, diameter=6), shape=(100, 100))
    mask |= np.hypot(*(np.indices((100, 100)) - np.array([66, 50])[:, None, None])) < 14
    graph = of(mask)
    assert len(graph.branches) == 3 and len(forks(graph)) == 1


def test_a_crossing_is_one_bifurcation_of_four():
    two = straight(), straight(angle=0.3 + 1.2)
    graph = of(vessels.draw(*two, shape=(100, 100)))
    assert forks(graph) == [4] and len(graph.branches) == 4
    (node,) = (n for n, d in graph.degrees().items() if d == 4)
    assert np.linalg.norm(graph.nodes[node] - (50, 50)) < 2


def test_a_ring_is_one_closed_branch():
    away = np.hypot(*(np.indices((80, 80)) - 40))
    graph = of((away > 20) & (away < 27))
    (ring,) = graph.branches
    assert ring.start == ring.end
    np.testing.assert_allclose(ring.length, 2 * np.pi * 23.5, rtol=0.07)


def test_vessels_that_part_and_meet_again_are_a_loop():
    away = np.hypot(*(np.indices((100, 100)) - 50))
    arms = straight(angle=0.0, length=96, diameter=6)
    mask = ((away > 18) & (away < 24)) | (vessels.draw(arms, shape=(100, 100)) & (away > 18))
    graph = of(mask)
    assert forks(graph) == [3, 3] and len(graph.branches) == 4


def test_components_are_separate_and_specks_are_no_vessels():
    mask = vessels.draw(straight(), shape=(100, 100))
    mask[:20, 60:66] = True
    mask[90:95, 5:11] = mask[3, 3] = True
    graph = of(mask)
    assert len(graph.branches) == 2 and graph.ignored == 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (30, 40)])
def test_empty_and_full_masks_have_no_branches_that_bend(shape):
    assert not of(np.zeros(shape, bool)).branches
    assert len(of(np.ones(shape, bool)).branches) <= 1


def test_only_holes_that_are_faults_are_filled():
    mask = vessels.draw(straight(angle=0.0), shape=(100, 100))
    speckled = mask.copy()
    speckled[50, 40] = speckled[49:51, 60] = False
    np.testing.assert_array_equal(graphs.fill_faults(speckled), mask)
    # Also where the hole of a tight ring is hardly wider than the vessel that bends round it.
    away = np.hypot(*(np.indices((60, 60)) - 30))
    ring = (away < 14) & (away > 5)
    np.testing.assert_array_equal(graphs.fill_faults(ring), ring)


def test_inscribed_radius_is_half_the_width_on_average():
    found = []
    for width in np.linspace(5, 9, 17):
        t = straight(angle=0.3 + width, diameter=width)
        radius = graphs.inscribed_radius(vessels.draw(t, shape=(100, 100)))
        at = np.rint(t.points[400:1000]).astype(int)
        found.append(2 * radius[tuple(at.T)].mean() - width)
    assert abs(np.mean(found)) < 0.2


def test_a_speckled_mask_is_refused_before_the_slow_part():
    mask = np.random.default_rng(0).random((512, 512)) < 0.5
    start = time.process_time()
    with pytest.raises(qca.TooManySegments, match=r"\d+ segments, more than 2000") as error:
        qca.analyse(mask, spacing=None)
    assert time.process_time() - start < 10  # it is 0.2 s; without the bound it took minutes
    assert "\n" not in str(error.value)


def disc(shape, middle, diameter):
    away = np.indices(shape) - np.reshape(middle, (2, 1, 1))
    return np.hypot(*away) < diameter / 2


def thinned(mask, monkeypatch, **options):
    """The analysis, and the rounds that its thinning takes: the largest radius handed to it."""
    rounds = []

    def counted(given, **how):
        rounds.append(graphs.inscribed_radius(np.asarray(given, bool)).max(initial=0.0))
        return skeletonize(given, **how)

    monkeypatch.setattr(graphs, "skeletonize", counted)
    found = qca.analyse(mask, spacing=None, **options)
    return found, max(rounds)


@pytest.mark.parametrize("shape", [(400, 300), (512, 512)])
def test_a_blob_is_no_vessel_and_not_thinned(shape, monkeypatch):
    vessel = vessels.draw(straight(middle=(50, 50)), shape=shape)
    alone, _ = thinned(vessel, monkeypatch)
    for share, ignored in ((0.27, 1), (0.6, 1)):
        wide = disc(shape, (shape[0] - 120, shape[1] / 2), share * min(shape))
        found, rounds = thinned(vessel | wide, monkeypatch)
        assert found.ignored == alone.ignored + ignored and rounds < 6
        (one,), (other,) = alone.segments, found.segments
        np.testing.assert_allclose(one.points, other.points, atol=1e-6)
        np.testing.assert_allclose(one.diameter_px, other.diameter_px, atol=1e-4)
        probability = np.where(vessel | wide, 0.9, 0.1)
        more, _ = thinned(vessel | wide, monkeypatch, probability=probability)
        assert len(more.segments) == 1 and more.ignored == found.ignored


def test_the_rounds_of_thinning_are_bounded_whatever_the_frame(monkeypatch):
    mask = np.ones((1200, 1200), bool)
    found, rounds = thinned(mask, monkeypatch)
    assert found.ignored == 1 and not found.segments and rounds == 0
    mask[:] = False
    mask[100:340, 100:1100] = True  # 240 px wide: still thinned
    found, rounds = thinned(mask, monkeypatch)
    assert found.ignored == 0 and len(found.segments) == 1 and rounds <= 128


def test_a_wide_vessel_of_a_small_picture_is_measured(monkeypatch):
    mask = vessels.draw(straight(diameter=40, length=90, middle=(50, 50)), shape=(100, 100))
    found, _ = thinned(mask, monkeypatch)
    assert found.ignored == 0 and len(found.segments) == 1


def test_the_bound_counts_the_segments_of_the_skeleton(monkeypatch):
    mask = np.zeros((80, 80), bool)
    mask[40, 5:75] = mask[5:75, 40] = True  # a cross: four segments
    monkeypatch.setattr(graphs, "MAX_SEGMENTS", 4)
    assert len(qca.analyse(mask, spacing=None).segments) == 4
    monkeypatch.setattr(graphs, "MAX_SEGMENTS", 3)
    with pytest.raises(qca.TooManySegments, match="has 4 segments, more than 3"):
        qca.analyse(mask, spacing=None)


def test_the_viewer_shows_as_many_segments_as_are_measured():
    assert analysis._MAX_SEGMENTS == qca.MAX_SEGMENTS
