"""The atlas: the course of the named coronary arteries in heart coordinates.

A control point is (theta, phi, lift): theta in degrees around the long axis of the heart (0 lateral
wall, 90 anterior groove, 180 right margin, 270 inferior groove), phi in degrees from the apex
(about 100 in the atrioventricular groove), lift 1 on the surface. Names and branching follow the
SYNTAX segments (Sianos et al., EuroIntervention 2005).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Control = tuple[float, float, float]


@dataclass(frozen=True)
class Course:
    """One named artery of the atlas.

    Attributes:
        name: anatomical name.
        parent: name of the artery it leaves, empty for the trunk.
        control: control points (theta, phi, lift); the first is moved onto the parent.
        end_radius: relative radius at its end; the tree is scaled to the root afterwards.
        at_end: it continues the end of its parent (the bifurcation of the left main).
        trunk: whether it is one of the great branches.
        tortuosity: how much of the patient's tortuosity it takes.
    """

    name: str
    parent: str
    control: tuple[Control, ...]
    end_radius: float
    at_end: bool = False
    trunk: bool = False
    tortuosity: float = 1.0


def root_radius(rng: np.random.Generator, side: str) -> float:
    """Radius in mm at the ostium: left main about 4.5 mm wide, right artery 3.9 mm."""
    mean, spread = (2.1, 0.22) if side == "left" else (1.95, 0.25)
    return float(np.clip(rng.normal(mean, spread), 1.5, 2.8))


def courses(rng: np.random.Generator, side: str, left_dominant: bool) -> list[Course]:
    """Courses of one patient, parents first; which side branches exist is drawn."""
    return _left(rng, left_dominant) if side == "left" else _right(rng, left_dominant)


def _path(*control: tuple[float, ...]) -> tuple[Control, ...]:
    return tuple((c[0], c[1], c[2] if len(c) > 2 else 1.0) for c in control)


def _left(rng: np.random.Generator, left_dominant: bool) -> list[Course]:
    wrap = rng.uniform(-5.0, 22.0)  # how far the LAD goes round the apex
    end = rng.uniform(-65.0, -10.0) if not left_dominant else -82.0
    fork = (rng.uniform(86, 95), rng.uniform(101, 106), 0.98)
    ostium = (rng.uniform(104, 112), rng.uniform(108, 116), rng.uniform(0.70, 0.80))
    out = [Course("LM", "", _path(ostium, (99, 108, 0.88), fork), 0.5, trunk=True, tortuosity=0.2)]
    lad: list[tuple[float, ...]] = [fork, (95, 88), (97, 70), (97, 52), (96, 36), (95, 20)]
    lad += [(95, 8)] if wrap < 0 else [(95, 7), (275, max(wrap, 3.0))]
    out.append(Course("LAD", "LM", _path(*lad), 0.42, at_end=True, trunk=True))
    steps = np.linspace(fork[0], end, 7)[1:]
    lcx = [fork, *((float(t), 103.0 - 4.0 * i / 6, 1.0) for i, t in enumerate(steps))]
    lcx_radius = 0.75 if left_dominant else rng.uniform(0.34, 0.5)
    out.append(Course("LCx", "LM", _path(*lcx), lcx_radius, at_end=True, trunk=True))
    if rng.random() < 0.25:
        ramus = _path(fork, (76, 90), (63, 72), (54, 54), (48, rng.uniform(28, 42)))
        out.append(Course("RI", "LM", ramus, 0.42, at_end=True))
    out += _diagonals(rng)
    out += _marginals(rng, end)
    out += _septals(rng)
    if left_dominant:
        out.append(Course("L-PDA", "LCx", _inferior(rng, -84), 0.4, at_end=True))
    return out


def _diagonals(rng: np.random.Generator) -> list[Course]:
    out = []
    for i, phi in enumerate(np.sort(rng.uniform(48, 92, rng.integers(1, 4)))[::-1]):
        reach = rng.uniform(0.55, 1.0)
        control = _path(
            (96, phi),
            (96 - 16 * reach, phi - 8),
            (96 - 34 * reach, phi - 22),
            (96 - 48 * reach, max(phi - 22 - 22 * reach, 12)),
            (96 - 56 * reach, max(phi - 24 - 40 * reach, 8)),
        )
        out.append(Course(f"D{i + 1}", "LAD", control, rng.uniform(0.28, 0.42)))
    return out


def _marginals(rng: np.random.Generator, end: float) -> list[Course]:
    out = []
    for i, theta in enumerate(
        np.sort(rng.uniform(max(end + 8, -50), 62, rng.integers(1, 4)))[::-1]
    ):
        lean, stop = rng.uniform(6, 22), rng.uniform(22, 48)
        control = _path(
            (theta, 102),
            (theta - 0.3 * lean, 88),
            (theta - 0.7 * lean, 70),
            (theta - lean, (stop + 70) / 2),
            (theta - lean, stop),
        )
        out.append(Course(f"OM{i + 1}", "LCx", control, rng.uniform(0.3, 0.48)))
    return out


def _septals(rng: np.random.Generator) -> list[Course]:
    out = []
    for i, phi in enumerate(np.arange(90.0, 35.0, -rng.uniform(8, 13))):
        phi, deep = phi + rng.normal(0, 2), rng.uniform(0.25, 0.6)
        control = _path(
            (97, phi),
            (100, phi - 6, 0.97 - 0.2 * deep),
            (103, phi - 11, 0.95 - 0.6 * deep),
            (106, phi - 14, 0.93 - deep),
        )
        course = Course(f"S{i + 1}", "LAD", control, rng.uniform(0.10, 0.19), tortuosity=0.4)
        out.append(course)
    return out


def _inferior(rng: np.random.Generator, theta: float) -> tuple[Control, ...]:
    return _path(
        (theta, 98),
        (theta + 2, 84),
        (theta, 66),
        (theta - 2, 48),
        (theta - 2, rng.uniform(22, 38)),
    )


def _right(rng: np.random.Generator, left_dominant: bool) -> list[Course]:
    ostium = (rng.uniform(132, 142), rng.uniform(106, 114), rng.uniform(0.55, 0.68))
    rca: list[tuple[float, ...]] = [
        ostium,
        (142, 106, 0.82),
        (150, 103, 0.99),
        (165, 101),
        (184, 100),
        (206, 99),
    ]
    rca += [(226, 98)] if left_dominant else [(230, 98.5), (250, 98), (264, 98)]
    radius = 0.35 if left_dominant else 0.45
    out = [Course("RCA", "", _path(*rca), radius, trunk=True, tortuosity=0.8)]
    if not left_dominant:
        out.append(Course("PDA", "RCA", _inferior(rng, 266), rng.uniform(0.42, 0.52), at_end=True))
        far = rng.uniform(292, 318)
        plv = [(264, 98.0), (274, 101.0), (287, 97), (0.5 * (290 + far), 88), (far, 74)]
        plv += [(far + 4, rng.uniform(42, 60))]
        out.append(Course("PLV", "RCA", _path(*plv), rng.uniform(0.4, 0.5), at_end=True))
        for i, theta in enumerate(np.sort(rng.uniform(276, 296, rng.integers(0, 3)))):
            side = _path((theta, 98), (theta + 2, 84), (theta + 5, 66), (theta + 5, 50))
            out.append(Course(f"PL{i + 1}", "PLV", side, rng.uniform(0.28, 0.4)))
    for i, theta in enumerate(np.sort(rng.uniform(160, 222, rng.integers(1, 4)))):
        lean, stop = rng.uniform(5, 25), rng.uniform(32, 60)
        control = _path(
            (theta, 100),
            (theta - 0.2 * lean, 88),
            (theta - 0.6 * lean, 74),
            (theta - lean, stop),
        )
        out.append(Course(f"AM{i + 1}", "RCA", control, rng.uniform(0.26, 0.38)))
    if rng.random() < 0.8:
        conus = _path((145, 104), (134, 99), (122, 91), (112, rng.uniform(76, 86)))
        out.append(Course("CB", "RCA", conus, rng.uniform(0.2, 0.28)))
    if rng.random() < 0.6:
        node = _path((150, 103), (160, 116, 1.02), (175, 130, 1.05), (195, 138, 1.1))
        out.append(Course("SN", "RCA", node, rng.uniform(0.2, 0.28)))
    return out
