"""The synthetic angiograms: geometry, physics, what the mask is, and the built data set."""

import dataclasses
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfds_angio import base
from tfds_angio.angio_synthetic import builder, devices, generator, imaging, tree
from tfds_angio.angio_synthetic.projection import CArm, join, path_length, silhouette, tube

FRONT = CArm(0.0, 0.0, 128, 128.0, np.zeros(3))  # 1 mm is 1 pixel in the plane of the isocentre


@pytest.fixture(scope="module")
def frames():
    return [f for p in range(10) for f in generator.render_patient(0, p, size=160, views=2)]


@pytest.fixture(scope="module")
def trees():
    return [
        tree.grow_tree(np.random.default_rng([7, i]), ("left", "right")[i % 2]) for i in range(12)
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return base.build("angio_synthetic/tiny", data_dir=folder, workers=2, progress=False)


def line(a, b, radius=4.0):
    """A straight tube from a to b in mm."""
    points = np.linspace(np.array(a, float), np.array(b, float), 80)
    return tube(FRONT, points, np.full(80, radius))


# --- projection -----------------------------------------------------------------------------


def test_left_of_the_patient_is_on_the_right_of_the_picture_and_the_head_is_up():
    xy, _ = FRONT.project(np.array([[30.0, 0, 0], [0, 0, 30.0]]))
    assert xy[0, 0] > 64 and xy[1, 1] < 63


def test_spine_is_right_in_lao_and_left_in_rao():
    spine = np.array([[-10.0, 62.0, 0.0]])
    lao = dataclasses.replace(FRONT, primary_deg=45.0).project(spine)[0]
    rao = dataclasses.replace(FRONT, primary_deg=-30.0).project(spine)[0]
    assert lao[0, 0] > 64 > rao[0, 0]


def test_cranial_angulation_moves_the_front_of_the_chest_down():
    breastbone = np.array([[0.0, -60.0, 0.0]])
    cranial = dataclasses.replace(FRONT, secondary_deg=30.0).project(breastbone)[0]
    assert cranial[0, 1] > 64


def test_what_is_nearer_to_the_source_is_larger():
    _, scale = FRONT.project(np.array([[0, 100.0, 0], [0, 0.0, 0], [0, -100.0, 0]]))
    assert scale[0] > scale[1] > scale[2]  # the source is behind the patient
    np.testing.assert_allclose(scale[1], 1.0)


def test_rays_meet_the_points_that_project_onto_them():
    arm = CArm(33.0, -21.0, 128, 128.0, np.array([3.0, -5.0, 8.0]))
    source, rays = arm.rays(128)
    points = source + 700.0 * rays[20:22, 90:92].reshape(-1, 3).astype(float)
    xy, _ = arm.project(points)
    np.testing.assert_allclose(xy, [[90, 20], [91, 20], [90, 21], [91, 21]], atol=0.01)


@pytest.mark.parametrize("radius", [2.0, 5.0, 9.0])
def test_path_through_a_tube_is_its_chord(radius):
    profile = path_length(line([-60, 0, 0], [60, 0, 0], radius), 128)[:, 64]
    distance = np.abs(np.arange(128) - 63.5)
    chord = 2 * np.sqrt(np.maximum(radius**2 - distance**2, 0))
    inside = distance < radius - 1
    np.testing.assert_allclose(profile[inside], chord[inside], rtol=0.07)
    assert profile[distance > radius + 1].max() == 0
    np.testing.assert_allclose(profile.sum(), math.pi * radius**2, rtol=0.03)


def test_path_through_a_slanted_tube_is_longer():
    middle = path_length(line([-30, -30, 0], [30, 30, 0]), 128)[64, 64]
    np.testing.assert_allclose(middle, 8.0 * math.sqrt(2), rtol=0.06)


def test_path_through_a_tube_seen_end_on_is_its_length():
    np.testing.assert_allclose(
        path_length(line([0, -15, 0], [0, 15, 0]), 128)[63, 63], 30.0, rtol=0.05
    )


def test_crossing_tubes_add_up():
    one, two = line([-40, 0, 0], [40, 0, 0]), line([0, 20, -40], [0, 20, 40])
    both = path_length(join([one, two]), 128)
    np.testing.assert_allclose(both, path_length(one, 128) + path_length(two, 128), atol=1e-4)


def test_tubes_thinner_than_a_pixel_fade_but_keep_their_mass():
    thin = path_length(line([-60, 0, 0], [60, 0, 0], 0.2), 128)
    np.testing.assert_allclose(thin[:, 20:108].sum(axis=0).mean(), math.pi * 0.04, rtol=0.02)


def test_tubes_outside_the_picture_leave_no_trace():
    outside = line([-300, 0, 0], [-200, 0, 0])
    assert path_length(outside, 128).max() == 0 and silhouette(outside, 128).max() == 0


def test_silhouette_has_the_width_of_the_tube():
    shadow = silhouette(line([-60, 0, 0], [60, 0, 0], 5.0), 128)
    assert shadow[:, 64].sum() == 10 and set(np.unique(shadow)) == {0, 1}


# --- tree -----------------------------------------------------------------------------------


def test_named_arteries_of_both_sides(trees):
    left, right = ({b.name for b in t.branches} for t in trees[:2])
    assert {"LM", "LAD", "LCx", "D1", "OM1", "S1"} <= left
    assert {"RCA", "AM1"} <= right and not left & {"RCA", "PLV"}


def test_radii_obey_murray_at_every_bifurcation(trees):
    for branches in (t.branches for t in trees):
        for i, parent in enumerate(branches):
            cubes = parent.healthy**3
            for at in {c.parent_index for c in branches if c.parent == i}:
                sides = sum(
                    c.healthy[0] ** 3 for c in branches if c.parent == i and c.parent_index == at
                )
                after = cubes[at + 1] if at + 1 < len(cubes) else 0.0
                assert cubes[at] >= after + sides - 1e-9
                # What is left over feeds perforators that are too fine to draw.
                if 0 < at < len(cubes) - 2:
                    assert cubes[at] - after - sides < cubes[0] * 0.02


def test_arteries_taper_and_are_of_human_size(trees):
    for t in trees:
        assert 1.4 <= t.branches[0].healthy[0] <= 2.9
        for branch in t.branches:
            assert (np.diff(branch.healthy) <= 1e-9).all()
            assert branch.radius.min() > 0.02
            assert (np.diff(branch.depth) > 0).all()


def test_children_start_on_their_parent(trees):
    for t in trees:
        for branch in t.branches[1:]:
            start = t.branches[branch.parent].points[branch.parent_index]
            np.testing.assert_allclose(branch.points[0], start, atol=1e-6)


def test_main_branches_lie_on_the_heart(trees):
    for t in trees:
        for branch in t.branches:
            if branch.name in ("LAD", "PDA", "OM1", "D1"):
                lift = t.heart.lift(branch.points[40:])
                assert 0.75 < np.median(lift) < 1.25


def test_stenoses_occur_and_narrow_the_vessel(trees):
    diseased = [t for t in trees if t.stenoses]
    assert 0 < len(diseased) < len(trees)
    for t in diseased:
        for index, position, severity in t.stenoses:
            branch = t.branches[index]
            at = round(position / tree.STEP_MM)
            assert branch.radius[at] < branch.healthy[at] * (1.15 - severity)


# --- imaging --------------------------------------------------------------------------------


def test_contrast_front_leaves_distal_arteries_unfilled(trees):
    lad = next(b for b in trees[0].branches if b.name == "LAD")
    bolus = imaging.Bolus(0.1, lad.depth.mean(), 4.0, 0.2, 0.0, 0.0)
    filling = bolus.filling(lad)
    assert filling[0] > 0.8 and filling[-1] < 0.05 and (np.diff(filling) <= 0).all()


def test_quantum_noise_has_poisson_moments():
    counts = imaging.poisson(np.random.default_rng(0), np.full((400, 400), 90.0, np.float32))
    np.testing.assert_allclose(counts.mean(), 90, rtol=0.01)
    np.testing.assert_allclose(counts.var(), 90, rtol=0.03)


@pytest.mark.parametrize("kind", ["none", "blades", "round"])
def test_collimator(kind):
    shutter = devices.Shutter(kind, (0.1, 0.1, 0.1, 0.1), 0.03, 0.01, 0.02, (0, 0, 0, 0))
    transmission = devices.field(shutter, 200)
    assert transmission[100, 100] == 1
    corner = {"none": 1.0}.get(kind, 0.02)
    np.testing.assert_allclose(transmission[0, 0], corner, atol=1e-5)


# --- frames ---------------------------------------------------------------------------------


def test_same_arguments_give_the_same_bytes():
    first, second = (generator.render_patient(3, 5, size=96, views=2) for _ in range(2))
    for a, b in zip(first, second):
        assert a.image.tobytes() == b.image.tobytes() and a.mask.tobytes() == b.mask.tobytes()


def test_frames_do_not_depend_on_how_many_views_are_asked_for():
    one, three = (generator.render_patient(3, 6, size=96, views=v) for v in (1, 3))
    np.testing.assert_array_equal(one[0].image, three[0].image)


def test_seed_and_patient_change_the_picture():
    images = [
        generator.render_patient(s, p, size=64, views=1)[0].image.tobytes()
        for s, p in ((0, 0), (0, 2), (1, 0))
    ]
    assert len(set(images)) == 3


def test_mask_is_the_artery_and_never_the_catheter(frames):
    for f in frames:
        labelled = f.mask == 1
        assert (f.artery_depth[labelled] > 0).all(), f.id
        beside = (f.catheter_depth > 0) & (f.artery_depth == 0)
        assert beside.any() and not labelled[beside].any(), f.id


def test_mask_covers_what_can_be_seen(frames):
    shares = [f.mask[f.artery_depth > 0.2].mean() for f in frames]
    assert np.median(shares) > 0.9


def test_catheter_tip_is_at_the_ostium(frames):
    for f in frames:
        near = cv2.dilate((f.catheter_depth > 0.02).astype(np.uint8), np.ones((7, 7)))
        assert (near & f.mask).any(), f.id


def contrast(image, mask):
    """Grey levels by which the surroundings (3 to 10 px away) are brighter than the mask."""
    near, far = (cv2.dilate(mask, np.ones((k, k))) for k in (5, 19))
    ring = (far - near).astype(bool) & (image > 12)
    return image[ring].mean() - image[mask > 0].mean()


def test_arteries_are_darker_than_their_surroundings(frames):
    differences = np.array([contrast(f.image, f.mask) for f in frames])
    assert np.median(differences) > 15 and (differences > 3).mean() > 0.9


def test_numbers_are_like_those_of_real_angiograms(frames):
    """Ranges around the medians of ARCADE (mask area 3.3 %, mean 112, deviation 35)."""
    assert 0.025 < np.median([f.mask.mean() for f in frames]) < 0.08
    assert 90 < np.median([f.image.mean() for f in frames]) < 135
    assert 20 < np.median([f.image.std() for f in frames]) < 55


def test_both_sides_several_centres_and_angles(frames):
    assert {f.side for f in frames} == {"left", "right"}
    assert len({f.centre for f in frames}) >= 3
    assert any(f.stenosis > 0.3 for f in frames) and any(f.stenosis == 0 for f in frames)
    assert len({(f.primary_deg, f.secondary_deg) for f in frames}) == len(frames)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31), patient=st.integers(0, 5000), size=st.sampled_from([64, 80, 112])
)
def test_every_frame_is_usable(seed, patient, size):
    (frame,) = generator.render_patient(seed, patient, size=size, views=1)
    assert frame.image.shape == frame.mask.shape == (size, size)
    assert frame.image.dtype == frame.mask.dtype == np.uint8
    assert set(np.unique(frame.mask)) == {0, 1}
    assert 0.004 < frame.mask.mean() < 0.25
    assert frame.image.std() > 4
    assert frame.id.startswith(frame.patient) and frame.patient.startswith(frame.centre)


# --- data set -------------------------------------------------------------------------------


def test_tiny_has_enough_of_everything(tiny):
    assert tiny.sizes == {"train": 24, "val": 12, "test": 12, "unlabelled": 16}
    for split in ("val", "test"):
        assert len(set(tiny.patients(split))) >= 3


def test_no_patient_is_in_two_splits(tiny):
    patients = [set(tiny.patients(s)) for s in base.SPLITS]
    assert len(set.union(*patients)) == sum(map(len, patients)) == 16


def test_built_by_two_processes_equals_rendered_in_this_one(tiny):
    source = tiny.source("train")
    (expected, *_) = generator.render_patient(0, 1, size=128, views=4)
    stored = source[tiny.ids("train").index(expected.id)]
    np.testing.assert_array_equal(stored["image"][..., 0], expected.image)
    np.testing.assert_array_equal(stored["mask"][..., 0], expected.mask)
    assert stored["patient"] == expected.patient and stored["centre"] == expected.centre
    assert abs(stored["primary_deg"] - expected.primary_deg) < 0.06


def test_unlabelled_images_come_without_masks(tiny):
    example = tiny.source("unlabelled")[0]
    assert not example["has_mask"] and not example["mask"].any()
    assert tiny.source("val")[0]["has_mask"]


def test_a_source_is_refused(tmp_path):
    with pytest.raises(base.UserError, match="takes no --source"):
        base.build("angio_synthetic/tiny", data_dir=tmp_path / "d", source=tmp_path)


@pytest.mark.parametrize("config", builder.AngioSynthetic.BUILDER_CONFIGS, ids=lambda c: c.name)
def test_configurations_have_the_promised_sizes(config):
    images = {split: n * config.views for split, n in config.patients.items()}
    assert set(images) == set(base.SPLITS) and config.size % 16 == 0
    total = {"tiny": 64, "demo": 244, "small": 300, "paper": 1800}[config.name]
    assert sum(images.values()) == total
    assert images["train"] >= 18
