"""The released preprocessing chain against golden values, step by step and through the object."""

from __future__ import annotations

from typing import Any

import numpy as np

from cmunet_jax.data import geometry, preprocessing, released
from tests.golden.case import Case, Check, absolute

PATTERN = "*_preprocess*"


def check(case: Case, stem: str) -> list[Check]:
    """Compares crop and inpainting, standardisation, mask, and the 16-bit code that is stored.

    Grey levels and masks must be equal; standardised values may differ by the last bit of
    float16, in which the case keeps them, and the code by its own step beside it.
    """
    del stem
    raw, theirs = np.asarray(case["raw"]), np.asarray(case["standardised"])
    chain = preprocessing.create({"name": "paper", "size": 16})
    window = chain.geometry(*raw.shape)
    cropped = released.inpaint_corners(geometry.extract(released.to_uint8(raw), window, fill=None))
    ours = released.standardise(cropped)
    last_bit = float(np.spacing(np.float16(np.abs(theirs.astype(np.float32)).max())))
    checks = [
        absolute("cropped", cropped, case["cropped"], 0.0),
        absolute("standardised", ours.astype(np.float16), theirs, last_bit),
        absolute("code", _code_at_native_size(raw, window.side), theirs, last_bit),
    ]
    if "raw_mask" in case:
        checks.append(_check_mask(case, window))
    return checks


def _code_at_native_size(raw: np.ndarray, side: int) -> np.ndarray:
    """The stored code decoded, at a size at which the resampling at load does nothing."""
    options = preprocessing.create({"name": "paper", "size": 16}).options
    chain = preprocessing.Preprocessing("paper", side, 1, options)
    return chain.apply(raw).float()


def _check_mask(case: Case, window: Any) -> Check:
    """A case does not say whether contours were filled (an option), so either may match."""
    native = geometry.Geometry(**{**vars(window), "size": window.side})
    raw, theirs = np.asarray(case["raw_mask"]), case["mask"]
    results = [
        absolute(name, released.prepare_mask(raw, native, fill_contours=filled), theirs, 0.0)
        for name, filled in (("mask", False), ("mask, contours filled", True))
    ]
    return min(results, key=lambda result: result.error)
