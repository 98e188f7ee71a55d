"""From optical depth to an 8-bit picture: contrast, quanta, detector and the scanner's look."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from tfds_angio.angio_synthetic.background import Image
from tfds_angio.angio_synthetic.projection import Array, CArm, path_length, tube
from tfds_angio.angio_synthetic.tree import Branch, unit

LIMIT = 1.3  # optical depth that dense objects approach
REFERENCE = 512  # scanner parameters are given in pixels of a 512 x 512 picture


@dataclass(frozen=True)
class Look:
    """How the pictures of one centre look.

    Attributes:
        name: of the centre.
        dose: photons per reference pixel behind the median of the patient.
        blur: focal spot and motion, sigma in reference pixels.
        detector: blur of detector and de-noising, sigma in reference pixels.
        flatten: share of the slow variation that dynamic-range compression removes.
        sharpen: amount of unsharp masking.
        sharpen_px: its sigma in reference pixels.
        gamma: display curve; intensity to this power.
        level: grey level of the median.
        gain: contrast around the median.
        steps: grey levels that the export keeps.
        shutters: probability of each kind of collimation.
    """

    name: str
    dose: float
    blur: float
    detector: float
    flatten: float
    sharpen: float
    sharpen_px: float
    gamma: float
    level: float
    gain: float
    steps: int
    shutters: tuple[tuple[str, float], ...]


BLADES = (("none", 0.3), ("blades", 0.7), ("round", 0.0))
OPEN = (("none", 0.75), ("blades", 0.25), ("round", 0.0))
ROUND = (("none", 0.2), ("blades", 0.2), ("round", 0.6))
LOOKS = (
    Look("c01", 210, 0.80, 0.62, 0.45, 0.55, 9, 0.90, 108, 1.0, 256, BLADES),
    Look("c02", 270, 0.70, 0.60, 0.30, 0.35, 6, 1.05, 100, 1.1, 256, OPEN),
    Look("c03", 210, 0.85, 0.70, 0.55, 0.80, 14, 0.80, 122, 0.95, 256, BLADES),
    Look("c04", 320, 0.75, 0.66, 0.40, 0.25, 20, 1.00, 94, 1.12, 256, BLADES),
    Look("c05", 190, 1.00, 0.75, 0.20, 0.30, 5, 0.85, 114, 1.0, 128, ROUND),
    Look("c06", 240, 0.80, 0.58, 0.60, 0.60, 8, 0.75, 130, 0.85, 256, OPEN),
)


@dataclass(frozen=True)
class Bolus:
    """Contrast medium in one frame.

    Attributes:
        per_mm: attenuation of undiluted contrast per mm.
        front_mm: how far it has come from the ostium.
        width_mm: length of the front.
        fade: relative loss per 100 mm behind the front.
        streaming: strength of its uneven mixing.
        phase: of the mixing.
    """

    per_mm: float
    front_mm: float
    width_mm: float
    fade: float
    streaming: float
    phase: float

    def filling(self, branch: Branch) -> Array:
        """Concentration [n] in 0..1 along a branch, falling, without streaming."""
        front = 1.0 / (1.0 + np.exp((branch.depth - self.front_mm) / self.width_mm))
        return front * np.exp(-self.fade * branch.depth / 100.0)

    def strength(self, branch: Branch) -> Array:
        """Concentration [n] along a branch with streaming; at most 1.18."""
        streaks = np.sin(branch.depth / 9.0 + self.phase) + np.sin(branch.depth / 23.0 - self.phase)
        return self.filling(branch) * (1.0 + self.streaming * 0.25 * streaks)


def make_bolus(rng: np.random.Generator, reach_mm: float) -> Bolus:
    """Contrast of one frame; reach_mm is the way to the farthest end of the tree."""
    filling = rng.uniform(0.45, 0.85) if rng.random() < 0.18 else rng.uniform(1.05, 1.5)
    return Bolus(
        per_mm=float(np.clip(rng.lognormal(np.log(0.115), 0.2), 0.085, 0.19)),
        front_mm=float(filling * reach_mm),
        width_mm=float(rng.uniform(3.0, 12.0)),
        fade=float(rng.uniform(0.05, 0.45)),
        streaming=float(rng.uniform(0.0, 0.35)),
        phase=float(rng.uniform(0.0, 2 * np.pi)),
    )


def blur(image: Image, sigma: float) -> Image:
    """Gaussian blur, [size, size]; wide ones on a smaller grid, which is faster."""
    if sigma < 0.15:
        return image
    shrink = int(min(max(sigma // 4, 1), 8))
    if shrink == 1:
        return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    side = (max(image.shape[1] // shrink, 8), max(image.shape[0] // shrink, 8))
    small = cv2.resize(image, side, interpolation=cv2.INTER_AREA)
    ratio = side[0] / image.shape[1]
    small = cv2.GaussianBlur(small, (0, 0), sigma * ratio, borderType=cv2.BORDER_REFLECT)
    return cv2.resize(small, image.shape[::-1], interpolation=cv2.INTER_CUBIC)


def poisson(rng: np.random.Generator, expected: Image) -> Image:
    """Photon counts around `expected`, by Anscombe's normal approximation.

    The number of random draws does not depend on the expectation, so that a last-digit difference
    between machines cannot shift the noise of the whole picture.
    """
    normal = rng.standard_normal(expected.shape, dtype=np.float32)
    return np.maximum((np.sqrt(expected + 0.375) + 0.5 * normal) ** 2 - 0.375, 0.0)


def vignette(rng: np.random.Generator, size: int) -> Image:
    """Uneven illumination [size, size]: fall-off to the corners and the heel effect."""
    at = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = np.meshgrid(at - np.float32(rng.normal(0, 0.2)), at - np.float32(rng.normal(0, 0.2)))
    slope = rng.normal(0, 0.10, 2)
    return np.exp(-rng.uniform(0.0, 0.16) * (x * x + y * y) + slope[0] * x + slope[1] * y).astype(
        np.float32
    )


def expose(rng: np.random.Generator, depth: Image, collimator: Image, look: Look) -> Image:
    """Detector signal [size, size], 1 at the median of the patient.

    Args:
        rng: source of the quantum noise.
        depth: optical depth.
        collimator: transmission of the shutter.
        look: of the scanner.
    """
    size = depth.shape[0]
    scale = size / REFERENCE
    slow = blur(depth, 55 * scale)
    depth = depth - np.float32(look.flatten) * (slow - np.float32(np.median(slow)))
    beam = np.exp(-depth) * vignette(rng, size)
    beam = beam / np.float32(np.median(beam))
    beam = blur(beam, look.blur * scale) * collimator
    photons = look.dose / scale**2  # a larger pixel collects more
    counts = poisson(rng, beam * np.float32(photons)) / np.float32(photons)
    return blur(counts, look.detector * scale)


def display(rng: np.random.Generator, signal: Image, look: Look) -> Image:
    """Grey levels [size, size] float32 in 0..255 of the post-processed picture."""
    scale = signal.shape[0] / REFERENCE
    grey = np.power(np.maximum(signal, 0.0), np.float32(look.gamma))
    grey = grey + np.float32(look.sharpen) * (grey - blur(grey, look.sharpen_px * scale))
    level = look.level + rng.normal(0, 18)
    gain = 1.08 * look.gain * rng.lognormal(0.0, 0.15)
    out = level * (1.0 + gain * (grey - 1.0))
    # Soft shoulder: bright lung saturates gradually.
    knee = 190.0
    over = np.maximum(out - knee, 0.0)
    out = np.minimum(out, knee) + 60.0 * (1.0 - np.exp(-over / 60.0))
    levels = 256 / look.steps
    return np.clip(np.floor(out / levels) * levels, 0, 255).astype(np.float32)


def soften(depth: Image) -> Image:
    """Effective depth [size, size] of dense objects: scatter and beam hardening limit it."""
    return LIMIT * (1.0 - np.exp(-depth / LIMIT))


def reflux(rng: np.random.Generator, carm: CArm, trunk: Branch, bolus: Bolus) -> Image:
    """Optical depth [size, size] of contrast that spills from the ostium into the aortic sinus.

    It occurs in about every third frame and belongs to the aorta, hence not to the mask.
    """
    if rng.random() > 0.35:
        return np.zeros((carm.size, carm.size), np.float32)
    at = np.linspace(0.0, 1.0, 16)[:, None]
    outward = unit(trunk.points[0] - trunk.points[6] + rng.normal(0, 0.6, 3))
    drift = np.cumsum(rng.normal(0, 0.25, (16, 3)), axis=0)
    path = trunk.points[0] + at * rng.uniform(5, 13) * outward + drift
    swell = trunk.radius[0] + at[:, 0] * rng.uniform(1.0, 4.0)
    thin = bolus.per_mm * rng.uniform(0.15, 0.5) * (1.0 - at[:, 0]) ** 1.5
    cloud = path_length(tube(carm, path, swell, thin), carm.size)
    return blur(cloud, 0.8 * carm.size / carm.field_mm)
