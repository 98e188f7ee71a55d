"""Two views of one image, drawn alike and independently: what contrastive learning compares.

Chen et al. (2020), MoCo v2, with the transforms that the released code gives angiograms: they have
no colour to jitter, and unlike photographs no upright.
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
    noise,
)
from tfds_angio.errors import UserError


def defaults(size: int, preset: str) -> dict[str, Any]:
    """The transforms of both views (method.md, section 4); at 256 exactly the released numbers."""
    del preset  # the views are the same in both
    return {
        "rotate": 0.5,  # probability
        "degrees": 180.0,  # the angle is uniform in ± this; what turns in is 0, the image's mean
        "area": (0.2, 1.0),  # of the crop's box, as a fraction of the image
        "aspect": (3 / 4, 4 / 3),  # width / height of the box, log-uniform
        "crop": size * 7 // 8 // PATCH * PATCH,  # pixels, of both views
        "blur": 0.5,  # probability
        "blur_sigma": (0.1, 2.0),  # pixels
        "flip_horizontal": 0.5,
        "flip_vertical": 0.5,
        "noise": 0.5,  # probability
        "noise_fraction": 0.1,  # sigma, as a fraction of the view's maximum
    }


def check(options: Options) -> None:
    """Raises a UserError that names the option that cannot be."""
    check_fractions(options, "rotate", "blur", "flip_horizontal", "flip_vertical", "noise")
    check_ranges(options, "area", "aspect", "blur_sigma")
    if options["area"][1] > 1:
        raise UserError("config.views.area must end at 1 or below: it is a part of the image")
    for name in ("degrees", "noise_fraction"):
        if options[name] < 0:
            raise UserError(f"config.views.{name}={options[name]} must be 0 or more")
    check_side(options, "crop")


def two_views(key: Array, example: Example, options: Options, train: bool) -> dict[str, Any]:
    """view_q and view_k float32 [c, c, 1]: the image for the query and the one for its key.

    When not training both are the whole image, resized.
    """
    image = example["image"]
    if not train:
        whole, _ = resize(image, size=options["crop"])
        return {"view_q": whole, "view_k": whole}
    key_q, key_k = jax.random.split(key)
    return {"view_q": _view(key_q, image, options), "view_k": _view(key_k, image, options)}


def _view(key: Array, image: Array, options: Options) -> Array:
    """One draw, in the released order; steps that are off cost nothing."""
    keys = jax.random.split(key, 5)
    if options["rotate"]:
        image, _ = augment.random_affine(
            keys[0],
            image,
            None,
            degrees=options["degrees"],
            scale=(1.0, 1.0),
            shift=0.0,
            probability=options["rotate"],
        )
    image, _ = augment.random_resized_crop(
        keys[1],
        image,
        None,
        size=options["crop"],
        area=tuple(options["area"]),
        aspect=tuple(options["aspect"]),
    )
    if options["blur"]:
        sigma = tuple(options["blur_sigma"])
        image = augment.random_blur(
            keys[2],
            image,
            sigma=sigma,
            probability=options["blur"],
            radius=math.ceil(3 * sigma[1]),
        )
    image, _ = augment.random_flip(
        keys[3],
        image,
        None,
        horizontal=options["flip_horizontal"],
        vertical=options["flip_vertical"],
    )
    return noise(keys[4], image, options)


VIEW = View(two_views, defaults, check)
