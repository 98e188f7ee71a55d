"""The drawings of a report: learning curves, paired images, intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmunet_jax.report import svg
from cmunet_jax.report.findings import signed
from cmunet_jax.report.results import Curve, Floats

# Narrow on purpose: at this width the type stays legible on a phone, and three fit on a screen.
_PANEL, _TALL, _SMALL, _STRIP = (4.4, 3.1), (4.4, 4.1), (3.7, 2.7), (4.4, 1.1)  # inches
_SQUARE = (3.7, 3.6)


@dataclass(frozen=True)
class Drawing:
    """An <svg> element and the words that go with it."""

    svg: str
    title: str
    caption: str = ""


def _panel(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def _thousands(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace(",", "\u202f"))


def _shortest(value: float) -> str:
    """Two decimals, three where the value needs them: '+0.05', '+0.025'."""
    return signed(value, 2 if math.isclose(round(value, 2), value, abs_tol=1e-9) else 3)


def curves(
    series: Mapping[int, Curve],
    *,
    key: str,
    title: str,
    ylabel: str,
    description: str,
    small: bool = False,
) -> Drawing:
    """Draws one scalar over optimiser steps.

    Args:
      series: number of the arm (its colour, marker and dash) -> Curve.
      key: unique name within the page.
      title: of the panel.
      ylabel: of the vertical axis.
      description: for those who cannot see it.
      small: whether three of them share a line of the page, not two.
    """
    with svg.style():
        figure, axes = _panel(_SMALL if small else _PANEL)
        for index, curve in series.items():
            look = index % len(svg.SERIES)
            few = len(curve.steps) <= 30
            axes.plot(
                curve.steps,
                curve.values,
                color=svg.SERIES[look],
                linestyle=svg.DASHES[look],
                marker=svg.MARKERS[look] if few else None,
                markeredgewidth=0,
            )
        axes.set(xlabel="optimiser steps", ylabel=ylabel)
        axes.set_xlim(left=0)
        _thousands(axes)
        return Drawing(svg.inline(figure, key=key, description=description), title)


def dice_limits(*values: Floats) -> tuple[float, float]:
    """Tenths of Dice between which all values lie."""
    low = min(float(v.min()) for v in values)
    high = max(float(v.max()) for v in values)
    return max(0.0, np.floor(10 * low - 0.3) / 10), min(1.0, np.ceil(10 * high + 0.3) / 10)


def paired_scatter(
    reference: Floats,
    arm: Floats,
    *,
    names: tuple[str, str],
    key: str,
    colour: int,
    title: str = "Each image under both arms",
    small: bool = False,
    limits: tuple[float, float] | None = None,
) -> Drawing:
    """Draws Dice of the arm against Dice of the reference, one point an image.

    Args:
      reference: [n] in [0, 1], horizontal.
      arm: [n] in [0, 1], vertical, the same images.
      names: of reference and arm.
      key: unique name within the page.
      colour: number of the arm.
      title: of the panel.
      small: whether three of them share a line of the page, not two.
      limits: of both axes, where several panels are to be compared.
    """
    with svg.style():
        figure, axes = _panel(_SQUARE if small else _TALL)
        low, high = limits or dice_limits(reference, arm)
        axes.plot([low, high], [low, high], color=svg.MUTED, linewidth=1, dashes=(4, 3))
        axes.plot(
            reference,
            arm,
            linestyle="none",
            marker="o",
            markersize=4 if small else 5.5,
            alpha=0.75,
            markerfacecolor=svg.SERIES[colour % len(svg.SERIES)],
            markeredgecolor=svg.PAPER,
            markeredgewidth=0.6,
        )
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set(xlabel=f"Dice, {names[0]}", ylabel=f"Dice, {names[1]}")
        wins, losses = int((arm > reference).sum()), int((arm < reference).sum())
        description = (
            f"Scatter of Dice per image, {title}: {names[1]} (vertical) against {names[0]} "
            "(horizontal). "
            f"{wins} of {len(arm)} images lie above the diagonal, {losses} below."
        )
        return Drawing(svg.inline(figure, key=key, description=description), title)


def sorted_differences(
    differences: Floats,
    *,
    mean: float,
    low: float,
    high: float,
    names: tuple[str, str],
    key: str,
    colour: int,
) -> Drawing:
    """Draws the per-image differences in rising order, with their mean and its interval.

    Args:
      differences: [n], arm − reference.
      mean: of them.
      low: lower end of the interval of the mean.
      high: upper end.
      names: of reference and arm.
      key: unique name within the page.
      colour: number of the arm.
    """
    with svg.style():
        figure, axes = _panel(_TALL)
        ordered = np.sort(differences)
        ranks = np.arange(1, len(ordered) + 1)
        colours = [svg.SERIES[colour % len(svg.SERIES)] if d >= 0 else svg.MUTED for d in ordered]
        axes.vlines(
            ranks, 0, ordered, colors=colours, linewidth=max(1.0, min(6.0, 150 / len(ranks)))
        )
        axes.axhspan(low, high, color=svg.INK, alpha=0.14, linewidth=0)
        axes.axhline(mean, color=svg.INK, linewidth=1.4)
        axes.axhline(0, color=svg.MUTED, linewidth=0.9)
        axes.set(xlabel="images, in order of the difference", ylabel="difference in Dice")
        axes.xaxis.grid(False)
        description = (
            f"Differences in Dice per image, {names[1]} minus {names[0]}, in rising order from "
            f"{ordered[0]:+.3f} to {ordered[-1]:+.3f}; mean {mean:+.3f}, 95 % interval "
            f"{low:+.3f} to {high:+.3f}."
        )
        return Drawing(
            svg.inline(figure, key=key, description=description), "What each image gains or loses"
        )


def interval(mean: float, low: float, high: float, *, key: str, labels: Sequence[str]) -> Drawing:
    """Draws one difference with its interval on a line through zero.

    Args:
      mean: the difference in mean Dice.
      low: lower end of its interval.
      high: upper end.
      key: unique name within the page.
      labels: what it means to be left and right of zero.
    """
    with svg.style():
        figure, axes = _panel(_STRIP)
        reach = 1.25 * max(abs(low), abs(high), 0.02)
        axes.axvline(0, color=svg.MUTED, linewidth=1)
        axes.plot([low, high], [0, 0], color=svg.SERIES[0], linewidth=5, solid_capstyle="butt")
        axes.plot(
            [mean],
            [0],
            marker="o",
            markersize=10,
            color=svg.SERIES[0],
            markeredgecolor=svg.PAPER,
            markeredgewidth=2,
        )
        axes.set(xlim=(-reach, reach), ylim=(-1, 1), yticks=[])
        axes.xaxis.set_major_formatter(lambda value, _: _shortest(value))
        axes.spines["left"].set_visible(False)
        axes.text(0, 1.06, f"← {labels[0]}", transform=axes.transAxes, color=svg.MUTED, va="bottom")
        axes.text(
            1,
            1.06,
            f"{labels[1]} →",
            transform=axes.transAxes,
            color=svg.MUTED,
            va="bottom",
            ha="right",
        )
        description = (
            f"Difference in mean Dice {mean:+.3f} with its 95 % interval from {low:+.3f} to "
            f"{high:+.3f}, on a line through zero."
        )
        return Drawing(svg.inline(figure, key=key, description=description), "")
