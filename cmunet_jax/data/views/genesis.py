"""The view of Model Genesis: an image, and what four transforms have made of it."""

from __future__ import annotations

from typing import Any

import jax

from cmunet_jax.config import choose
from cmunet_jax.data import genesis as transforms
from cmunet_jax.data.resample import resize
from cmunet_jax.data.views.common import (
    PATCH,
    Array,
    Example,
    Options,
    View,
    check_fractions,
    check_side,
)
from tfds_angio.errors import UserError

NOISE_RANGES = ("unit", "image")
_SMALLEST = 2 * PATCH  # pixels: painted windows with their margins must fit


def defaults(size: int, preset: str) -> dict[str, Any]:
    """The released numbers; `fixed` paints with noise of the image's range.

    The released port paints with noise in 0..1, the range of the original's images. Ours, like the
    port's, are standardised: there such noise is a flat mid-grey that is easily told from tissue.
    """
    return {
        "size": size,  # pixels, of the view
        "flip": 0.4,  # of one flip more, of image and target alike
        "flips": 3,  # at most
        "shuffle": 0.5,  # of shuffling pixels in windows
        "shuffle_side": max(size // 25, 1),  # pixels, the longest side of a window
        "shuffle_windows": 10_000,
        "intensity": 0.9,  # of the Bézier map
        "paint": 0.9,
        "inpaint": 0.2,  # of painting inside windows, otherwise outside of them
        "paint_noise": "unit" if preset == "paper" else "image",  # 0..1, or the image's range
    }


def check(options: Options) -> None:
    """Raises a UserError that names the option that cannot be."""
    check_fractions(options, "flip", "shuffle", "intensity", "paint", "inpaint")
    choose("config.views.paint_noise", options["paint_noise"], NOISE_RANGES)
    check_side(options, "size", least=_SMALLEST)
    for name, low, high in (
        ("flips", 0, 16),
        ("shuffle_side", 1, options["size"]),
        ("shuffle_windows", 1, 2**24),
    ):
        if not low <= options[name] <= high:
            raise UserError(f"config.views.{name}={options[name]} must lie in {low}..{high}")


def genesis(key: Array, example: Example, options: Options, train: bool) -> dict[str, Any]:
    """Image and target float32 [s, s, 1]: the target is the image before the last three transforms.

    Flips move both. When not training there are no flips and an example is always transformed
    alike.
    """
    flip_key, shuffle_key, intensity_key, paint_key = jax.random.split(key, 4)
    target, _ = resize(example["image"], size=options["size"])
    if train:
        target = transforms.random_flips(
            flip_key, target, probability=options["flip"], most=options["flips"]
        )
    image = transforms.random_pixel_shuffling(
        shuffle_key,
        target,
        side=options["shuffle_side"],
        windows=options["shuffle_windows"],
        probability=options["shuffle"],
    )
    image = transforms.random_intensity_map(intensity_key, image, probability=options["intensity"])
    low, high = (0.0, 1.0) if options["paint_noise"] == "unit" else (target.min(), target.max())
    image = transforms.random_painting(
        paint_key,
        image,
        probability=options["paint"],
        inpainting=options["inpaint"],
        low=low,
        high=high,
    )
    return {"image": image, "target": target}


VIEW = View(genesis, defaults, check)
