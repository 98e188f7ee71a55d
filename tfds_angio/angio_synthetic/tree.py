"""Geometry of a coronary tree on a heart-like ellipsoid, in millimetres.

Patient axes: x to the patient's left, y to the back, z to the head. The main branches follow
their anatomical course in heart coordinates (angle around the long axis, angle from the apex);
radii obey Murray's law at every bifurcation (r_parent^3 = r_distal^3 + r_side^3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator, make_interp_spline

from tfds_angio.angio_synthetic import anatomy

Array = NDArray[np.float64]
STEP_MM = 0.5


@dataclass(frozen=True)
class Heart:
    """An ellipsoid whose surface carries the arteries.

    Attributes:
        centre: [3] mm.
        frame: [3, 3], rows: towards the lateral wall, the anterior groove and the apex.
        semi_axes: [3] mm along these rows.
    """

    centre: Array
    frame: Array
    semi_axes: Array

    def surface(self, theta_deg: Array, phi_deg: Array, lift: Array | float = 1.0) -> Array:
        """Points [n, 3] at angle theta around the long axis and phi from the apex.

        The right ventricle (cos theta < 0) bulges outwards by up to 12 %.
        """
        theta, phi = np.deg2rad(theta_deg), np.deg2rad(phi_deg)
        bulge = 1.0 + 0.12 * np.clip(-np.cos(theta), 0.0, 1.0) * np.sin(phi)
        unit = np.stack(
            [
                np.sin(phi) * np.cos(theta) * bulge,
                np.sin(phi) * np.sin(theta) * bulge,
                np.cos(phi) * np.ones_like(theta),
            ],
            axis=-1,
        )
        return self.centre + (np.asarray(lift)[..., None] * unit * self.semi_axes) @ self.frame

    def normal(self, points: Array) -> Array:
        """Outward unit normals [n, 3] of the ellipsoid through each of the points [n, 3]."""
        local = (points - self.centre) @ self.frame.T / self.semi_axes**2
        return unit(local @ self.frame)

    def lift(self, points: Array) -> Array:
        """Radial position [n] of points [n, 3]: 1 on the surface, 0 in the centre."""
        local = (points - self.centre) @ self.frame.T / self.semi_axes
        return np.linalg.norm(local, axis=-1)


@dataclass(frozen=True)
class Branch:
    """One artery from its origin to its end.

    Attributes:
        name: anatomical name (``LAD``, ``D1``, ``OM2``, …; ``twig`` for unnamed ones).
        level: 0 trunk, 1 named side branch, 2 and 3 twigs.
        parent: index of the parent in the tree, -1 for the trunk.
        parent_index: index of the parent's centreline point where this branch starts.
        points: [n, 3] mm, about 0.5 mm apart.
        healthy: [n] mm, radius without disease.
        radius: [n] mm, radius with stenoses.
        depth: [n] mm, way of the blood from the ostium.
    """

    name: str
    level: int
    parent: int
    parent_index: int
    points: Array
    healthy: Array
    radius: Array
    depth: Array


@dataclass(frozen=True)
class CoronaryTree:
    """All branches of one coronary system; parents come before their children.

    Attributes:
        side: ``left`` or ``right``.
        heart: the surface that carries the tree.
        branches: the arteries.
        stenoses: (branch index, position in mm, severity in 0..1 as loss of diameter).
    """

    side: str
    heart: Heart
    branches: tuple[Branch, ...]
    stenoses: tuple[tuple[int, float, float], ...]


def unit(vectors: Array) -> Array:
    """Vectors [..., 3] scaled to length one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def make_heart(rng: np.random.Generator) -> Heart:
    """A heart of normal size and position, with the variation between patients."""
    apex = unit(np.array([0.62, -0.58, -0.53]) + rng.normal(0, 0.06, 3))
    lateral = np.array([0.70, 0.70, 0.05]) + rng.normal(0, 0.06, 3)
    lateral = unit(lateral - apex * (lateral @ apex))
    frame = np.stack([lateral, np.cross(apex, lateral), apex])
    size = rng.normal(1.0, 0.07)
    semi_axes = size * np.array([49.0, 48.0, 70.0]) * rng.normal(1.0, 0.04, 3)
    return Heart(np.array([22.0, -18.0, 0.0]) + rng.normal(0, 4, 3), frame, semi_axes)


def resample(points: Array, step: float = STEP_MM) -> Array:
    """The polyline through points [n, 3] with vertices every `step` mm, both ends kept."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    count = max(int(np.ceil(length[-1] / step)) + 1, 4)
    wanted = np.linspace(0.0, length[-1], count)
    return np.stack([np.interp(wanted, length, points[:, i]) for i in range(3)], axis=1)


def spline(control: Array) -> Array:
    """A smooth curve [n, 3] through control points [k, 3], sampled every `STEP_MM`."""
    chord = np.linalg.norm(np.diff(control, axis=0), axis=1)
    t = np.concatenate([[0.0], np.cumsum(np.sqrt(chord + 1e-6))])  # centripetal: no loops
    curve = make_interp_spline(t, control, k=min(3, len(control) - 1))
    return resample(curve(np.linspace(0.0, t[-1], 40 * len(control))))


def tortuous(rng: np.random.Generator, points: Array, amount: float) -> Array:
    """The curve [n, 3] with sideways waves of `amount` mm; both its ends stay smooth."""
    tangent = unit(np.gradient(points, axis=0))
    side = unit(np.cross(tangent, unit(np.array([0.3, 0.5, 0.8]) + rng.normal(0, 0.3, 3))))
    other = np.cross(tangent, side)
    s = np.arange(len(points)) * STEP_MM
    ramp = np.clip(s / 12.0, 0.0, 1.0) * (0.7 + 0.7 * s / s[-1])  # more towards the end
    shift = np.zeros_like(points)
    for direction in (side, other):
        wave = np.zeros_like(s)
        for wavelength in (38.0, 21.0, 12.0, 7.5):
            beat = rng.uniform(0.7, 1.3) * wavelength
            phase, weight = rng.uniform(0, 2 * np.pi), rng.normal(0, 1) * np.sqrt(beat / 21.0)
            envelope = 0.5 + 0.5 * np.sin(2 * np.pi * s / (3.3 * beat) + rng.uniform(0, 6.28))
            wave += weight * envelope * np.sin(2 * np.pi * s / beat + phase) * (beat / 21.0)
        shift += direction * wave[:, None]
    return resample(points + amount * ramp[:, None] * shift)


def grow_tree(rng: np.random.Generator, side: str) -> CoronaryTree:
    """A whole left or right coronary tree with radii, disease and twigs.

    Args:
        rng: source of the variation between patients.
        side: ``left`` or ``right``.
    """
    heart = make_heart(rng)
    tortuosity = float(np.clip(rng.lognormal(-0.4, 0.6), 0.15, 2.0))
    left_dominant = bool(rng.random() < 0.12)
    branches = _named_branches(rng, heart, side, left_dominant, tortuosity)
    for level, density in ((2, 1.0), (3, 0.55)):
        branches += _twigs(rng, heart, branches, level, density, tortuosity)
    branches = _murray(rng, branches, anatomy.root_radius(rng, side))
    branches, stenoses = _disease(rng, branches)
    return CoronaryTree(side, heart, tuple(branches), tuple(stenoses))


def _named_branches(
    rng: np.random.Generator, heart: Heart, side: str, left_dominant: bool, tortuosity: float
) -> list[Branch]:
    """Branches of the atlas with this patient's variation; radius holds the wanted end radius."""
    out: list[Branch] = []
    index: dict[str, int] = {}
    for course in anatomy.courses(rng, side, left_dominant):
        control = np.array(course.control, float)
        sway = np.linspace(0.3, 1.0, len(control))
        control[:, 0] += (rng.normal(0, 2.5) + rng.normal(0, 2.5, len(control))) * sway
        control[:, 1] += rng.normal(0, 2.0, len(control)) * sway
        points = heart.surface(control[:, 0], control[:, 1], control[:, 2])
        parent, at = -1, 0
        if course.parent:
            parent = index[course.parent]
            trunk = out[parent].points
            # A side branch leaves where its first control point comes nearest to the parent.
            if course.at_end:
                at = len(trunk) - 1
            else:
                near = np.linalg.norm(trunk - points[0], axis=1)
                at = int(np.clip(np.argmin(near), 8, len(trunk) - 9))
            points[0] = trunk[at]
        curve = tortuous(rng, spline(points), tortuosity * course.tortuosity)
        depth = np.arange(len(curve)) * STEP_MM + (out[parent].depth[at] if parent >= 0 else 0.0)
        ends = np.full(len(curve), course.end_radius)
        level = 0 if course.trunk else 1
        index[course.name] = len(out)
        out.append(Branch(course.name, level, parent, at, curve, ends, ends, depth))
    return out


def _twigs(
    rng: np.random.Generator,
    heart: Heart,
    branches: list[Branch],
    level: int,
    density: float,
    tortuosity: float,
) -> list[Branch]:
    """Small side branches that leave at 35-75 degrees and wander over the surface."""
    parents, starts, sides = [], [], []
    for i, branch in enumerate(branches):
        if branch.level >= level or branch.name in ("LM", "twig-septal"):
            continue
        spacing = rng.uniform(7.0, 13.0) / density
        position, hand = rng.uniform(4.0, 12.0), rng.choice([-1.0, 1.0])
        while position < len(branch.points) * STEP_MM - 4.0:
            parents.append(i)
            starts.append(int(position / STEP_MM))
            sides.append(hand)
            position += spacing * rng.uniform(0.5, 1.6)
            hand *= -1.0 if rng.random() < 0.7 else 1.0
    count = len(parents)
    if not count:
        return []
    origin = np.stack([branches[p].points[s] for p, s in zip(parents, starts)])
    tangent = np.stack(
        [branches[p].points[s + 1] - branches[p].points[s - 1] for p, s in zip(parents, starts)]
    )
    length = rng.lognormal(np.log(24.0 if level == 2 else 11.0), 0.45, count).clip(5.0, 70.0)
    paths = _wander(rng, heart, origin, unit(tangent), np.array(sides), length, tortuosity)
    out = []
    for i, (p, s) in enumerate(zip(parents, starts)):
        points = paths[i][: max(int(length[i] / STEP_MM), 8)]
        depth = branches[p].depth[s] + np.arange(len(points)) * STEP_MM
        ends = np.full(len(points), rng.uniform(0.11, 0.19))
        out.append(Branch("twig", level, p, s, points, ends, ends, depth))
    return out


def _wander(
    rng: np.random.Generator,
    heart: Heart,
    origin: Array,
    tangent: Array,
    side: Array,
    length: Array,
    tortuosity: float,
) -> Array:
    """Paths [count, steps, 3] that walk over the surface with a slowly turning heading."""
    count, steps = len(origin), int(length.max() / STEP_MM) + 1
    heading = np.deg2rad(rng.uniform(35, 75, count)) * side
    # Turning follows a damped random walk, so twigs curve smoothly and then wriggle.
    turn = np.zeros(count)
    bend = -side * rng.uniform(0.0, 0.02, count)  # back towards the parent's course
    dive = np.where(rng.random(count) < 0.3, rng.uniform(0.002, 0.008, count), 0.0)
    wanted = heart.lift(origin)
    here, ahead = origin.copy(), tangent
    normal = heart.normal(here)
    sideways = np.cross(normal, ahead)
    direction = unit(np.cos(heading)[:, None] * ahead + np.sin(heading)[:, None] * sideways)
    path = np.empty((count, steps, 3))
    wiggle = 0.02 + 0.045 * tortuosity
    for k in range(steps):
        path[:, k] = here
        turn = 0.88 * turn + rng.normal(0, wiggle, count)
        normal = heart.normal(here)
        direction = direction - normal * np.sum(direction * normal, axis=1, keepdims=True)
        direction = unit(direction + (turn + bend)[:, None] * np.cross(normal, direction))
        wanted = wanted - dive * STEP_MM
        here = here + STEP_MM * direction
        lift = heart.lift(here)[:, None]
        here = heart.centre + (here - heart.centre) * (0.9 + 0.1 * wanted[:, None] / lift)
    return path


def _murray(rng: np.random.Generator, branches: list[Branch], root: float) -> list[Branch]:
    """Radii from the ends to the root: the cube of the radius is conserved at each origin."""
    cubes = [np.zeros(len(b.points)) for b in branches]
    for i in reversed(range(len(branches))):
        branch = branches[i]
        n = len(branch.points)
        # Perforators too fine to draw take a share all along, hence a taper between branches.
        share = branch.healthy[0] ** 3 * (1.2 if branch.level < 2 else 0.9)
        cubes[i] += branch.healthy[0] ** 3 + share * np.linspace(1.0, 0.0, n)
        if branch.parent >= 0:
            cubes[branch.parent][: branch.parent_index + 1] += cubes[i][0]
    scale = root / np.cbrt(cubes[0][0])
    return [
        replace(b, healthy=scale * np.cbrt(c), radius=scale * np.cbrt(c))
        for b, c in zip(branches, cubes)
    ]


def _disease(
    rng: np.random.Generator, branches: list[Branch]
) -> tuple[list[Branch], list[tuple[int, float, float]]]:
    """Uneven walls everywhere and, in about six patients of ten, focal stenoses."""
    stenoses: list[tuple[int, float, float]] = []
    wide = [i for i, b in enumerate(branches) if b.level < 2 and len(b.points) > 50]
    focal = rng.choice([0, 1, 2, 3], p=[0.4, 0.3, 0.2, 0.1])
    for i in rng.choice(wide, size=min(int(focal), len(wide)), replace=False):
        span = (len(branches[i].points) - 1) * STEP_MM
        severity = float(np.clip(rng.beta(2.5, 2.0), 0.25, 0.92))
        stenoses.append((int(i), float(rng.uniform(0.12, 0.75) * span), severity))
    out = []
    for i, branch in enumerate(branches):
        s = np.arange(len(branch.points)) * STEP_MM
        factor = np.ones(len(s))
        if branch.level < 2:
            knots = np.arange(0.0, s[-1] + 9.0, 5.0)
            factor += PchipInterpolator(knots, rng.normal(0, 0.035, len(knots)))(s)
        for where, centre, severity in stenoses:
            if where == i:
                width = rng.uniform(1.5, 5.0)
                factor *= 1.0 - severity * np.exp(-(((s - centre) / width) ** 2))
        out.append(replace(branch, radius=branch.healthy * factor))
    return out, stenoses
