"""Pictures of one case: the image, both contours on it, and where they agree and differ.

Colours are Okabe & Ito's, which people with any colour vision tell apart, also by lightness. One
colour has one meaning throughout: yellow is the truth and what was missed of it, vermilion the
prediction and what it added, blue where they agree.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from skimage.measure import find_contours

from cmunet_jax.evaluation.results import Picture

AGREED, ADDED, MISSED = (0.34, 0.71, 0.91), (0.84, 0.37, 0.0), (0.94, 0.89, 0.26)
OPACITY = 0.7
_DPI = 100
_SUBTITLE: Mapping[str, str] = {
    "iou": "IoU {:.3f}",
    "precision": "precision {:.3f}",
    "recall": "recall {:.3f}",
    "cldice": "clDice {:.3f}",
    "hausdorff_modified": "modified Hausdorff {:.1f} px",
    "hd95": "HD95 {:.1f} px",
}


def colour(picture: Picture) -> NDArray[np.uint8]:
    """The image with agreed, added and missed pixels tinted, uint8 [H, W, 3]."""
    grey = picture.image.astype(np.float64)[..., None] / 255
    rgb = np.broadcast_to(grey, (*picture.image.shape, 3)).copy()
    truth, prediction = picture.truth, picture.prediction
    for where, tint in (
        (truth & prediction, AGREED),
        (prediction & ~truth, ADDED),
        (truth & ~prediction, MISSED),
    ):
        # Some of the grey shines through, so that one can judge whether the truth is right.
        rgb[where] = OPACITY * np.asarray(tint) + (1 - OPACITY) * rgb[where]
    return np.rint(255 * rgb).astype(np.uint8)


def save(picture: Picture, path: str | os.PathLike[str], *, rank: str = "") -> None:
    """Draws image, contours and agreement side by side into a PNG.

    Args:
        picture: the case.
        path: of the PNG.
        rank: word before the title: 'best', 'median', 'worst'.
    """
    height, width = picture.image.shape
    panel = 5.2
    tall = panel * height / width
    figure = Figure(figsize=(3 * panel + 0.2, tall + 1.35), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    figure.subplots_adjust(
        left=0.006,
        right=0.994,
        wspace=0.015,
        bottom=0.5 / (tall + 1.35),
        top=1 - 0.85 / (tall + 1.35),
    )
    grey: Mapping[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "nearest"}
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(picture.image, **grey)
    axes[1].imshow(picture.image, **grey)
    _outline(axes[1], picture.truth, MISSED)
    _outline(axes[1], picture.prediction, ADDED)
    axes[2].imshow(colour(picture), interpolation="nearest")
    _label(figure, picture.row, rank)
    figure.savefig(path, format="png", metadata={"Software": None})


def _outline(axis: Axes, mask: NDArray[np.bool_], tint: tuple[float, float, float]) -> None:
    lines = [contour[:, ::-1] - 1 for contour in find_contours(np.pad(mask, 1), 0.5)]
    axis.add_collection(LineCollection(lines, colors=[tint], linewidths=1.1))


def _label(figure: Figure, row: Mapping[str, Any], rank: str) -> None:
    name = str(row["id"])
    name = name if len(name) <= 60 else f"{name[:28]} … {name[-28:]}"
    words = [word for word in (rank.capitalize(), name) if word]
    if "dice" in row:
        words.append(f"Dice {row['dice']:.3f}")
    height = figure.get_figheight()
    # Ids are the user's: no character of theirs may start a formula.
    text: Mapping[str, Any] = {"x": 0.008, "ha": "left", "va": "top", "parse_math": False}
    figure.text(y=1 - 0.12 / height, s="  ·  ".join(words), fontsize=16, weight="bold", **text)
    values = [text.format(row[key]) for key, text in _SUBTITLE.items() if key in row]
    if row.get("empty"):
        values.append(f"empty: {row['empty']}")
    figure.text(y=1 - 0.48 / height, s="   ·   ".join(values), fontsize=12, color="0.3", **text)
    handles = [
        Line2D([], [], color=MISSED, linewidth=3, label="truth"),
        Line2D([], [], color=ADDED, linewidth=3, label="prediction"),
        Patch(color=AGREED, label="both (true positive)"),
        Patch(color=ADDED, label="prediction only (false positive)"),
        Patch(color=MISSED, label="truth only (false negative)"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=5, frameon=False, fontsize=12)
