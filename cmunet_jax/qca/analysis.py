"""Quantitative coronary analysis of a mask: segments, diameters along them, stenoses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.qca import centreline, contour
from cmunet_jax.qca.centreline import Curve, Field
from cmunet_jax.qca.graph import (
    Branch,
    Graph,
    centreline_graph,
    fill_faults,
    inscribed_radius,
    radius_at,
    without_blobs,
)
from cmunet_jax.qca.result import Analysis, Contour, Floats, Options, Segment
from cmunet_jax.qca.stenosis import Stenosis, none, stenosis
from tfds_angio.errors import UserError

# Chord and inscribed disc must agree to this share, and this many pixels more: elsewhere the
# normal runs into another vessel.
_AGREE, _SLACK = 1.25, 1.0
# Kept away from a bifurcation: radii of the disc that fits there, and px, since its place is known
# to about one. From an end: local radii.
_FORK, _FORK_PX, _END = 1.5, 1.0, 2.0
# Less cannot be known (px): a blur as wide as a pixel alone takes a vessel of 1.35 px away.
_LEAST = 1.3
# No artery: wider than this share of the shorter side of the frame, of 64 to 256 px (docs/qca.md).
_WIDE, _WIDE_PX = 0.25, (64, 256)
_DEFAULT = Options()


def analyse(
    mask: NDArray[np.bool_],
    *,
    spacing: tuple[float, float] | None,
    probability: NDArray[np.floating] | None = None,
    threshold: float = 0.5,
    options: Options = _DEFAULT,
) -> Analysis:
    """Measures every vessel of a mask; docs/qca.md has the definitions and how right they are.

    Args:
        mask: bool [H, W], or numbers of which none is neither 0 nor 1; not changed.
        spacing: mm between rows and between columns, or None.
        probability: of artery, floats [H, W] in 0..1, from which the mask was made: it says where
            within its pixels the mask's contour runs, and nothing else. None: the contour is that
            of the mask. Where `probability > threshold` is not what the mask says (components taken
            away, holes filled, corrections by hand) the mask counts.
        threshold: of the probability, above 0 and below 1.
        options: see there.

    Returns:
        The analysis; without segments for an empty mask.

    Raises:
        TooManySegments: the mask is too speckled to be measured in a bounded time.
        UserError: the mask is no mask, the spacing no spacing, or the probability none of the mask.
    """
    whole = _checked(mask)
    size = _checked_spacing(spacing)
    level = None if probability is None else _checked_probability(probability, threshold, whole)
    measured: Contour = "mask" if level is None else "probability"
    rows, columns = (np.flatnonzero(whole.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return Analysis(_shape(whole), spacing, np.zeros((0, 2)), (), 0, measured)
    # Only the box around the mask is looked at; background all around closes what the image cuts.
    box = whole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    blur, mean = options.smoothing(measured)
    margin = int(4 * blur) + 2
    filled = fill_faults(np.pad(box, margin))
    radius = inscribed_radius(filled)
    widest = float(np.clip(_WIDE * min(whole.shape), *_WIDE_PX))
    crop, blobs = without_blobs(filled, radius, widest=widest)
    origin = np.array([rows[0], columns[0]], float) - margin
    inside: NDArray = crop
    if level is not None:
        part = tuple(slice(k[0], k[-1] + 1 + 2 * margin) for k in (rows, columns))
        inside = contour.covered(crop, np.pad(level, margin)[part], threshold)
    field = centreline.soften(inside, blur)
    picture = _Picture(field, radius * crop, origin, _shape(whole), mean)
    graph = centreline_graph(crop, picture.radius, spur=options.spur)
    degrees = graph.degrees()
    longest = sorted(graph.branches, key=lambda b: -b.length)
    segments = [_segment(i, b, graph, picture, size, options) for i, b in enumerate(longest, 1)]
    forks = [graph.nodes[n] + origin for n in sorted(degrees) if degrees[n] >= 3]
    return Analysis(
        _shape(whole),
        spacing,
        np.array(forks, float).reshape(-1, 2),
        tuple(segments),
        graph.ignored + blobs,
        measured,
        _narrowest(segments, options),
    )


def _narrowest(segments: list[Segment], options: Options) -> int | None:
    """The id of the segment with the least diameter of the mask: a speck is not looked at."""
    least: dict[int, float] = {}
    for s in segments:
        position = s.position_px if s.position_mm is None else s.position_mm
        diameter = s.diameter_px if s.diameter_mm is None else s.diameter_mm
        if s.minimal_at is not None and _is_long(position, diameter, options):
            least[s.id] = float(diameter[s.minimal_at])
    return min(least, key=lambda number: least[number], default=None)


def _is_long(position: Floats, diameter: Floats, options: Options) -> bool:
    """Whether the measured part of a segment, of which there is some, is a vessel's."""
    span = np.ptp(position[np.isfinite(diameter)])
    return bool(span >= options.least_length * np.nanmedian(diameter))


@dataclass(frozen=True)
class _Picture:
    """The cropped mask in the forms that measuring needs; `shape` is that of the whole.

    `mean` is over what the diameter is averaged along the centreline (px).
    """

    field: Field
    radius: NDArray[np.float32]
    origin: Floats
    shape: tuple[int, int]
    mean: float


def _segment(
    number: int,
    branch: Branch,
    graph: Graph,
    picture: _Picture,
    size: Floats | None,
    options: Options,
) -> Segment:
    curve = _centred(branch, graph, picture, options)
    halves = _halves(curve, picture, None)
    seen = _clear_of_ends(curve, branch, graph, picture) & _agree(halves, curve, picture)
    every = _diameters(halves, curve, picture, seen, None)
    pixel = np.where(every >= _LEAST, every, np.nan)
    uneven = size is not None and not np.isclose(size[0], size[1], rtol=1e-6)
    real = pixel if size is None else pixel * size[0]
    if uneven:  # the normal in mm is another than that in px
        real = _diameters(_halves(curve, picture, size), curve, picture, seen, size)
        known = np.isfinite(pixel) & np.isfinite(real)
        pixel, real = np.where(known, pixel, np.nan), np.where(known, real, np.nan)
    known = np.isfinite(real)
    position = curve.position if size is None else centreline.run(curve.points * size)
    if known.any() or not np.isfinite(every).any():
        found = _stenosis(position, real, pixel, branch.start == branch.end, options)
    else:
        found = none(len(every), f"under {_LEAST:g} px wide: too thin to be measured in a mask")
    reference_px = found.reference
    if size is not None and known.any():
        at = np.flatnonzero(known)
        ratio = np.interp(np.arange(len(pixel)), at, pixel[at] / real[at])
        reference_px = found.reference * ratio
    mm = (None, None, None) if size is None else (position, real, found.reference)
    return Segment(
        id=number,
        points=curve.points + picture.origin,
        position_px=curve.position,
        diameter_px=pixel,
        reference_px=reference_px,
        position_mm=mm[0],
        diameter_mm=mm[1],
        reference_mm=mm[2],
        minimal_at=int(np.nanargmin(real)) if known.any() else None,
        stenosis_at=found.at,
        percent_diameter_stenosis=found.percent,
        why_no_stenosis=found.why_not,
    )


def _centred(branch: Branch, graph: Graph, picture: _Picture, options: Options) -> Curve:
    """The smooth centreline of a branch, midway between the contours, up to the mask's end."""
    closed = branch.start == branch.end
    curve = centreline.smooth(branch.points, bandwidth=options.bandwidth, closed=closed)
    halves = _halves(curve, picture, None)
    # The skeleton lies up to a pixel beside the middle.
    shift = np.nan_to_num((halves[:, 1] - halves[:, 0]) / 2 * _agree(halves, curve, picture))
    line = curve.points + shift[:, None] * curve.normals
    if closed:
        line[-1] = line[0]
    line = centreline.smooth(line, bandwidth=options.bandwidth, closed=closed).points
    degrees = graph.degrees()
    if degrees[branch.end] == 1:
        line = _extended(line, picture)
    if degrees[branch.start] == 1:
        line = _extended(line[::-1], picture)[::-1]
    return centreline.resample(line)


def _extended(line: Floats, picture: _Picture) -> Floats:
    """The line carried on from its last point to the contour: a skeleton stops a radius before."""
    radius = max(float(centreline.sample(picture.radius, line[-1:])[0]), 1.0)
    ahead = line[-1] - line[max(-int(radius) - 2, -len(line))]
    ahead = ahead / max(float(np.linalg.norm(ahead)), 1e-9)
    far = centreline.half_widths(picture.field, line[-1:], ahead[None], reach=2 * radius + 3)[0, 1]
    if not far > 0.25:  # at the contour already, or none is found
        return line
    way = np.linspace(0, far, int(np.ceil(far)) + 1)[1:, None]
    return np.concatenate([line, line[-1] + way * ahead])


def _halves(curve: Curve, picture: _Picture, size: Floats | None) -> Floats:
    """Distances [K, 2] to the contour on both sides, in px or in the unit of `size`."""
    widest = float(centreline.sample(picture.radius, curve.points).max())
    unit = np.ones(2) if size is None else size
    normals = centreline.normals_of(curve.points * unit)
    reach = float(unit.max()) * (2 * _AGREE * widest + 2 * _SLACK)
    return centreline.half_widths(picture.field, curve.points, normals, reach=reach, size=size)


def _agree(halves: Floats, curve: Curve, picture: _Picture) -> NDArray[np.bool_]:
    """Where chord and inscribed disc say the same, [K]."""
    inscribed = 2 * centreline.sample(picture.radius, curve.points)
    return np.nan_to_num(halves.sum(axis=1), nan=np.inf) <= _AGREE * inscribed + _SLACK


def _diameters(
    halves: Floats,
    curve: Curve,
    picture: _Picture,
    seen: NDArray[np.bool_],
    size: Floats | None,
) -> Floats:
    """Diameters [K] where `seen`, in px or in the unit of `size`; NaN at the image's border.

    A vessel that the border cuts lengthwise is wider than what is seen of it.
    """
    unit = np.ones(2) if size is None else size
    normals = centreline.normals_of(curve.points * unit)
    last = np.array(picture.shape) - 1
    inside = seen.copy()
    for side, sign in ((0, -1), (1, 1)):
        foot = curve.points + picture.origin + sign * halves[:, side, None] * normals / unit
        inside &= np.nan_to_num((foot > 0) & (foot < last)).all(axis=1)
    return centreline.along_mean(np.where(inside, halves.sum(axis=1), np.nan), picture.mean)


def _clear_of_ends(
    curve: Curve, branch: Branch, graph: Graph, picture: _Picture
) -> NDArray[np.bool_]:
    """Points [K] that are neither near a free end nor near a bifurcation."""
    degrees = graph.degrees()
    local = centreline.sample(picture.radius, curve.points)
    clear = np.ones(len(local), bool)
    for node, distance in (
        (branch.start, curve.position),
        (branch.end, curve.position[-1] - curve.position),
    ):
        if degrees[node] == 1:
            clear &= distance >= _END * local
        elif degrees[node] >= 3:
            radius = radius_at(graph.nodes[node], picture.radius)
            clear &= distance >= _FORK * radius + _FORK_PX
    return clear


def _stenosis(
    position: Floats, diameter: Floats, pixel: Floats, closed: bool, options: Options
) -> Stenosis:
    """The stenosis of a segment whose diameters carry one; else the reason why not."""
    known = np.isfinite(diameter)
    count = len(diameter)
    if not known.any():
        return none(count, "no point lies clear of ends, bifurcations and other vessels")
    if closed:
        return none(count, "a closed loop has no proximal and no distal side")
    if not _is_long(position, diameter, options):
        why = f"the measured part is shorter than {options.least_length:g} diameters"
        return none(count, why)
    found = stenosis(position, diameter)
    if found.at is not None:
        ratio = pixel[found.at] / diameter[found.at]
        reference = found.reference[found.at] * ratio
        if reference < options.least_diameter:
            why = (
                f"the reference is {reference:.2f} px, less than {options.least_diameter:g}: "
                "the steps of the mask would count for too much"
            )
            return none(count, why)
    return found


def _shape(mask: NDArray[np.bool_]) -> tuple[int, int]:
    return int(mask.shape[0]), int(mask.shape[1])


def _checked(mask: NDArray) -> NDArray[np.bool_]:
    array = np.asarray(mask)
    if array.ndim != 2 or not array.size:
        raise UserError(f"a mask to analyse has shape {array.shape}: give one of [height, width]")
    if array.dtype == bool:
        return array
    if array.dtype.kind not in "uif" or not np.isin(array, (0, 1)).all():
        raise UserError("a mask to analyse holds other values than 0 and 1: threshold it first")
    return array.astype(bool)


def _checked_probability(
    probability: NDArray[np.floating], threshold: float, mask: NDArray[np.bool_]
) -> NDArray[np.floating]:
    array = np.asarray(probability)
    if array.shape != mask.shape:
        raise UserError(
            f"a probability of shape {array.shape} is not that of a mask of shape {mask.shape}"
        )
    if array.dtype.kind != "f" or not ((array >= 0) & (array <= 1)).all():  # NaN is neither
        raise UserError("a probability to analyse holds other values than floats from 0 to 1")
    try:
        between = bool(0 < threshold < 1)
    except (TypeError, ValueError):  # no number
        between = False
    if not between:
        raise UserError(
            f"the threshold of the probability is {threshold!r}: give one above 0 and below 1, or "
            "the mask alone"
        )
    return array


def _checked_spacing(spacing: tuple[float, float] | None) -> Floats | None:
    if spacing is None:
        return None
    size = np.asarray(spacing, float)
    if size.shape != (2,) or not (np.isfinite(size) & (size > 0)).all():
        raise UserError(f"spacing is {spacing}: give mm of rows and of columns, both above 0")
    return size
