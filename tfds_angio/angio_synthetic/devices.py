"""What the operator brought: catheter, guide wire, leads, sternal wires, and the collimator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfds_angio.angio_synthetic.background import Image
from tfds_angio.angio_synthetic.projection import Array, CArm, join, path_length, tube
from tfds_angio.angio_synthetic.tree import CoronaryTree, spline, unit


@dataclass(frozen=True)
class Wire:
    """A radio-opaque tube: path [n, 3] mm, radius in mm, attenuation per mm."""

    path: Array
    radius: float
    per_mm: float


@dataclass(frozen=True)
class Devices:
    """Devices of one patient.

    Attributes:
        catheter: path [n, 3] mm from the ostium to where it leaves the field.
        catheter_radius: outer radius in mm (6 French: 1 mm).
        catheter_wall: attenuation of its wall per mm.
        wires: everything else.
    """

    catheter: Array
    catheter_radius: float
    catheter_wall: float
    wires: tuple[Wire, ...]


def make_devices(rng: np.random.Generator, tree: CoronaryTree) -> Devices:
    """Catheter in the ostium of the tree, and sometimes wires, leads and sternal loops."""
    wires: list[Wire] = []
    if rng.random() < 0.18:
        wires.append(_guide_wire(rng, tree))
    if rng.random() < 0.12:
        wires += _sternal_wires(rng)
    if rng.random() < 0.07:
        wires += _pacemaker(rng, tree)
    if rng.random() < 0.20:
        wires += _surface_leads(rng)
    return Devices(
        catheter=_catheter(rng, tree),
        catheter_radius=float(rng.choice([0.85, 1.0, 1.0, 1.15])),
        catheter_wall=float(rng.uniform(0.05, 0.11)),
        wires=tuple(wires),
    )


def _catheter(rng: np.random.Generator, tree: CoronaryTree) -> Array:
    """Judkins curve from the ostium up the ascending aorta; radial or femoral from there."""
    start = tree.branches[0].points
    tip, inward = start[0], unit(start[6] - start[0])
    back = tip - inward * rng.uniform(7, 13)
    root = tip - inward * rng.uniform(16, 24) * (1.0 if tree.side == "left" else 0.55)
    root = root + np.array([rng.normal(0, 3), rng.normal(0, 3), rng.uniform(4, 14)])
    rise = tip + np.array([rng.normal(-14, 5), rng.normal(2, 4), rng.uniform(40, 55)])
    control = [tip + inward * rng.uniform(0.0, 2.0), back, root, rise]
    if rng.random() < 0.7:  # radial: through the innominate artery towards the right arm
        control += [rise + [-6, 3, 35], rise + [-22, 6, 70], rise + [-60, 10, 110]]
    else:  # femoral: over the arch and down along the spine
        control += [rise + [4, 12, 26], rise + [14, 34, 34], rise + [22, 50, 14]]
        sway = rng.normal(0, 5, 3)
        control += [rise + [18 + sway[0], 52, -50], rise + [8 + sway[1], 54, -130]]
        control += [rise + [4 + sway[2], 54, -230], rise + [4, 54, -360]]
    return spline(np.array(control, float))


def _guide_wire(rng: np.random.Generator, tree: CoronaryTree) -> Wire:
    """A 0.014-inch wire from the catheter into the longest artery."""
    longest = max(range(len(tree.branches)), key=lambda i: tree.branches[i].depth[-1])
    path: list[Array] = []
    index, stop = longest, None
    while index >= 0:
        branch = tree.branches[index]
        path.insert(0, branch.points[:stop])
        index, stop = branch.parent, branch.parent_index + 1
    course = np.concatenate(path)
    course = course[: int(len(course) * rng.uniform(0.6, 0.95))]
    return Wire(spline(course[::6]), 0.18, float(rng.uniform(0.35, 0.6)))


def _sternal_wires(rng: np.random.Generator) -> list[Wire]:
    out = []
    for z in np.arange(-60, 90, 24.0) + rng.uniform(-8, 8):
        # Round the breastbone, hence flat from the front, and bent by the surgeon's pliers.
        t = np.linspace(0.0, 2 * np.pi, 12)
        wide, deep, tilt = rng.uniform(8, 14), rng.uniform(5, 8), rng.normal(0, 0.25)
        x, y = wide * np.sin(t), -deep * np.cos(t)
        loop = np.stack([x, y, tilt * x + rng.uniform(0.1, 0.5) * y], axis=1)
        loop[1:-1] += rng.normal(0, 0.9, (10, 3))
        twist = loop[-1] + np.array([[1.5, -1, 1], [-1, -1, 2.0], [1, -1, 3.5]])
        path = np.array([-8 + rng.normal(0, 2), -86, z]) + np.concatenate([loop, twist])
        out.append(Wire(spline(path), 0.35, 0.45))
    return out


def _pacemaker(rng: np.random.Generator, tree: CoronaryTree) -> list[Wire]:
    heart = tree.heart
    apex = heart.centre + 0.8 * heart.semi_axes[2] * heart.frame[2] - 8 * heart.frame[0]
    cava = np.array([-40.0, -2.0, 75.0]) + rng.normal(0, 3, 3)
    inside = heart.centre - 0.6 * heart.semi_axes[2] * heart.frame[2] - 32 * heart.frame[0]
    top = cava + np.array([35.0, -20.0, 60.0])
    low = 0.5 * (inside + apex) - 12 * heart.frame[1]
    path = spline(np.stack([top, cava, inside, low, apex]))
    out = [Wire(path, 0.55, 0.2)]
    if rng.random() < 0.5:  # the shock coil of a defibrillator
        out.append(Wire(path[-int(len(path) * 0.3) : -12], 1.2, 0.13))
    return out


def _surface_leads(rng: np.random.Generator) -> list[Wire]:
    out = []
    for _ in range(rng.integers(1, 3)):
        y = rng.choice([-95.0, 95.0])
        x = np.linspace(-130, 130, 6)
        z = rng.uniform(-60, 60) + rng.uniform(-0.4, 0.4) * x + np.cumsum(rng.normal(0, 7, 6))
        out.append(Wire(spline(np.stack([x, np.full(6, y), z], axis=1)), 0.55, 0.12))
    return out


def device_depth(devices: Devices, carm: CArm, lumen_per_mm: float) -> tuple[Image, Image]:
    """Optical depth [size, size] of the catheter and of all other devices.

    Args:
        devices: of the patient.
        carm: the projection.
        lumen_per_mm: attenuation of what fills the catheter (contrast, or 0 for saline).
    """
    size, path = carm.size, devices.catheter
    outer = np.full(len(path), devices.catheter_radius)
    shell = path_length(tube(carm, path, outer), size)
    lumen = path_length(tube(carm, path, 0.72 * outer), size)
    catheter = devices.catheter_wall * (shell - lumen) + lumen_per_mm * lumen
    parts = [tube(carm, w.path, np.full(len(w.path), w.radius), w.per_mm) for w in devices.wires]
    return catheter.astype(np.float32), path_length(join(parts), size)


@dataclass(frozen=True)
class Shutter:
    """The collimated field.

    Attributes:
        kind: ``none``, ``blades`` or ``round``.
        margins: [4] fractions of the side hidden at left, top, right and bottom.
        corner: radius of rounded corners, fraction of the side.
        softness: width of the edge, fraction of the side.
        leak: transmission behind the blades.
        bars: [4] fractions of plain black added by the export (letter box).
    """

    kind: str
    margins: tuple[float, ...]
    corner: float
    softness: float
    leak: float
    bars: tuple[float, ...]


def make_shutter(rng: np.random.Generator, kinds: dict[str, float]) -> Shutter:
    """A shutter of one of the `kinds` (name to probability)."""
    kind = str(rng.choice(list(kinds), p=list(kinds.values())))
    wide = rng.random(4) < 0.12
    margins = np.where(wide, rng.uniform(0.02, 0.10, 4), rng.exponential(0.008, 4))
    margins[rng.random(4) < 0.25] = -0.05  # a blade that stays out of the field
    bars = np.zeros(4)
    if rng.random() < 0.12:
        bars[[1, 3]] = rng.uniform(0.01, 0.06, 2)
    return Shutter(
        kind,
        tuple(float(m) for m in margins),
        float(rng.choice([0.01, 0.03, 0.06])),
        float(rng.uniform(0.004, 0.016)),
        float(rng.uniform(0.0, 0.03)),
        tuple(float(b) for b in bars),
    )


def field(shutter: Shutter, size: int) -> Image:
    """Transmission [size, size] in 0..1 of the collimator."""
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(at, at)
    if shutter.kind == "none":
        return np.ones((size, size), np.float32)
    if shutter.kind == "round":
        radius = 0.5 + 0.5 * min(max(shutter.margins[0], 0.0), 0.03)
        inside = radius - np.hypot(x - 0.5, y - 0.5)
    else:
        left, top, right, bottom = shutter.margins
        middle = np.array([(left + 1 - right) / 2, (top + 1 - bottom) / 2])
        half = np.array([(1 - right - left) / 2, (1 - bottom - top) / 2]) - shutter.corner
        dx, dy = np.abs(x - middle[0]) - half[0], np.abs(y - middle[1]) - half[1]
        outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
        inside = shutter.corner - outside - np.minimum(np.maximum(dx, dy), 0)
    open_share = 0.5 + 0.5 * np.clip(inside / shutter.softness, -1.0, 1.0)
    smooth = open_share * open_share * (3 - 2 * open_share)
    return (shutter.leak + (1 - shutter.leak) * smooth).astype(np.float32)


def open_area(shutter: Shutter, size: int) -> NDArray[np.uint8]:
    """1 where the picture shows the patient, [size, size]."""
    return (field(shutter, size) > 0.5).astype(np.uint8) * bars(shutter, size)


def bars(shutter: Shutter, size: int) -> NDArray[np.uint8]:
    """0 in the plain black bars of the export, 1 elsewhere, [size, size]."""
    keep = np.ones((size, size), np.uint8)
    left, top, right, bottom = (int(round(b * size)) for b in shutter.bars)
    keep[:top], keep[:, :left] = 0, 0
    keep[size - bottom :], keep[:, size - right :] = 0, 0
    return keep
