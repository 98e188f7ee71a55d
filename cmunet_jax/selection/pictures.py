"""What was chosen, to look at: a contact sheet, and a map of the pool with the chosen marked."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

_COLUMNS, _SHOWN, _DPI = 6, 60, 100
# Okabe & Ito's colours, which people with any colour vision tell apart.
_POOL, _LABELLED, _CHOSEN = "0.75", "#56B4E9", "#D55E00"


def contact_sheet(
    images: Sequence[NDArray[np.uint8]], captions: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Draws grey images uint8 [H, W] side by side, the first 60 of them, into a PNG.

    Args:
      images: in the order of their rank, at least one; any sizes.
      captions: below each.
      path: of the PNG.
    """
    shown = list(zip(images, captions, strict=True))[:_SHOWN]
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.75 * rows), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axis in axes:
        axis.set_axis_off()
    for axis, (image, caption) in zip(axes, shown):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        axis.set_title(caption, fontsize=8, y=0, pad=-3, va="top")
    figure.subplots_adjust(0.01, 0.06 / rows + 0.02, 0.99, 0.995, wspace=0.03, hspace=0.15)
    figure.savefig(path)


def plane(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two principal components of features [N, D]: float64 [N, 2], and their variance shares.

    Signs are such that the largest entry of each direction is positive.
    """
    centred = features - features.mean(axis=0)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    if len(lengths) < 2:
        lengths = np.pad(lengths, (0, 2 - len(lengths)))
        directions = np.pad(directions, ((0, 2 - len(directions)), (0, 0)))
    two = directions[:2]
    signs = np.sign(two[np.arange(2), np.abs(two).argmax(axis=1)])
    total = max(float((lengths**2).sum()), 1e-300)
    return centred @ (two * signs[:, None]).T, lengths[:2] ** 2 / total


def draw_map(
    features: NDArray[np.float64],
    labelled: NDArray[np.bool_],
    chosen: Sequence[int],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draws the pool on its two principal components, the chosen with their ranks, into a PNG.

    Args:
      features: [N, D].
      labelled: bool [N].
      chosen: rows, in the order of their rank.
      path: of the PNG.
      title: of the picture.
    """
    points, shares = plane(features)
    figure = Figure(figsize=(8, 7), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    x, y = points.T
    name = f"pool ({int((~labelled).sum())})"
    axis.scatter(x[~labelled], y[~labelled], s=9, color=_POOL, label=name)
    if labelled.any():
        name = f"labelled ({int(labelled.sum())})"
        axis.scatter(x[labelled], y[labelled], s=22, color=_LABELLED, marker="s", label=name)
    at, name = list(chosen), f"chosen ({len(chosen)})"
    axis.scatter(x[at], y[at], s=45, color=_CHOSEN, edgecolor="black", label=name)
    for rank, row in enumerate(at, start=1):
        axis.annotate(str(rank), points[row], xytext=(4, 4), textcoords="offset points", fontsize=9)
    axis.set_xlabel(f"1st principal component ({shares[0]:.0%} of the variance)")
    axis.set_ylabel(f"2nd principal component ({shares[1]:.0%})")
    axis.set_title(title, fontsize=11)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
