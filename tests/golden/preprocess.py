"""The released preprocessing chain against golden values, step by step and through the object."""

from __future__ import annotations

from typing import Any

import numpy as np

from cmunet_jax.data import geometry, preprocessing, released
from tests.golden.case import Case, Check, absolute

PATTERN = "*_preprocess*"


def check(case: Case, stem: str) -> list[Check]:
    """Compares crop and inpainting, standardisation, mask, and the 16-bit code that is stored.

    Grey levels and masks must be equal. The case keeps standardised values in float16, so each of
    ours must round to its neighbour there; the decoded code may be off by half its own step more.
    Both errors are the largest of all pixels, in units of what that pixel may be off.
    """
    del stem
    raw, theirs = np.asarray(case["raw"]), np.asarray(case["standardised"])
    chain = preprocessing.create({"name": "paper", "size": 16})
    window = chain.geometry(*raw.shape)
    cropped = released.inpaint_corners(geometry.extract(released.to_uint8(raw), window, fill=None))
    ours = released.standardise(cropped)
    code = _code_at_native_size(raw, window.side)
    checks = [
        absolute("cropped", cropped, case["cropped"], 0.0),
        _within("standardised", ours, theirs, 0.0),
        _within("code", code.float(), theirs, float(code.scale) / 2),
    ]
    if "raw_mask" in case:
        checks.append(_check_mask(case, window))
    return checks


def _within(name: str, ours: np.ndarray, theirs: np.ndarray, more: float) -> Check:
    """Compares float32 values with float16 ones, each within its own rounding and `more`."""
    if theirs.dtype != np.float16:
        raise ValueError(f"{name}: the case holds {theirs.dtype}, not float16")
    exact = theirs.astype(np.float64)
    # Half the distance to the next value of float16, and the rounding of float32 beside it.
    allowed = np.spacing(np.abs(theirs)).astype(np.float64) / 2 + more + 1e-6 * (1 + np.abs(exact))
    return absolute(name, ours / allowed, exact / allowed, 1.0)


def _code_at_native_size(raw: np.ndarray, side: int) -> preprocessing.Prepared:
    """The stored code, at a size at which the resampling at load does nothing."""
    options = preprocessing.create({"name": "paper", "size": 16}).options
    return preprocessing.Preprocessing("paper", side, 1, options).apply(raw)


def _check_mask(case: Case, window: Any) -> Check:
    """A case does not say whether contours were filled (an option), so either may match."""
    native = geometry.Geometry(**{**vars(window), "size": window.side})
    raw, theirs = np.asarray(case["raw_mask"]), case["mask"]
    results = [
        absolute(name, released.prepare_mask(raw, native, fill_contours=filled), theirs, 0.0)
        for name, filled in (("mask", False), ("mask, contours filled", True))
    ]
    return min(results, key=lambda result: result.error)
