"""The six metrics of the release, pooled over the batch and image by image."""

from __future__ import annotations

import numpy as np

from cmunet_jax.evaluation.paper import paper_metrics
from tests.golden.case import Case, Check

PATTERN = "*_metrics_*"
TOLERANCE = 1e-6


def check(case: Case, stem: str) -> list[Check]:
    """Compares every metric that the case holds."""
    ours = paper_metrics(np.moveaxis(case["logits"], 1, -1), case["gt"])
    checks = []
    for key in case:
        group, _, name = key.partition("/")
        if name:
            checks.append(Check(key, error(ours[group][name], case[key]), TOLERANCE))
    return checks


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, relative where the value exceeds 1; equal infinities do not differ."""
    if ours.shape != theirs.shape:
        raise ValueError(f"ours has shape {ours.shape}, the case {theirs.shape}")
    same = ours == theirs
    scale = np.where(np.isfinite(theirs), np.maximum(np.abs(theirs), 1), 1)
    # Where the two are equal nothing is subtracted: inf - inf would be NaN.
    return float(
        np.max(np.abs(np.subtract(ours, theirs, where=~same, out=np.zeros(ours.shape))) / scale)
    )
