"""From a native image to the network's input: one versioned object, stored with the weights.

Weights without their preprocessing are worth nothing (raw 8-bit images into the released weights
give a Dice of 0), so the object goes into every checkpoint as a plain dict and every consumer,
training, evaluation and prediction, builds it from there.

Two presets:

* ``paper``: the released chain, exact (see ``released.py``), kept as a 16-bit code.
* ``fixed``: ours. The whole field of view is kept and never distorted, collimator borders are
  found and made neutral, the background is flattened, and grey levels are coded by robust
  percentiles inside the field of view. Its result is an 8-bit code by definition.

A code is an unsigned integer image with one scale and one offset: ``float = code * scale +
offset``. So a data set fits on the device at one or two bytes a pixel, and what the network sees
does not depend on where the multiplication is done.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from cmunet_jax.data import field_of_view, geometry, released
from cmunet_jax.data.geometry import Geometry
from tfds_angio.errors import UserError

# Raised whenever the same options give other numbers: old weights must not meet new inputs.
VERSIONS = {"paper": 1, "fixed": 1}
NEUTRAL_MARGIN = 1e-6


@dataclasses.dataclass(frozen=True)
class PaperOptions:
    """Options of ``paper``.

    Attributes:
      centre_crop: side of the centre crop in native pixels (475).
      fill_contours: fill the interior of the contours of a mask, for outline annotations.
    """

    centre_crop: int = 475
    fill_contours: bool = False


@dataclasses.dataclass(frozen=True)
class FixedOptions:
    """Options of ``fixed``; lengths are fractions of the image's longer side.

    Attributes:
      flatten: part of the local mean that is removed, in 0..1.
      flatten_sigma: standard deviation of the local mean's Gaussian.
      darkness: a collimator is darker than this fraction of the way from the darkest level to
        that of the field beside it, in 0..1.
      min_field: least credible area of the field of view, as a fraction of the image.
      fade: width over which the field's edge fades into the neutral value.
      percentile: percent of the field's pixels that are clipped at each end of the code.
    """

    flatten: float = 0.75
    flatten_sigma: float = 0.125
    darkness: float = 0.45
    min_field: float = 0.2
    fade: float = 0.02
    percentile: float = 0.25


OPTIONS: dict[str, type[PaperOptions] | type[FixedOptions]] = {
    "paper": PaperOptions,
    "fixed": FixedOptions,
}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One image as the network sees it.

    Attributes:
      code: uint8 or uint16 [S, S].
      scale: float32, > 0.
      offset: float32.
      geometry: where the pixels came from.
    """

    code: np.ndarray
    scale: np.float32
    offset: np.float32
    geometry: Geometry

    def float(self) -> np.ndarray:
        """The network's input, float32 [S, S]: mean about 0, standard deviation about 1."""
        return self.code.astype(np.float32) * self.scale + self.offset


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The chain from a native image to a square code, and back.

    Attributes:
      name: ``paper`` or ``fixed``.
      size: side S of the network's square in pixels.
      version: of the numbers that the chain gives.
      options: ``PaperOptions`` or ``FixedOptions``.
    """

    name: str
    size: int
    version: int
    options: PaperOptions | FixedOptions

    def to_dict(self) -> dict[str, Any]:
        """A flat JSON-able dict that ``from_dict`` turns back into an equal object."""
        return {
            "name": self.name,
            "size": self.size,
            "version": self.version,
            **dataclasses.asdict(self.options),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of ``to_dict``; see ``create`` for the errors."""
        return create(values)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of ``to_dict``: equal digests mean equal numbers."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def geometry(self, height: int, width: int) -> Geometry:
        """The window of a native image of this size."""
        if isinstance(self.options, PaperOptions):
            return geometry.centre_crop(height, width, self.options.centre_crop, self.size)
        return geometry.pad_to_square(height, width, self.size)

    def apply(self, image: np.ndarray) -> Prepared:
        """Prepares one grey image.

        Args:
          image: [H, W] or [H, W, 1], any size; unsigned integers or floats of any range. Integers
            are exact; ``fixed`` does not depend on the range at all, ``paper`` maps what is not
            8-bit to 0..255 by its minimum and maximum.

        Raises:
          UserError: if the image is not grey, is empty or holds NaN or infinity.
        """
        grey = _as_grey(image)
        window = self.geometry(*grey.shape)
        if isinstance(self.options, PaperOptions):
            return _encode_exact(released.prepare(grey, window), window)
        return _prepare_robust(grey, window, self.options)

    def apply_mask(self, mask: np.ndarray, window: Geometry) -> np.ndarray:
        """Brings a mask [H, W] or [H, W, 1] (any > 0 is artery) to uint8 0/1 [S, S].

        ``paper`` takes the nearest pixel, ``fixed`` the majority of the area.
        """
        if mask.ndim == 3 and mask.shape[-1] == 1:
            mask = mask[..., 0]
        if mask.shape != (window.height, window.width):
            raise UserError(
                f"the mask has shape {mask.shape}, its image ({window.height}, {window.width}): "
                "masks must have the size of their image"
            )
        if isinstance(self.options, PaperOptions):
            return released.prepare_mask(mask, window, fill_contours=self.options.fill_contours)
        inside = geometry.extract((mask > 0).astype(np.uint8), window, fill=0)
        return geometry.resize_mask(inside, self.size)

    def restore(
        self, values: np.ndarray, window: Geometry, *, fill: float | Sequence[float] = 0.0
    ) -> np.ndarray:
        """Brings float [S, S, C] back to float32 [H, W, C]; see ``geometry.restore``.

        Native pixels outside of the window (``paper`` only) get ``fill``: one value, or one a
        channel. With the default argmax says background there.
        """
        return geometry.restore(values, window, fill=fill)


def create(config: Mapping[str, Any]) -> Preprocessing:
    """Builds it from ``config.preprocessing``: name, size and any options of the preset.

    Raises:
      UserError: on an unknown preset or option, an unusable value or another version.
    """
    values = dict(config)
    name, size = values.pop("name", None), values.pop("size", None)
    if name not in OPTIONS:
        raise UserError(f"config.preprocessing.name={name!r} is unknown; use paper or fixed")
    if not isinstance(size, int) or size < 16 or size % 16:
        raise UserError(
            f"config.preprocessing.size={size!r} must be a multiple of 16, for example 256"
        )
    version = values.pop("version", VERSIONS[name])
    if version != VERSIONS[name]:
        raise UserError(
            f"preprocessing '{name}' has version {VERSIONS[name]} here, but {version} was asked "
            "for: use the release of this project that wrote it"
        )
    fields = {field.name: field for field in dataclasses.fields(OPTIONS[name])}
    for key, value in values.items():
        if key not in fields:
            raise UserError(
                f"config.preprocessing.{key} is no option of '{name}'; it has {', '.join(fields)}"
            )
        _check_option(key, value, type(getattr(OPTIONS[name](), key)))
    # a float option written as an integer is still the same option: equal digests
    typed: dict[str, Any] = {
        key: float(value) if isinstance(fields[key].default, float) else value
        for key, value in values.items()
    }
    return Preprocessing(name, size, version, OPTIONS[name](**typed))


def _check_option(key: str, value: Any, kind: Any) -> None:
    """One range for all: fractions lie in 0..1, except a percent below 50 and a crop in pixels."""
    allowed: Any = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or isinstance(value, bool) != (kind is bool):
        raise UserError(f"config.preprocessing.{key}={value!r} must be a {kind.__name__}")
    if kind is bool:
        return
    bounds: dict[str, tuple[float, float]] = {"centre_crop": (16, 1 << 16), "percentile": (0, 49)}
    low, high = bounds.get(key, (0.0, 1.0))
    if key in ("flatten_sigma", "fade"):
        low = 1e-3  # a Gaussian and a ramp need a width
    if not low <= value <= high:
        raise UserError(f"config.preprocessing.{key}={value} must lie in {low}..{high}")


def _as_grey(image: np.ndarray) -> np.ndarray:
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim != 2 or not image.size:
        raise UserError(f"an image of shape {image.shape} is not a grey image [H, W]: convert it")
    if image.dtype == bool or image.dtype.kind not in "uif":
        raise UserError(f"an image of type {image.dtype} has no grey levels: convert it")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise UserError("the image holds NaN or infinity: mend or remove it")
    return image


def _encode_exact(values: np.ndarray, window: Geometry) -> Prepared:
    """Codes float32 [S, S] on the 65,536 levels between its minimum and maximum.

    The error is at most range / 131,070, about 6e-5 standard deviations.
    """
    low, high = np.float32(values.min()), np.float32(values.max())
    scale = np.float32((high - low) / 65535) or np.float32(1)
    code = np.rint((values.astype(np.float64) - low) / np.float64(scale))
    return Prepared(np.clip(code, 0, 65535).astype(np.uint16), scale, low, window)


def _prepare_robust(image: np.ndarray, window: Geometry, options: FixedOptions) -> Prepared:
    """The ``fixed`` chain: any grey image [H, W] -> 8-bit code [size, size]."""
    values, valid = _resize(image.astype(np.float32), window)
    size = window.size
    field = valid & field_of_view.detect(
        values, darkness=options.darkness, min_area=options.min_field
    )
    local = field_of_view.background(values, field, sigma=options.flatten_sigma * size)
    flat = values - options.flatten * local
    weight = field_of_view.fade(field, valid, width=options.fade * size)
    rim = max(1, round(options.fade * size))  # frame lines and noise-free edges are no statistics
    trusted = weight >= 1
    trusted[:rim] = trusted[-rim:] = trusted[:, :rim] = trusted[:, -rim:] = False
    trusted = trusted if trusted.any() else field
    inside = flat[trusted]
    low, high = np.percentile(inside, [options.percentile, 100 - options.percentile])
    span = np.float32(high - low)
    if not span > NEUTRAL_MARGIN * np.abs(values).max():  # constant inside: nothing to see
        code = np.full((size, size), 128, np.uint8)
        return Prepared(code, np.float32(1), np.float32(-128), window)
    levels = np.clip((flat - low) * (255 / span), 0, 255)
    neutral = np.rint(levels[trusted].mean())
    code = np.rint(neutral + (levels - neutral) * weight).astype(np.uint8)
    scale = np.float32(1 / code[trusted].std())
    return Prepared(code, scale, np.float32(-neutral * scale), window)


def _resize(image: np.ndarray, window: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Window of float32 [H, W] -> values [S, S], and bool [S, S] that is False in the padding.

    Area averaging when shrinking (every native pixel counts, noise is reduced), bicubic when
    enlarging.
    """
    shape = (window.size, window.size)
    square = geometry.extract(image, window, fill=None)
    if window.side != window.size:
        shrink = window.size < window.side
        square = cv2.resize(
            square, shape, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
        )
    if not any(window.margins):
        return square, np.ones(shape, bool)
    inside = geometry.extract(np.ones(image.shape, np.float32), window, fill=0)
    return square, cv2.resize(inside, shape, interpolation=cv2.INTER_AREA) > 0.999
