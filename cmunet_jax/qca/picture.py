"""The annotated picture of an analysis: centrelines in the colour of their diameter, stenoses."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from cmunet_jax.qca.output import to_json
from cmunet_jax.qca.result import Analysis, Segment
from tfds_angio.errors import UserError

# Percent of the diameter from which a narrowing is named: well above what a healthy segment
# reaches by its own unevenness (docs/qca.md), below the 50 % that studies call significant.
LEAST_STENOSIS = 30.0
# Okabe & Ito's vermilion, as in the overlays of the evaluation; the colour map is one that people
# with any colour vision can read, and its dark end stays visible on a dark vessel.
_MARK, _MAP = (0.84, 0.37, 0.0), "plasma"
_DPI, _WIDTH = 100, 8.0
# Where a label may stand beside its point: steps of points (1/72 inch) to the side and up.
_STEP = (34, 26)
_STEPS = [(x, y) for far in (1, 2, 3, 4) for x in (1, 2, 3) for y in (far, -far)] + [(1, 0), (2, 0)]
_APART, _RING = 2.0, 10.0  # pixels of the picture between two labels, and around a point
_SCALES = (1, 2, 5, 10, 20, 50, 100)


def draw(frame: NDArray[np.uint8], analysis: Analysis, path: str | os.PathLike[str]) -> None:
    """Draws the analysis over its frame into a PNG. Nothing on it names a patient.

    Thick coloured lines are measured, thin white ones are not (near ends and bifurcations). A ring
    marks the least diameter of the mask, triangles point at stenoses of `LEAST_STENOSIS` % and
    more, dots are bifurcations; a bar shows 10 mm or so where the spacing is known.

    Args:
        frame: uint8 [H, W], of the size of the mask.
        analysis: what to draw.
        path: of the PNG; its folder exists.

    Raises:
        UserError: the frame is of another size than the mask.
    """
    if frame.shape != analysis.shape:
        raise UserError(f"the frame is {frame.shape} and the analysed mask {analysis.shape}")
    height, width = frame.shape
    mm = analysis.spacing_mm is not None
    # Pixels that are not square are drawn as they lie in the patient.
    stretch = analysis.spacing_mm[0] / analysis.spacing_mm[1] if analysis.spacing_mm else 1.0
    tall = _WIDTH * height * stretch / width
    figure = Figure(figsize=(_WIDTH + 1.3, tall + 0.75), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    total = np.array(figure.get_size_inches())
    box = np.array([0.1, 0.35, _WIDTH, tall]) / np.tile(total, 2)
    axes = figure.add_axes((float(box[0]), float(box[1]), float(box[2]), float(box[3])))
    axes.imshow(frame, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    unit = "mm" if mm else "px"
    lines = _lines(axes, analysis, mm)
    if lines is not None:
        bar = figure.add_axes(
            (float(box[0] + box[2] + 0.15 / total[0]), float(box[1]), 0.2 / total[0], float(box[3]))
        )
        figure.colorbar(lines, cax=bar, label=f"diameter ({unit})")
    if len(analysis.bifurcations):
        rows, columns = analysis.bifurcations.T
        axes.scatter(columns, rows, s=14, c="white", edgecolors="black", linewidths=0.6, zorder=3)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    renderer = canvas.get_renderer()
    bars = _scale_bar(axes, analysis)
    _marks(axes, analysis, mm, renderer, [bar.get_window_extent(renderer) for bar in bars])
    figure.text(0.01, 1 - 0.09 / total[1], _title(analysis), fontsize=11, va="top")
    figure.text(0.01, 0.1 / total[1], _legend(), fontsize=8.5, color="0.3")
    figure.savefig(path, format="png", metadata={"Software": None})


def _diameters(segment: Segment, mm: bool) -> NDArray[np.float64]:
    return segment.diameter_mm if mm and segment.diameter_mm is not None else segment.diameter_px


def _lines(axes: Axes, analysis: Analysis, mm: bool) -> LineCollection | None:
    """Draws all centrelines; returns the coloured ones, None where nothing was measured."""
    parts, values = [], []
    for segment in analysis.segments:
        axes.plot(*segment.points[:, ::-1].T, color="white", linewidth=0.7, zorder=1)
        pairs = np.stack([segment.points[:-1, ::-1], segment.points[1:, ::-1]], axis=1)
        diameter = _diameters(segment, mm)
        between = (diameter[:-1] + diameter[1:]) / 2
        parts.append(pairs[np.isfinite(between)])
        values.append(between[np.isfinite(between)])
    if not sum(len(v) for v in values):
        return None
    value = np.concatenate(values)
    lines = LineCollection(
        list(np.concatenate(parts)), cmap=_MAP, norm=Normalize(value.min(), value.max())
    )
    lines.set_array(value)
    lines.set(linewidth=2.2, capstyle="round", zorder=2.5)
    # A pale border, so that the dark end of the map is seen on a vessel full of contrast.
    border = LineCollection(lines.get_segments(), colors="white", linewidths=3.4, zorder=2)
    border.set_capstyle("round")
    axes.add_collection(border)
    axes.add_collection(lines)
    return lines


def _marks(
    axes: Axes, analysis: Analysis, mm: bool, renderer: RendererBase, taken: list[Bbox]
) -> None:
    """Marks the least diameter of the mask and every stenosis worth a name, none over another.

    Args:
        axes: whose limits are set.
        analysis: what to mark.
        mm: whether in mm.
        renderer: of its picture.
        taken: what no label may cover, in pixels of the picture.
    """
    unit = "mm" if mm else "px"
    narrowest = next((s for s in analysis.segments if s.id == analysis.minimal), None)
    labels = []
    for s in analysis.segments:
        percent = s.percent_diameter_stenosis
        if s.stenosis_at is not None and percent is not None and percent >= LEAST_STENOSIS:
            value = float(_diameters(s, mm)[s.stenosis_at])
            labels.append((s.points[s.stenosis_at], f"{percent:.0f} % ({value:.1f} {unit})"))
    if narrowest is not None and (at := narrowest.minimal_at) is not None:
        value, (row, column) = float(_diameters(narrowest, mm)[at]), narrowest.points[at]
        axes.scatter(
            column, row, s=150, facecolors="none", edgecolors=_MARK, linewidths=2, zorder=4
        )
        percent = narrowest.percent_diameter_stenosis or 0
        if at != narrowest.stenosis_at or percent < LEAST_STENOSIS:
            labels.append((narrowest.points[at], f"least {value:.1f} {unit}"))
    places = [axes.transData.transform(point[::-1]) for point, _ in labels]
    taken = taken + [Bbox.from_extents(*(at - _RING), *(at + _RING)) for at in places]
    for point, text in labels:
        taken.append(_label(axes, point, text, analysis.shape, renderer, taken))


def _label(
    axes: Axes,
    point: NDArray[np.float64],
    text: str,
    shape: tuple[int, int],
    renderer: RendererBase,
    taken: list[Bbox],
) -> Bbox:
    """A text with an arrow to `point`, where it is within the picture and covers nothing.

    The first such place, the side where there is room before the other; else that where it covers
    and sticks out least.

    Returns:
        The box of the text, in pixels of the picture.
    """
    row, column = point
    side = -1 if column > 0.7 * shape[1] else 1
    lift = -1 if row < 0.12 * shape[0] else 1
    note = axes.annotate(
        text,
        (column, row),
        (0, 0),
        textcoords="offset points",
        va="center",
        color="white",
        fontsize=10,
        weight="bold",
        path_effects=[withStroke(linewidth=2.5, foreground="black")],
        arrowprops={"arrowstyle": "-|>", "color": _MARK, "linewidth": 1.6, "shrinkB": 8},
        zorder=5,
    )
    room, covered = np.array([axes.bbox.extents]), np.array([other.extents for other in taken])
    tried: list[tuple[float, tuple[int, int]]] = []
    for step in [(a * x, lift * y) for a in (side, -side) for x, y in _STEPS]:
        box = _placed(note, step, renderer)
        wrong = box.width * box.height - _common(box, room) + _common(box, covered)
        tried.append((wrong, step))
        if wrong <= 0:
            return box
    return _placed(note, min(tried, key=lambda one: one[0])[1], renderer)


def _placed(note: Annotation, step: tuple[int, int], renderer: RendererBase) -> Bbox:
    """Moves a label by steps from its point; returns the box of its text and a margin."""
    note.xyann = (step[0] * _STEP[0], step[1] * _STEP[1])
    note.set_horizontalalignment("left" if step[0] > 0 else "right")
    note.update_positions(renderer)
    return Text.get_window_extent(note, renderer).padded(_APART)  # its own has the arrow in it


def _common(box: Bbox, others: NDArray[np.float64]) -> float:
    """The area that a box shares with others, [N, 4] as `Bbox.extents`, in all."""
    first = np.maximum(box.extents[:2], others[:, :2])
    last = np.minimum(box.extents[2:], others[:, 2:])
    return float(np.maximum(last - first, 0).prod(axis=1).sum())


def _scale_bar(axes: Axes, analysis: Analysis) -> list[Text]:
    """Draws the bar; returns its text, if there is one."""
    if analysis.spacing_mm is None:
        return []
    height, width = analysis.shape
    per_px = analysis.spacing_mm[1]
    fitting = [mm for mm in _SCALES if mm / per_px <= width / 4]
    if not fitting:
        return []
    length, row, column = fitting[-1] / per_px, 0.95 * height, 0.04 * width
    outline = [withStroke(linewidth=5, foreground="black")]
    axes.plot(
        [column, column + length],
        [row, row],
        color="white",
        linewidth=3,
        path_effects=outline,
        solid_capstyle="butt",
    )
    text: dict[str, Any] = {"ha": "center", "va": "bottom", "color": "white", "fontsize": 10}
    words = f"{fitting[-1]} mm"
    place = (column + length / 2, row - 0.012 * height)
    return [axes.text(*place, words, **text, path_effects=outline)]


def _title(analysis: Analysis) -> str:
    found = to_json(analysis)
    if not analysis.segments:
        return "no vessel"
    unit = "px" if analysis.spacing_mm is None else "mm"
    words = [f"{len(analysis.segments)} segments", f"length {found[f'length_{unit}']:.0f} {unit}"]
    least = found[f"minimal_diameter_{unit}"]
    words.append("no least diameter" if least is None else f"least diameter {least:.1f} {unit}")
    worst = max((s.percent_diameter_stenosis or 0.0 for s in analysis.segments), default=0.0)
    given = any(s.percent_diameter_stenosis is not None for s in analysis.segments)
    words.append(f"greatest narrowing {worst:.0f} %" if given else "no stenosis can be given")
    return "  ·  ".join(words)


def _legend() -> str:
    words = [
        "coloured: measured",
        "white: not measured",
        "dot: bifurcation",
        "ring: least diameter",
    ]
    return "   ".join([*words, f"arrow with %: narrowed by {LEAST_STENOSIS:.0f} % or more"])
