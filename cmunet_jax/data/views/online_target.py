"""The two views of CM-UNet's pre-training, one of them to be masked."""

from __future__ import annotations

import math
from typing import Any

import jax

from cmunet_jax.data import augment
from cmunet_jax.data.resample import resize
from cmunet_jax.data.views.common import (
    PATCH,
    Array,
    Example,
    Options,
    View,
    check_fractions,
    check_ranges,
    check_side,
    noise,
)
from tfds_angio.errors import UserError


def defaults(size: int, preset: str) -> dict[str, Any]:
    """The two views of pre-training (paper, II-B); at 256 exactly the released numbers."""
    del preset  # the views are the same in both
    crop = size * 7 // 8 // PATCH * PATCH
    return {
        "base_size": size,  # pixels, of the view from which both are cut
        "area": (0.2, 1.0),  # of the base view's box, as a fraction of the image
        "aspect": (3 / 4, 4 / 3),  # width / height, log-uniform
        "flip_horizontal": 0.5,
        "crop": crop,  # pixels, of both views
        "max_offset": max(size - crop - 1, 0),  # pixels: the target's shift is 0..this, each axis
        "noise": 0.5,  # probability, on the target
        "noise_fraction": 0.1,  # sigma, as a fraction of the image's maximum
        "patch_ratio": 0.65,  # of the online view that is hidden, in patches of 16 x 16
    }


def check(options: Options) -> None:
    """Raises UserError, naming the option, where the view cannot be made."""
    check_fractions(options, "flip_horizontal", "noise", "patch_ratio")
    check_ranges(options, "area", "aspect")
    if options["area"][1] > 1:
        raise UserError("config.views.area must end at 1 or below: it is a part of the image")
    crop, base = options["crop"], options["base_size"]
    check_side(options, "crop")
    if options["max_offset"] < 0 or crop + options["max_offset"] > base:
        raise UserError(
            f"config.views.crop={crop} and config.views.max_offset={options['max_offset']} do not "
            f"fit into config.views.base_size={base}: use an offset of 0..{max(base - crop, 0)}"
        )
    if not 1 <= math.floor(options["patch_ratio"] * crop * crop / PATCH**2) < (crop // PATCH) ** 2:
        raise UserError(
            f"config.views.patch_ratio={options['patch_ratio']} hides none or all of the "
            f"{(crop // PATCH) ** 2} patches: choose it between"
        )


def online_target(key: Array, example: Example, options: Options, train: bool) -> dict[str, Any]:
    """view_a and view_b float32 [c, c, 1], and patches bool [c/16, c/16], True = masked.

    Both are cut from one base view: A at the origin, B at a random offset and sometimes noisy.
    ``patches`` belongs to A, which is not masked here. When not training the base view is the
    whole image.
    """
    keys = jax.random.split(key, 5)
    image, base = example["image"], options["base_size"]
    if train:
        image, _ = augment.random_resized_crop(
            keys[0],
            image,
            None,
            size=base,
            area=tuple(options["area"]),
            aspect=tuple(options["aspect"]),
        )
        image, _ = augment.random_flip(keys[1], image, None, horizontal=options["flip_horizontal"])
    else:
        image, _ = resize(image, size=base)
    crop = options["crop"]
    shifted = augment.random_offset_crop(
        keys[2], image, size=crop, max_offset=options["max_offset"]
    )
    return {
        "view_a": image[:crop, :crop],
        "view_b": noise(keys[3], shifted, options),
        "patches": augment.random_patch_mask(
            keys[4], size=crop, patch=PATCH, ratio=options["patch_ratio"]
        ),
    }


VIEW = View(online_target, defaults, check)
