"""The chest without contrast: lungs, heart shadow, diaphragm, spine, ribs and soft texture.

Solid organs are quadrics in patient coordinates (mm; x left, y back, z head); a ray's path through
them is exact interval arithmetic, so edges move and overlap between projections as they should.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tfds_angio.angio_synthetic.projection import Array, CArm, Discs, join, path_length, tube
from tfds_angio.angio_synthetic.tree import Heart, resample, unit

Image = NDArray[Any]  # float32 [size, size]
Line = tuple[Array, Array, float]
HEART_SIZES = (0.95, 1.0, 1.04, 1.07)  # within one exposure and of the fat around it
RAYS = 144  # of a 512 x 512 picture; organs are smooth, so their ray grid can be coarser


@dataclass(frozen=True)
class Quadric:
    """An ellipsoid, or an elliptic cylinder of finite length.

    Attributes:
        centre: [3] mm.
        axes: [3, 3] rows of unit vectors.
        semi: [3] mm; for a cylinder the third is its half length.
        cylinder: whether the third axis is a cylinder's.
    """

    centre: Array
    axes: Array
    semi: Array
    cylinder: bool = False

    def interval(self, source: Array, rays: NDArray[np.float32]) -> tuple[Image, Image]:
        """Entry and exit [n, n] in mm along each ray; entry = exit = 0 where it misses."""
        to_unit = (self.axes / self.semi[:, None]).astype(np.float32)
        o = to_unit @ (source - self.centre).astype(np.float32)
        d = rays @ to_unit.T
        k = 2 if self.cylinder else 3
        a = np.sum(d[..., :k] ** 2, axis=-1)
        b = d[..., :k] @ o[:k]
        root = b * b - a * (o[:k] @ o[:k] - 1.0)
        half = np.sqrt(np.maximum(root, 0.0)) / a
        t0, t1 = -b / a - half, -b / a + half
        if self.cylinder:
            slope = np.where(np.abs(d[..., 2]) < 1e-6, 1e-6, d[..., 2])
            s0, s1 = (-1.0 - o[2]) / slope, (1.0 - o[2]) / slope
            t0 = np.maximum(t0, np.minimum(s0, s1))
            t1 = np.minimum(t1, np.maximum(s0, s1))
        hit = (root > 0) & (t1 > t0)
        return np.where(hit, t0, 0.0).astype(np.float32), np.where(hit, t1, 0.0).astype(np.float32)


@dataclass(frozen=True)
class Chest:
    """What lies around the heart of one patient.

    Attributes:
        lungs: air-filled, less dense than tissue.
        solids: heart and diaphragm domes, which displace lung.
        gas: bubbles below the left dome (stomach, colon).
        bones: bodies with their attenuation per mm.
        ribs: centre lines [n, 3] mm.
        lines: pulmonary vessels and the edges of small bones: centre line [n, 3], radius [n]
            in mm, attenuation per mm.
        tissue_per_mm: attenuation lost per mm of lung.
        lung_grain: strength of the lung texture.
        stripes: strength of the trabecular texture of the spine.
    """

    lungs: tuple[Quadric, ...]
    solids: tuple[Quadric, ...]
    gas: tuple[Quadric, ...]
    bones: tuple[tuple[Quadric, float], ...]
    ribs: tuple[Array, ...]
    lines: tuple[Line, ...]
    tissue_per_mm: float
    lung_grain: float
    stripes: float


def make_chest(rng: np.random.Generator, heart: Heart) -> Chest:
    """The chest of one patient around the given heart."""
    eye = np.eye(3)
    breath = rng.normal(0, 14)

    def ellipsoid(centre: list[float], semi: list[float], jitter: float) -> Quadric:
        where = np.array(centre) + rng.normal(0, jitter, 3)
        return Quadric(where, eye, np.array(semi) * rng.normal(1, 0.05, 3))

    lungs = (
        ellipsoid([-78, 5, 5], [66, 85, 135], 6),
        ellipsoid([86, 12, 5], [62, 85, 135], 6),
    )
    shell = Quadric(
        heart.centre - 20.0 * heart.frame[2] - 6.0 * heart.frame[0],  # with atria
        heart.frame,
        heart.semi_axes * rng.uniform(1.08, 1.22, 3) * np.array([1.1, 1.08, 1.22]),
    )
    solids = (
        shell,
        ellipsoid([-70, -5, -106 + breath], [88, 105, 78], 6),
        ellipsoid([58, -2, -116 + breath], [88, 100, 78], 6),
    )
    gas = tuple(
        ellipsoid([rng.uniform(20, 85), rng.uniform(-35, 25), -70 + breath], [22, 20, 14], 8)
        for _ in range(rng.choice([0, 1, 2], p=[0.45, 0.35, 0.2]))
    )
    aorta = Quadric(np.array([6.0, 42.0, 20.0]), eye, np.array([12.0, 12.0, 140.0]), True)
    bones = _spine(rng)
    return Chest(
        lungs=lungs,
        solids=solids,
        gas=gas,
        bones=(*bones, (aorta, 0.004)),
        ribs=_ribs(rng),
        lines=_pulmonary(rng, lungs) + _vertebral_edges(rng, bones),
        tissue_per_mm=float(rng.uniform(0.005, 0.0105)),
        lung_grain=float(rng.uniform(0.5, 1.3)),
        stripes=float(rng.uniform(0.5, 1.3)),
    )


def _spine(rng: np.random.Generator) -> tuple[tuple[Quadric, float], ...]:
    """Thoracic vertebrae: body, two end plates, pedicles and a spinous process each."""
    out: list[tuple[Quadric, float]] = []
    height, dense = rng.uniform(22, 26), rng.uniform(0.7, 1.4)
    lean, middle = rng.normal(0, 0.03), rng.normal(-10, 4)
    eye = np.eye(3)
    for z in np.arange(-130.0, 130.0, height) + rng.uniform(0, height):
        x = middle + lean * z + rng.normal(0, 0.5)
        body = np.array([x, 62.0, z])
        out.append((_cylinder(body, (16, 13, 0.42 * height)), 0.0065 * dense))
        out.append((_cylinder(body, (14.8, 11.8, 0.42 * height)), -0.0030 * dense))  # spongy
        for side in (-1.0, 1.0):
            plate = body + np.array([0, 0, side * 0.42 * height])
            out.append((_cylinder(plate, (17, 14, 1.0)), 0.0030 * dense))
            pedicle = body + np.array([side * 11.0, 17.0, 0.15 * height])
            out.append((Quadric(pedicle, eye, np.array([3.6, 7.0, 5.0])), 0.008 * dense))
        spinous = body + np.array([rng.normal(0, 1), 34.0, -0.35 * height])
        out.append((Quadric(spinous, eye, np.array([2.4, 12.0, 6.5])), 0.0045 * dense))
    return tuple(out)


def _cylinder(centre: Array, semi: tuple[float, float, float]) -> Quadric:
    return Quadric(centre, np.eye(3), np.array(semi, float), True)


def _ribs(rng: np.random.Generator) -> tuple[Array, ...]:
    """Both sides' ribs: from the spine backwards round the chest, falling towards the front."""
    out = []
    gap, start, drop = rng.uniform(24, 30), rng.uniform(-20, 5), rng.uniform(50, 80)
    for side in (-1.0, 1.0):
        for i in range(-4, 7):
            t = np.linspace(0.08, 0.86, 40) * np.pi
            x = -10 + side * (148 + rng.normal(0, 3)) * np.sin(t)
            y = 4.0 + 92.0 * np.cos(t)
            z = start + i * gap + 18 - drop * (t / np.pi) ** 1.3 + rng.normal(0, 1.5)
            out.append(resample(np.stack([x, y, z], axis=1), 3.0))
    return tuple(out)


def _vertebral_edges(
    rng: np.random.Generator, bones: tuple[tuple[Quadric, float], ...]
) -> tuple[Line, ...]:
    """Thin outlines of pedicles, laminae and rib heads, which give the spine its fine lines."""
    out: list[Line] = []
    bodies = [q for q, density in bones if q.cylinder and density > 0 and q.semi[2] > 2.0]
    strength = rng.uniform(0.02, 0.05)
    for body in bodies:
        for side in (-1.0, 1.0):
            t = np.linspace(0, rng.uniform(4.5, 6.3), 18) + rng.uniform(0, 6.3)
            ring = np.stack([4.0 * np.sin(t), 3 * np.sin(t + 1), 5.5 * np.cos(t)], axis=1)
            paths = [body.centre + [side * 11, 16, 3] + ring]
            for _ in range(4):
                start = [side * rng.uniform(3, 17), rng.uniform(8, 30), rng.uniform(-12, 12)]
                heading = unit(np.array([side * rng.uniform(0, 1), 0.2, rng.normal(0, 0.6)]))
                bend = np.cumsum(rng.normal(0, 0.09, (16, 3)), axis=0)
                paths.append(body.centre + start + np.cumsum(unit(heading + bend), axis=0))
            for path in paths:
                radius = np.full(len(path), rng.uniform(0.35, 0.8))
                out.append((path, radius, float(strength * rng.uniform(0.3, 1.2))))
    return tuple(out)


def _pulmonary(rng: np.random.Generator, lungs: tuple[Quadric, ...]) -> tuple[Line, ...]:
    """Vessels that fan out from the hilum of each lung."""
    out = []
    for lung, side in zip(lungs, (-1.0, 1.0)):
        hilum = lung.centre - np.array([side * 48.0, -8.0, -12.0])
        for _ in range(22):
            heading = unit(rng.normal(0, 1, 3) * np.array([0.9, 0.9, 1.2]) + [side * 0.8, 0, -0.3])
            step = 3.0 * unit(heading + np.cumsum(rng.normal(0, 0.13, (32, 3)), axis=0))
            path = hilum + rng.normal(0, 8, 3) + np.cumsum(step, axis=0)
            out.append((path, np.linspace(rng.uniform(1.2, 3.6), 0.4, len(path)), 0.010))
    return tuple(out)


def noise_field(
    rng: np.random.Generator, size: int, coarsest: float, finest: float, slope: float
) -> Image:
    """A smooth random field [size, size] of unit standard deviation.

    Octaves of cubic-interpolated Gaussian noise, from `coarsest` to `finest` (fractions of the
    picture); each octave's amplitude is its scale to the power `slope` (1.5 in projected anatomy).
    """
    field = np.zeros((size, size), np.float32)
    power = 0.0
    scale = coarsest
    while scale >= finest * 0.999:
        cells = max(int(np.ceil(1.0 / scale)), 1) + 4
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        # A random crop of the interpolated grid hides its lines.
        pixels = scale * size
        offset = rng.uniform(1.0, 2.0, 2)
        matrix = np.array([[1 / pixels, 0, offset[0]], [0, 1 / pixels, offset[1]]], np.float64)
        field += scale**slope * cv2.warpAffine(
            grid,
            matrix,
            (size, size),
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT,
        )
        power += (scale**slope) ** 2 * 0.55  # cubic interpolation lowers the variance
        scale /= 2.0
    return field / np.float32(np.sqrt(power))


def _left_over(air: tuple[Image, Image], solids: list[tuple[Image, Image]]) -> Image:
    """Length [n, n] of each interval that no solid covers (up to triple overlaps)."""
    cuts = [(np.maximum(air[0], s0), np.minimum(air[1], s1)) for s0, s1 in solids]
    left = air[1] - air[0]
    for i, (c0, c1) in enumerate(cuts):
        left = left - np.maximum(c1 - c0, 0.0)
        for d0, d1 in cuts[:i]:  # overlapping solids: give back what was cut twice
            left = left + np.maximum(np.minimum(c1, d1) - np.maximum(c0, d0), 0.0)
    return np.maximum(left, 0.0)


def _organs(chest: Chest, source: Array, rays: NDArray[np.float32]) -> tuple[Image, Image]:
    """Path in mm [n, n] of each ray through air-filled lung, and optical depth of the bones."""
    heart, *domes = chest.solids
    held = [q.interval(source, rays) for q in domes]
    # The beating heart has a soft border, unlike the diaphragm of a held breath.
    moments = [replace(heart, semi=heart.semi * s).interval(source, rays) for s in HEART_SIZES]
    lung = np.zeros(rays.shape[:2], np.float32)
    for quadric in chest.lungs:
        air = quadric.interval(source, rays)
        for moment in moments:
            lung += _left_over(air, [moment, *held]) / len(moments)
    for quadric in chest.gas:
        t0, t1 = quadric.interval(source, rays)
        lung += 1.1 * (t1 - t0)
    bone = np.zeros(rays.shape[:2], np.float32)
    for quadric, density in chest.bones:
        t0, t1 = quadric.interval(source, rays)
        bone += np.float32(density) * (t1 - t0)
    return lung, bone


def chest_depth(rng: np.random.Generator, chest: Chest, carm: CArm) -> Image:
    """Optical depth [size, size] of the chest, relative to plain soft tissue.

    Args:
        rng: source of the texture of this frame.
        chest: the patient.
        carm: the projection.
    """
    source, rays = carm.rays(int(RAYS * np.sqrt(carm.size / 512)))
    lung, bone = _organs(chest, source, rays)
    coarse = carm.size // 2
    grid = CArm(
        carm.primary_deg, carm.secondary_deg, coarse, carm.field_mm, carm.target, carm.source_iso_mm
    )
    rib_outer = path_length(join([_rib(grid, r, 6.0) for r in chest.ribs]), coarse)
    rib_inner = path_length(join([_rib(grid, r, 4.6) for r in chest.ribs]), coarse)
    lines = join([tube(grid, path, radius, per_mm) for path, radius, per_mm in chest.lines])
    tubes = 0.007 * (rib_outer - 0.75 * rib_inner) + path_length(lines, coarse)

    def enlarge(values: Image) -> Image:
        full = (carm.size, carm.size)
        return cv2.resize(values, full, interpolation=cv2.INTER_CUBIC)

    lung, bone = enlarge(lung), enlarge(bone)
    inside = np.clip(lung / 60.0, 0.0, 1.0)
    clouds = noise_field(rng, carm.size, 0.5, 1 / 128, 1.2)
    fine = noise_field(rng, carm.size, 1 / 16, 1 / 128, 0.9)
    depth = -np.float32(chest.tissue_per_mm) * lung + bone + enlarge(tubes)
    depth += clouds * np.float32(0.013)
    depth += fine * (0.012 + 0.022 * chest.lung_grain * inside)
    depth += fine * np.clip(bone, 0, 0.2) * np.float32(0.12 * chest.stripes)
    return depth.astype(np.float32)


def _rib(carm: CArm, path: Array, radius: float) -> Discs:
    at = np.linspace(0.0, 1.0, len(path))
    bony = np.clip((1.0 - at) / 0.25, 0.0, 1.0)  # turns into cartilage in front
    return tube(carm, path, np.full(len(path), radius), bony)
