"""How much of the true artery is found, apart for thin, middle and thick vessels.

A true pixel takes the local diameter of the true vessel: twice the distance from the nearest point
of its centreline (skeleton) to the contour. False positives have no true calibre and are not
assigned. The two thresholds are fixed, so that results of two networks, sets and sizes compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.evaluation.metrics import Pair
from cmunet_jax.evaluation.shapes import Shape, tree

CALIBRES = ("thin", "mid", "thick")
# In pixels of a 512-pixel image. On the training images of ARCADE (every fourth of 991) they put
# 31, 39 and 30 % of the artery pixels into the three calibres, and 48, 34 and 18 % of the
# centreline; every image has thin and middle vessels, 89 % have thick ones.
REFERENCE_SIDE, THIN, THICK = 512, 8.0, 13.0
_RULE = (
    "Each true artery pixel takes the local diameter of the true vessel: 2 x the distance from the "
    "nearest point of its skeleton to the contour, in pixels of the image as it is compared. "
    f"Thresholds: {THIN:g} and {THICK:g} px for an image whose longer side is {REFERENCE_SIDE} px, "
    "in proportion for others; near the tertiles of artery pixels in ARCADE's training images. "
    "sensitivity_*: found share of the pixels of a calibre; empty where an image has none."
)


def thresholds(shape: Sequence[int]) -> tuple[float, float]:
    """Diameters (px) from which a vessel is middle, and thick, in an image [H, W]."""
    scale = max(shape[0], shape[1]) / REFERENCE_SIDE
    return THIN * scale, THICK * scale


def pixel_diameters(shape: Shape) -> NDArray[np.float64]:
    """Local diameter (px) at every artery pixel, [area], in the order of `np.argwhere(mask)`."""
    if not shape.area:
        return np.zeros(0)
    pixels = np.argwhere(shape.mask)
    nearest = tree(np.argwhere(shape.skeleton).astype(np.float64)).query(pixels)[1]
    return 2.0 * shape.centreline_distances[nearest]


def columns(pair: Pair) -> dict[str, Any]:
    """The columns of one image: `truth_*` (pixels) and `sensitivity_*` (in 0..1, or None)."""
    calibre = np.digitize(pixel_diameters(pair.truth), thresholds(pair.shape))
    found = pair.prediction.mask[pair.truth.mask]
    truth = np.bincount(calibre, minlength=3)
    hits = np.bincount(calibre[found], minlength=3)
    sensitivity = {
        f"sensitivity_{name}": float(hits[at] / truth[at]) if truth[at] else None
        for at, name in enumerate(CALIBRES)
    }
    return sensitivity | {f"truth_{name}": int(truth[at]) for at, name in enumerate(CALIBRES)}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Bounds and rule in words; mean over the images that have the calibre, and pooled value."""
    values: dict[str, Any] = {}
    for name in CALIBRES:
        having = [row for row in rows if row[f"truth_{name}"]]
        truth = sum(row[f"truth_{name}"] for row in having)
        hits = sum(row[f"sensitivity_{name}"] * row[f"truth_{name}"] for row in having)
        mean = np.mean([row[f"sensitivity_{name}"] for row in having]) if having else None
        values[name] = {
            "images": len(having),
            "truth_pixels": truth,
            "mean": mean,
            "pooled": hits / truth if truth else None,
        }
    return {
        "thin": f"< {THIN:g} px",
        "mid": f"{THIN:g} to < {THICK:g} px",
        "thick": f"≥ {THICK:g} px",
        "rule": _RULE,
        "sensitivity": values,
    }
