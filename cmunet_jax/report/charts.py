"""The drawings of a study: a method keeps its colour, marker and dash through all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from cmunet_jax.report import svg
from cmunet_jax.report.figures import Drawing
from cmunet_jax.report.findings import plain
from cmunet_jax.report.study import (
    CALIBRES,
    REFERENCE,
    Calibration,
    Cell,
    Drop,
    Number,
    Search,
    method_name,
)

# As in figures.py: narrow enough that the type stays legible where the panel fills a phone.
_CURVES, _PANEL, _SMALL = (4.6, 3.9), (4.4, 3.1), (3.7, 2.8)  # inches
_LINE = 12.5  # points between the lines of text
_NEAR = 1.5  # label counts whose ratio is smaller have no room for their words side by side
# Methods known today keep their colour whichever of them a study holds.
_COLOURS = {"cmunet": 0, "spark": 1, "mae": 2, "moco": 3, "genesis": 4, REFERENCE: 5}


@dataclass(frozen=True)
class Look:
    """How a method is drawn: `index` is that of its colour, its marker and its swatch."""

    name: str
    index: int

    @property
    def colour(self) -> str:
        """Place-holder of the page's colour."""
        return svg.SERIES[self.index]

    @property
    def line(self) -> dict[str, Any]:
        """What `Axes.plot` is told; the reference is dashed, so that it stands apart in print."""
        return {
            "color": self.colour,
            "marker": svg.MARKERS[self.index],
            "linestyle": (0, (4, 2)) if self.name == method_name(REFERENCE) else "-",
            "markeredgewidth": 0,
            "markersize": 6,
        }


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """A look for each method; one that is not known yet takes the next that is free."""
    free = [i for i in range(len(svg.SERIES)) if i not in _COLOURS.values()]
    others = [m for m in methods if m not in _COLOURS]
    index = {m: free[at % len(free)] for at, m in enumerate(others)} | _COLOURS
    return {method: Look(method_name(method), index[method]) for method in methods}


@dataclass(frozen=True)
class Line:
    """One method over label counts: ascending (labels, number); 0 labels stand for all."""

    look: Look
    points: Sequence[tuple[int, Number]]


def efficiency(
    lines: Sequence[Line],
    *,
    key: str,
    title: str,
    ylabel: str,
    small: bool = False,
    limits: tuple[float, float] | None = None,
    everything: int = 0,
) -> Drawing:
    """Draws a metric over the number of labelled images (log axis) with 95 % bands.

    Args:
      lines: one a method; numbers that do not exist are left out.
      key: unique name within the page.
      title: of the panel.
      ylabel: of the vertical axis.
      small: whether three share a line of the page; such a panel has no names in it.
      limits: of the vertical axis, where several panels are to be compared.
      everything: labelled images that 0 stands for; 0 where unknown.
    """
    opacity = 0.18 if len(lines) < 3 else 0.07
    with svg.style():
        figure = Figure(figsize=_SMALL if small else _CURVES, layout="constrained")
        axes = figure.subplots()
        counts = [labels for line in lines for labels, _ in line.points]
        place = _label_axis(axes, counts, everything)
        ends: list[tuple[float, float, Look]] = []
        # The reference last: its line lies on top of the others.
        for line in sorted(lines, key=lambda line: line.look.name == method_name(REFERENCE)):
            points = [(place[n], p) for n, p in line.points if math.isfinite(p.value)]
            if not points:
                continue
            x = [at for at, _ in points]
            values = [p.value for _, p in points]
            axes.fill_between(
                x,
                *_ends([p for _, p in points]),
                color=line.look.colour,
                alpha=opacity,
                linewidth=0,
            )
            axes.plot(x, values, **line.look.line)
            if len(points) == 1:
                axes.vlines(x, *_ends([points[0][1]]), color=line.look.colour, linewidth=1.2)
            ends.append((x[-1], values[-1], line.look))
        axes.set(xlabel="labelled images (log scale)", ylabel=ylabel, ylim=limits)
        if not small:
            _name_ends(axes, ends, height=0.8 * 72 * _CURVES[1])
        description = f"{title}, against the number of labelled images. " + " ".join(
            f"{line.look.name}: {_in_words(line.points)}." for line in lines
        )
        return Drawing(svg.inline(figure, key=key, description=description), title)


def limits(numbers: Iterable[Number]) -> tuple[float, float]:
    """An axis that holds all numbers with their intervals and a little room."""
    ends = [end for p in numbers for end in (p.low, p.value, p.high) if math.isfinite(end)]
    room = 0.06 * max(max(ends, default=1.0) - min(ends, default=0.0), 1e-3)
    return min(ends, default=0.0) - room, max(ends, default=1.0) + room


def _label_axis(axes: Axes, counts: Sequence[int], everything: int) -> dict[int, float]:
    """A log axis with ticks at the counts and nowhere else; returns where each count is.

    All (0) stands at its true number, or to the right of the others where that is unknown.
    """
    known = sorted({n for n in counts if n > 0})
    place = {n: float(n) for n in known}
    text = {n: str(n) for n in known}
    if 0 in counts:
        place[0] = float(everything) or (2.5 * known[-1] if known else 1.0)
        text[0] = f"all ({everything})" if everything else "all"
        # Two words that would touch stand one below the other.
        near = [n for n in known if 1 / _NEAR < place[0] / n < _NEAR]
        text[0] = "\n" + text[0] if near else text[0]
    axes.set_xscale("log")
    where = sorted(place.items(), key=lambda item: item[1])
    axes.xaxis.set_major_locator(FixedLocator([at for _, at in where]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([at for _, at in where], [text[n] for n, _ in where])
    if where:
        axes.set_xlim(where[0][1] / 1.25, where[-1][1] * 1.25)
    return place


def _ends(numbers: Sequence[Number]) -> tuple[list[float], list[float]]:
    """Lower and upper ends; the value itself where there is no interval."""
    low = [p.low if p.has_interval else p.value for p in numbers]
    high = [p.high if p.has_interval else p.value for p in numbers]
    return low, high


def _in_words(points: Sequence[tuple[int, Number]]) -> str:
    said = []
    for labels, p in points:
        ends = f" ({plain(p.low)} to {plain(p.high)})" if p.has_interval else ""
        said.append(f"{plain(p.value)}{ends} with {labels or 'all'}")
    return ", ".join(said) or "not measured"


def _name_ends(axes: Axes, ends: Sequence[tuple[float, float, Look]], *, height: float) -> None:
    """Writes each name beside the end of its line, moved apart where they would touch.

    Args:
      axes: with the lines drawn.
      ends: (x, y, look) of the last points.
      height: of the axes in points.
    """
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)  # the names must not move the axis
    ordered = sorted(ends, key=lambda end: end[1])
    wanted = [(y - low) / (high - low) for _, y, _ in ordered]
    for (x, y, look), at in zip(ordered, spread(wanted, _LINE / height)):
        axes.annotate(
            look.name,
            xy=(x, y),
            xytext=(1.04, at),
            textcoords="axes fraction",
            color=look.colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": look.colour,
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 1,
            },
        )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Moves ascending positions apart to at least `gap`, as little as that takes.

    Args:
      wanted: ascending.
      gap: least distance of neighbours.

    Returns:
      The positions with the least sum of squared moves (pooled neighbours share the shift).
    """
    groups: list[tuple[float, int]] = []  # (mean of wanted − offset, members)
    for index, value in enumerate(wanted):
        groups.append((value - index * gap, 1))
        while len(groups) > 1 and groups[-2][0] > groups[-1][0]:
            (mean, size), (other, count) = groups.pop(), groups.pop()
            groups.append(((mean * size + other * count) / (size + count), size + count))
    shifts = [mean for mean, size in groups for _ in range(size)]
    return [shift + index * gap for index, shift in enumerate(shifts)]


def drops(found: Sequence[tuple[Look, Drop]], *, key: str, title: str) -> Drawing:
    """Draws the relative drop of each method with its interval, in rows from the top."""
    with svg.style():
        figure = Figure(figsize=(4.6, 1.0 + 0.42 * len(found)), layout="constrained")
        axes = figure.subplots()
        for row, (look, drop) in enumerate(found):
            number, options = drop.drop, dict[str, Any](color=look.colour)
            (low,), (high,) = _ends([number])
            axes.plot([100 * low, 100 * high], [row, row], linewidth=2.4, **options)
            style = options | {"marker": svg.MARKERS[look.index], "markeredgecolor": svg.PAPER}
            axes.plot([100 * number.value], [row], markersize=8, markeredgewidth=1, **style)
            text = f"{plain(100 * number.value, 1)} %"
            where = axes.get_yaxis_transform()
            axes.text(1.02, row, text, transform=where, va="center", color=svg.INK)
        names = [look.name for look, _ in found]
        axes.set_yticks(range(len(found)), names)
        axes.tick_params(axis="y", length=0, labelcolor=svg.INK)
        axes.yaxis.grid(False)
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color=svg.MUTED, linewidth=0.9)
        axes.set(ylim=(len(found) - 0.5, -0.5), xlabel="relative drop of Dice, %")
        description = f"{title}. " + " ".join(
            f"{look.name}: {_percent(drop.drop)}." for look, drop in found
        )
        return Drawing(svg.inline(figure, key=key, description=description), title)


def _percent(p: Number) -> str:
    ends = (
        f", interval {plain(100 * p.low, 1)} to {plain(100 * p.high, 1)}" if p.has_interval else ""
    )
    return f"{plain(100 * p.value, 1)} %{ends}"


def calibre(
    cells: Sequence[tuple[Look, Cell]], *, key: str, title: str, limits: tuple[float, float]
) -> Drawing:
    """Draws the sensitivity of each method for thin, mid and thick arteries, side by side.

    Args:
      cells: one a method; those without it are left out.
      key: unique name within the page.
      title: of the panel.
      limits: of the vertical axis, the same in all panels that are to be compared.
    """
    with svg.style():
        figure = Figure(figsize=_PANEL, layout="constrained")
        axes = figure.subplots()
        shown = [(look, cell) for look, cell in cells if cell.calibre]
        for at, (look, cell) in enumerate(shown):
            shift = (at - (len(shown) - 1) / 2) * 0.11
            for place, name in enumerate(CALIBRES):
                if name not in cell.calibre:
                    continue
                number = cell.calibre[name]
                axes.vlines([place + shift], *_ends([number]), color=look.colour, linewidth=1.6)
                mark = svg.MARKERS[look.index]
                axes.plot([place + shift], [number.value], mark, color=look.colour, markersize=5.5)
        axes.set_xticks(range(len(CALIBRES)), [f"{name}" for name in CALIBRES])
        axes.tick_params(axis="x", length=0, labelcolor=svg.INK)
        axes.xaxis.grid(False)
        axes.set(xlim=(-0.5, len(CALIBRES) - 0.5), ylim=limits)
        axes.set_ylabel("share of artery pixels found")
        description = f"Sensitivity by vessel calibre, {title}. " + " ".join(
            f"{look.name}: "
            + ", ".join(f"{name} {plain(p.value)}" for name, p in cell.calibre.items())
            + "."
            for look, cell in shown
        )
        return Drawing(svg.inline(figure, key=key, description=description), title)


def reliability(found: Sequence[tuple[Look, Calibration]], *, key: str, title: str) -> Drawing:
    """Draws how often pixels of a predicted probability are artery; the diagonal is perfect."""
    with svg.style():
        figure = Figure(figsize=(3.7, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=svg.MUTED, linewidth=1, dashes=(2, 3))
        for look, calibration in found:
            bins = [b for b in calibration.bins if math.isfinite(b.fraction_positive)]
            style = look.line | {"markersize": 4, "linewidth": 1.3}
            axes.plot(
                [b.mean_probability for b in bins],
                [b.fraction_positive for b in bins],
                **style,
            )
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set(xlabel="predicted probability of artery", ylabel="share that is artery")
        description = f"Reliability diagram, {title}. " + " ".join(
            f"{look.name}: expected calibration error {plain(c.ece.value)}." for look, c in found
        )
        return Drawing(svg.inline(figure, key=key, description=description), title)


def search(found: Mapping[str, Sequence[Search]], *, key: str, title: str) -> Drawing:
    """Draws what was selected by over the learning rates tried; rings mark what was chosen.

    Args:
      found: method -> its learning rates, in any order.
      key: unique name within the page.
      title: of the panel.
    """
    with svg.style():
        figure = Figure(figsize=_PANEL, layout="constrained")
        axes = figure.subplots()
        appearance = looks(list(found))
        for method, tried in found.items():
            look, ordered = appearance[method], sorted(tried, key=lambda s: s.learning_rate)
            rates = [s.learning_rate for s in ordered]
            axes.plot(rates, [s.value.value for s in ordered], **look.line)
            chosen = [s for s in ordered if s.chosen]
            axes.plot(
                [s.learning_rate for s in chosen],
                [s.value.value for s in chosen],
                linestyle="none",
                marker="o",
                markersize=11,
                markerfacecolor="none",
                markeredgecolor=look.colour,
            )
        rates = sorted({s.learning_rate for tried in found.values() for s in tried})
        axes.set_xscale("log")
        axes.set_xticks(rates, [f"{rate:.0e}".replace("e-0", "e-") for rate in rates])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="learning rate", ylabel=next(iter(found.values()))[0].metric)
        description = f"Learning rates tried, {title}. " + " ".join(
            f"{method_name(method)} chose "
            + (", ".join(f"{s.learning_rate:g}" for s in tried if s.chosen) or "none")
            + "."
            for method, tried in found.items()
        )
        return Drawing(svg.inline(figure, key=key, description=description), title)
