"""One view of which patches are hidden; what masked autoencoders (MAE, SparK) train on.

The view masks nothing itself: MAE sets hidden pixels to zero, SparK leaves them out of its
convolutions. The numbers of each method are its objective's `view_options`.
"""

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
)
from tfds_angio.errors import UserError

WHOLE = (1.0, 1.0)


def defaults(size: int, preset: str) -> dict[str, Any]:
    """The whole image, half of it hidden; both presets of the objectives change what they need."""
    del preset
    return {
        "size": size,  # pixels, of the view
        "area": WHOLE,  # of the crop's box, as a fraction of the image; (1, 1): no crop
        "aspect": (3 / 4, 4 / 3),  # width / height of the box, log-uniform
        "flip_horizontal": 0.0,
        "patch_ratio": 0.5,  # that is hidden, in patches of 16 x 16
    }


def check(options: Options) -> None:
    """Raises a UserError that names the option that cannot be."""
    check_fractions(options, "flip_horizontal", "patch_ratio")
    check_ranges(options, "area", "aspect")
    if options["area"][1] > 1:
        raise UserError("config.views.area must end at 1 or below: it is a part of the image")
    check_side(options, "size")
    patches = (options["size"] // PATCH) ** 2
    if not 1 <= math.floor(options["patch_ratio"] * patches) < patches:
        raise UserError(
            f"config.views.patch_ratio={options['patch_ratio']} hides none or all of the "
            f"{patches} patches: choose it between"
        )


def masked(key: Array, example: Example, options: Options, train: bool) -> dict[str, Any]:
    """Image float32 [s, s, 1] and patches bool [s/16, s/16], True = masked.

    Exactly floor(patch_ratio · s² / 256) patches are hidden. When not training the image is whole,
    and an example is always masked alike.
    """
    crop_key, flip_key, patch_key = jax.random.split(key, 3)
    image, size = example["image"], options["size"]
    if train and tuple(options["area"]) != WHOLE:
        image, _ = augment.random_resized_crop(
            crop_key,
            image,
            None,
            size=size,
            area=tuple(options["area"]),
            aspect=tuple(options["aspect"]),
        )
    else:
        image, _ = resize(image, size=size)
    if train and options["flip_horizontal"]:
        image, _ = augment.random_flip(flip_key, image, None, horizontal=options["flip_horizontal"])
    patches = augment.random_patch_mask(
        patch_key, size=size, patch=PATCH, ratio=options["patch_ratio"]
    )
    return {"image": image, "patches": patches}


VIEW = View(masked, defaults, check)
