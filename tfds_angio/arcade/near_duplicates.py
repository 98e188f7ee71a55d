"""Finds images that show the same frame, or frames of the same run, in a set of angiograms.

Two stages. Candidates are pairs with similar perceptual hashes (DCT, 63 bits), or whose thumbnails
correlate, or whose amplitude spectra do (they do not change when an image is shifted); every pair
is compared, no bucket is skipped. Each candidate is then verified by the normalised
cross-correlation of its 128 × 128 details, inside the common field of view and at the best shift.

Details, not grey values: angiograms of different patients in one projection share spine, diaphragm
and shutter, which fill any plain correlation. So the local mean and contrast are divided out, the
collimator is cut off, and what is left of straight shutter edges (a constant along a row or column)
is subtracted. On ARCADE this takes the correlation of unrelated pairs below 0.2 (README.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from scipy import fft

SIDE = 128  # of the detail image; a pixel is 4 pixels of a 512 image
MAX_SHIFT = 12  # of the detail image, each way: 48 pixels of a 512 image
_PADDED = SIDE + 32  # MAX_SHIFT < 32, so the circular correlation does not wrap
_LOCAL_SIGMA = 4.0  # detail pixels; about a vessel's width
_NOISE_FLOOR = 2.0  # grey levels; keeps flat regions from turning into amplified noise
_HASH_SIDE = 8
_MAX_HAMMING = 14
_MIN_COARSE = 0.2
_MIN_SPECTRAL = 0.5  # unrelated pairs stay below 0.4, copies shifted by 40 pixels above 0.7
_MIN_OVERLAP = 0.2  # of the detail image


@dataclasses.dataclass(frozen=True)
class Signature:
    """What is compared of an image.

    Attributes:
      hash: bool [63], signs of the low DCT coefficients against their median.
      detail: float32 [128, 128], locally standardised; 0 outside the field of view.
      field: float32 [128, 128] in {0, 1}, the field of view without its edge.
    """

    hash: np.ndarray
    detail: np.ndarray
    field: np.ndarray


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two similar images: indices first < second, and how similar they are.

    `correlation` is in [-1, 1]; `shift` is (dy, dx) in detail pixels; `hamming` in 0..63.
    """

    first: int
    second: int
    correlation: float
    shift: tuple[int, int]
    hamming: int


def _dark_margin(profile: np.ndarray, inner: float) -> int:
    """Width of the margin, in the outer quarter of a profile, that ends at its last dark place."""
    dark = np.flatnonzero(profile[: len(profile) // 4] < 0.65 * inner)
    return int(dark[-1]) + 1 if len(dark) else 0


def field_of_view(small: np.ndarray) -> np.ndarray:
    """float32 [128, 128] in {0, 1}: 1 well inside the collimator, black or grey.

    Too small a field only leaves less to compare, so dark margins are cut generously.
    """
    quarter = SIDE // 4
    inner = float(np.median(small[quarter:-quarter, quarter:-quarter]))
    columns = np.median(small[quarter:-quarter], axis=0)
    rows = np.median(small[:, quarter:-quarter], axis=1)
    top, bottom = _dark_margin(rows, inner), _dark_margin(rows[::-1], inner)
    left, right = _dark_margin(columns, inner), _dark_margin(columns[::-1], inner)
    bright = (small > 20).astype(np.uint8)
    field = np.asarray(cv2.morphologyEx(bright, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)))
    inside = np.zeros_like(bright)
    inside[top + 1 : SIDE - bottom - 1, left + 1 : SIDE - right - 1] = 1
    # 5 pixels: where the local statistics would reach over the edge.
    eroded = cv2.erode(field * inside, np.ones((11, 11), np.uint8), borderValue=0)
    return eroded.astype(np.float32)


def _standardise(small: np.ndarray, field: np.ndarray) -> np.ndarray:
    smooth = cv2.GaussianBlur(small, (0, 0), 0.8)
    detail = smooth - cv2.GaussianBlur(smooth, (0, 0), _LOCAL_SIGMA)
    variance = cv2.GaussianBlur(detail * detail, (0, 0), _LOCAL_SIGMA)
    detail = detail / np.sqrt(variance + _NOISE_FLOOR**2) * field
    for axis in (0, 1):
        count = np.maximum(field.sum(axis, keepdims=True), 1)
        detail = (detail - detail.sum(axis, keepdims=True) / count) * field
    return detail.astype(np.float32)


def signature(image: np.ndarray) -> Signature:
    """Signature of a uint8 [H, W] image."""
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    tiny = cv2.resize(small, (32, 32), interpolation=cv2.INTER_AREA)
    low = fft.dctn(tiny, norm="ortho")[:_HASH_SIDE, :_HASH_SIDE].ravel()[1:]
    field = field_of_view(small)
    return Signature(low > np.median(low), _standardise(small, field), field)


def hamming_distances(signatures: Sequence[Signature]) -> np.ndarray:
    """uint8 [N, N] Hamming distances of the hashes."""
    signs = np.stack([s.hash for s in signatures]).astype(np.float32) * 2 - 1
    return np.rint((signs.shape[1] - signs @ signs.T) / 2).astype(np.uint8)


def _coarse_correlations(signatures: Sequence[Signature]) -> np.ndarray:
    """float32 [N, N]: unshifted correlation of the details at half resolution."""

    def halve(plane: np.ndarray) -> np.ndarray:
        return cv2.resize(plane, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA).ravel()

    detail = np.stack([halve(s.detail) for s in signatures])
    field = np.stack([halve(s.field) for s in signatures])
    energy = (detail * detail) @ field.T  # of row i inside the field of column j
    return (detail @ detail.T) / np.sqrt(np.maximum(energy * energy.T, 1e-6))


def _spectral_correlations(signatures: Sequence[Signature]) -> np.ndarray:
    """float32 [N, N]: correlation of the amplitude spectra without their smooth envelope."""
    rows = []
    for one in signatures:
        amplitude = np.sqrt(np.abs(fft.rfft2(one.detail)))[:, : SIDE // 4]
        low = np.concatenate([amplitude[: SIDE // 4], amplitude[-SIDE // 4 :]]).astype(np.float32)
        speckle = (low / (cv2.GaussianBlur(low, (0, 0), 2.0) + 1e-3)).ravel()
        speckle -= speckle.mean()
        rows.append(speckle / max(float(np.linalg.norm(speckle)), 1e-6))
    spectra = np.stack(rows)
    return spectra @ spectra.T


def candidates(signatures: Sequence[Signature]) -> Iterator[tuple[int, int, int]]:
    """Yields (i, j, hamming) with i < j for pairs worth a closer look."""
    if len(signatures) < 2:
        return
    hamming = hamming_distances(signatures)
    likely = hamming <= _MAX_HAMMING
    likely |= _coarse_correlations(signatures) >= _MIN_COARSE
    likely |= _spectral_correlations(signatures) >= _MIN_SPECTRAL
    for i, j in np.argwhere(np.triu(likely, 1)):
        yield int(i), int(j), int(hamming[i, j])


def correlate(a: Signature, b: Signature) -> tuple[float, tuple[int, int]]:
    """Largest masked normalised cross-correlation over shifts, and the shift (Padfield 2012).

    Mean and variance are those of the overlap of the two fields at each shift. Shifts that leave
    less than a fifth of the image in common do not count; -1 when there is none.
    """

    def transform(plane: np.ndarray) -> np.ndarray:
        return fft.rfft2(plane, (_PADDED, _PADDED))

    def window(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        full = fft.irfft2(x * np.conj(y), (_PADDED, _PADDED))
        size = 2 * MAX_SHIFT + 1
        return np.roll(full, (MAX_SHIFT, MAX_SHIFT), (0, 1))[:size, :size]

    fa, ma, sa = transform(a.detail), transform(a.field), transform(a.detail**2)
    fb, mb, sb = transform(b.detail), transform(b.field), transform(b.detail**2)
    overlap = window(ma, mb)
    count = np.maximum(overlap, 1.0)
    mean_a, mean_b = window(fa, mb) / count, window(ma, fb) / count
    var_a = np.maximum(window(sa, mb) / count - mean_a**2, 1e-4)
    var_b = np.maximum(window(ma, sb) / count - mean_b**2, 1e-4)
    values = (window(fa, fb) / count - mean_a * mean_b) / np.sqrt(var_a * var_b)
    values[overlap < _MIN_OVERLAP * SIDE * SIDE] = -1.0
    y, x = np.unravel_index(values.argmax(), values.shape)
    return float(np.clip(values[y, x], -1, 1)), (int(y) - MAX_SHIFT, int(x) - MAX_SHIFT)


def compare(signatures: Sequence[Signature], i: int, j: int) -> Pair:
    """The pair of two given images, whatever their similarity."""
    first, second = min(i, j), max(i, j)
    correlation, shift = correlate(signatures[first], signatures[second])
    hamming = int(np.sum(signatures[first].hash != signatures[second].hash))
    return Pair(first, second, correlation, shift, hamming)


def find_pairs(signatures: Sequence[Signature], *, threshold: float) -> list[Pair]:
    """All pairs whose details correlate by at least `threshold`, strongest first."""
    pairs = [compare(signatures, i, j) for i, j, _ in candidates(signatures)]
    kept = [pair for pair in pairs if pair.correlation >= threshold]
    return sorted(kept, key=lambda p: (-p.correlation, p.first, p.second))
