"""Angiograms of one patient: the same tree, several projections."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tfds_angio.angio_synthetic import background, devices, imaging, projection
from tfds_angio.angio_synthetic.projection import CArm, Discs
from tfds_angio.angio_synthetic.tree import STEP_MM, Array, CoronaryTree, grow_tree

ANATOMY, FRAME = 1, 2  # streams of random numbers
# Annotators outline what they can see: arteries at least this optically deep across (0.9 mm wide
# with the usual contrast medium).
VISIBLE_DEPTH = 0.1


@dataclass(frozen=True)
class Frame:
    """One angiogram.

    Attributes:
        image: uint8 [size, size].
        mask: uint8 [size, size], 1 where an artery is filled enough to be seen.
        id: unique over the data set, `<centre>-<patient>_<view>` as in FAME2.
        patient: of the tree.
        centre: of the scanner's look.
        side: ``left`` or ``right`` coronary system.
        primary_deg: LAO positive.
        secondary_deg: cranial positive.
        stenosis: largest loss of diameter in the tree, 0..1.
        artery_depth: float32 [size, size], optical depth of contrast in arteries.
        catheter_depth: float32 [size, size], optical depth of the catheter.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    id: str
    patient: str
    centre: str
    side: str
    primary_deg: float
    secondary_deg: float
    stenosis: float
    artery_depth: NDArray[np.float32]
    catheter_depth: NDArray[np.float32]


def render_patient(seed: int, patient_index: int, *, size: int, views: int) -> list[Frame]:
    """All frames of one patient; a pure function of its arguments.

    Args:
        seed: of the data set.
        patient_index: 0, 1, …; two of five show the right coronary system, the others the left.
        size: side of the pictures in pixels.
        views: number of projections; more than the atlas has repeats them at other angles.
    """
    rng = np.random.default_rng([seed, ANATOMY, patient_index])
    look = imaging.LOOKS[int(rng.integers(len(imaging.LOOKS)))]
    # Both sides occur in every few patients whatever the seed.
    side = "right" if patient_index % 5 in (1, 3) else "left"
    tree = grow_tree(rng, side)
    chest = background.make_chest(rng, tree.heart)
    tools = devices.make_devices(rng, tree)
    working = projection.VIEWS[side]
    order = rng.permutation(len(working))
    patient = f"{look.name}-{patient_index:04d}"
    frames = []
    for view in range(views):
        frame_rng = np.random.default_rng([seed, FRAME, patient_index, view])
        angles = working[order[view % len(working)]]
        frames.append(
            _render_view(frame_rng, tree, chest, tools, look, angles, size, f"{patient}_{view:02d}")
        )
    return frames


def _aim(
    rng: np.random.Generator, tree: CoronaryTree, angles: tuple[float, float], size: int
) -> CArm:
    """A projection near the given angles that frames the tree as an operator would."""
    main = np.concatenate([b.points for b in tree.branches if b.level < 2])
    carm = CArm(
        angles[0] + rng.normal(0, 5), angles[1] + rng.normal(0, 4), size, 120.0, main.mean(axis=0)
    )
    right, up, _ = carm.axes
    across, along = (main - carm.target) @ right, (main - carm.target) @ up
    low = np.array([across.min(), along.min()])
    high = np.array([across.max(), along.max()])
    field = float(np.clip((high - low).max() * rng.uniform(1.02, 1.4), 98.0, 155.0))
    middle = (low + high) / 2 + rng.normal(0, 0.05, 2) * field
    return replace(carm, field_mm=field, target=carm.target + middle[0] * right + middle[1] * up)


def _beat(rng: np.random.Generator, tree: CoronaryTree) -> CoronaryTree:
    """The tree at another moment of the heart beat: up to 12 % shorter, slightly twisted."""
    heart = tree.heart
    squeeze = 1.0 - rng.uniform(0.0, 0.12) * np.array([1.0, 1.0, 0.7])
    twist = np.deg2rad(rng.normal(0, 4))

    def move(points: Array) -> Array:
        local = (points - heart.centre) @ heart.frame.T * squeeze
        angle = twist * (0.5 + 0.5 * local[:, 2] / heart.semi_axes[2])
        c, s = np.cos(angle), np.sin(angle)
        x, y = c * local[:, 0] - s * local[:, 1], s * local[:, 0] + c * local[:, 1]
        return heart.centre + np.stack([x, y, local[:, 2]], axis=1) @ heart.frame

    moved = tuple(replace(b, points=move(b.points)) for b in tree.branches)
    return replace(tree, branches=moved)


def _arteries(tree: CoronaryTree, bolus: imaging.Bolus, carm: CArm) -> tuple[Discs, Discs]:
    """Discs of all arteries (heights: optical depth), and of the parts that can be seen."""
    parts, visible = [], []
    for branch in tree.branches:
        # The first part of a side branch lies inside its parent, if that goes on.
        parent, skip = tree.branches[branch.parent], 0
        if branch.parent >= 0 and branch.parent_index < len(parent.points) - 1:
            skip = int(min(1.2 * parent.radius[branch.parent_index], 2.0) / STEP_MM)
        rows = slice(skip, None)
        radius, points = branch.radius[rows], branch.points[rows]
        density = bolus.per_mm * bolus.strength(branch)[rows]
        parts.append(projection.tube(carm, points, radius, density))
        # Without stenoses and streaming, so that a vessel stays outlined beyond them.
        across = 2 * bolus.per_mm * (branch.healthy * bolus.filling(branch))[rows]
        last = int(np.count_nonzero(np.minimum.accumulate(across) >= VISIBLE_DEPTH))
        if last > 2:
            visible.append(projection.tube(carm, points[:last], radius[:last]))
    return projection.join(parts), projection.join(visible)


def _render_view(
    rng: np.random.Generator,
    tree: CoronaryTree,
    chest: background.Chest,
    tools: devices.Devices,
    look: imaging.Look,
    angles: tuple[float, float],
    size: int,
    name: str,
) -> Frame:
    carm = _aim(rng, tree, angles, size)
    moved = _beat(rng, tree)
    bolus = imaging.make_bolus(rng, max(float(b.depth[-1]) for b in tree.branches if b.level < 2))
    discs, visible = _arteries(moved, bolus, carm)
    arteries = projection.path_length(discs, size)
    reflux = imaging.reflux(rng, carm, moved.branches[0], bolus)
    lumen = bolus.per_mm * float(rng.choice([0.25, 0.8, 1.0, 1.0]))
    catheter, wires = devices.device_depth(tools, carm, lumen)
    dense = imaging.soften(arteries + reflux + catheter + wires)
    depth = background.chest_depth(rng, chest, carm) + dense
    shutter = devices.make_shutter(rng, dict(look.shutters))
    signal = imaging.expose(rng, depth, devices.field(shutter, size), look)
    grey = imaging.display(rng, signal, look) * devices.bars(shutter, size)
    mask = projection.silhouette(visible, size) & devices.open_area(shutter, size)
    return Frame(
        image=grey.astype(np.uint8),
        mask=mask,
        id=name,
        patient=name.rsplit("_", 1)[0],
        centre=look.name,
        side=tree.side,
        primary_deg=carm.primary_deg,
        secondary_deg=carm.secondary_deg,
        stenosis=max((s[2] for s in tree.stenoses), default=0.0),
        artery_depth=arteries,
        catheter_depth=catheter,
    )
