"""The view that learns from labels: image and mask, augmented alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax

from cmunet_jax.data import augment
from cmunet_jax.data.resample import resize
from cmunet_jax.data.views.common import (
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
    """Fine-tuning augmentation (paper, section on evaluation; it gives no ranges).

    Probabilities are in 0..1 and 0 switches a step off. ``paper`` has the released kinds: flips,
    quarter turns, noise, blur, brightness, loss of resolution. ``fixed`` adds what angiographic
    systems vary: the angle, the magnification, contrast and gamma.
    """
    fixed = preset == "fixed"
    return {
        "size": size,  # pixels, of the views
        "flip_horizontal": 0.5,
        "flip_vertical": 0.5,
        "rot90": 1.0,  # one of the four quarter turns
        "affine": 0.5 if fixed else 0.0,
        "degrees": 20.0,  # the angle is uniform in ± this
        "scale": (0.8, 1.25),  # magnification, log-uniform
        "shift": 0.05,  # ±, of the side
        "downscale": 0.25,
        "downscale_factor": (0.5, 1.0),
        "blur": 0.25,
        "blur_sigma": (0.1, 1.0),  # pixels
        "gamma": 0.25 if fixed else 0.0,
        "gamma_range": (0.7, 1.4),  # log-uniform
        "brightness": 0.2,  # ±, in standard deviations
        "contrast": (0.8, 1.25) if fixed else (1.0, 1.0),  # log-uniform
        "noise": 0.5,
        "noise_fraction": 0.1,  # sigma, as a fraction of the image's maximum
    }


def check(options: Options) -> None:
    """Raises UserError, naming the option, where the view cannot be made."""
    names = ("flip_horizontal", "flip_vertical", "rot90", "affine", "downscale", "blur", "gamma")
    check_fractions(options, *names, "noise")
    check_ranges(options, "scale", "downscale_factor", "blur_sigma", "gamma_range", "contrast")
    if options["downscale_factor"][1] > 1:
        raise UserError("config.views.downscale_factor must end at 1 or below: it only shrinks")
    check_side(options, "size")


def supervised(key: Array, example: Example, options: Options, train: bool) -> dict[str, Any]:
    """Image float32 [s, s, 1] and mask int32 [s, s], augmented alike when training."""
    if "mask" not in example:
        raise UserError("the supervised view needs masks: prepare the split with masks")
    image, mask = resize(example["image"], example["mask"], size=options["size"])
    if not train:
        return {"image": image, "mask": mask}
    keys = dict(zip(_STEPS, jax.random.split(key, len(_STEPS))))
    image, mask = augment.random_flip(
        keys["flip"],
        image,
        mask,
        horizontal=options["flip_horizontal"],
        vertical=options["flip_vertical"],
    )
    if options["rot90"]:
        image, mask = augment.random_rot90(keys["rot90"], image, mask, probability=options["rot90"])
    if options["affine"]:
        image, mask = augment.random_affine(
            keys["affine"],
            image,
            mask,
            degrees=options["degrees"],
            scale=tuple(options["scale"]),
            shift=options["shift"],
            probability=options["affine"],
        )
    return {"image": _grey_levels(keys, image, options), "mask": mask}


_STEPS = (
    "flip",
    "rot90",
    "affine",
    "downscale",
    "blur",
    "gamma",
    "brightness",
    "contrast",
    "noise",
)


def _grey_levels(keys: Mapping[str, Array], image: Array, options: Options) -> Array:
    """What happens to the image alone; steps that are off cost nothing."""
    if options["downscale"]:
        image = augment.random_downscale(
            keys["downscale"],
            image,
            factor=tuple(options["downscale_factor"]),
            probability=options["downscale"],
        )
    if options["blur"]:
        sigma = tuple(options["blur_sigma"])
        image = augment.random_blur(
            keys["blur"],
            image,
            sigma=sigma,
            probability=options["blur"],
            radius=math.ceil(3 * sigma[1]),
        )
    if options["gamma"]:
        image = augment.random_gamma(
            keys["gamma"], image, gamma=tuple(options["gamma_range"]), probability=options["gamma"]
        )
    if options["brightness"]:
        image = augment.random_brightness(keys["brightness"], image, delta=options["brightness"])
    if tuple(options["contrast"]) != (1, 1):
        image = augment.random_contrast(keys["contrast"], image, factor=tuple(options["contrast"]))
    return noise(keys["noise"], image, options)


VIEW = View(supervised, defaults, check)
