"""Views: what an objective sees of a batch, made on the device.

Every entry of ``VIEWS`` makes named arrays from one example and one key; ``make_views`` maps it
over a batch. The key of an example is a function of (seed, view, step, index) alone, so a batch can
be made again at any time, on any number of devices, and microbatches do not matter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from cmunet_jax.data import augment
from cmunet_jax.data.keys import example_keys
from cmunet_jax.data.resample import resize
from tfds_angio.errors import UserError

Array = jax.Array
Example = Mapping[str, Array]
Options = Mapping[str, Any]
PATCH = 16  # pixels: the stride of the U-Net's bottleneck


@dataclasses.dataclass(frozen=True)
class View:
    """One way to look at an example.

    Attributes:
      make: (key, example, options, train) -> named arrays of one example. ``example`` holds image
        float32 [S, S, 1] and perhaps mask int32 [S, S].
      defaults: (size, preset) -> options.
      check: options -> None; raises a UserError.
    """

    make: Callable[[Array, Example, Options, bool], dict[str, Any]]
    defaults: Callable[[int, str], dict[str, Any]]
    check: Callable[[Options], None]


def _supervised_defaults(size: int, preset: str) -> dict[str, Any]:
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


def _supervised_check(options: Options) -> None:
    names = ("flip_horizontal", "flip_vertical", "rot90", "affine", "downscale", "blur", "gamma")
    _check_fractions(options, *names, "noise")
    _check_ranges(options, "scale", "downscale_factor", "blur_sigma", "gamma_range", "contrast")
    if options["downscale_factor"][1] > 1:
        raise UserError("config.views.downscale_factor must end at 1 or below: it only shrinks")
    if options["size"] % PATCH:
        raise UserError(f"config.views.size={options['size']} must be a multiple of {PATCH}")


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
    return _noise(keys["noise"], image, options)


def _noise(key: Array, image: Array, options: Options) -> Array:
    if not options["noise"]:
        return image
    return augment.random_noise(
        key, image, fraction=options["noise_fraction"], probability=options["noise"]
    )


def _online_target_defaults(size: int, preset: str) -> dict[str, Any]:
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


def _online_target_check(options: Options) -> None:
    _check_fractions(options, "flip_horizontal", "noise", "patch_ratio")
    _check_ranges(options, "area", "aspect")
    if options["area"][1] > 1:
        raise UserError("config.views.area must end at 1 or below: it is a part of the image")
    crop, base = options["crop"], options["base_size"]
    if crop < PATCH or crop % PATCH:
        raise UserError(f"config.views.crop={crop} must be a multiple of {PATCH}")
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
        "view_b": _noise(keys[3], shifted, options),
        "patches": augment.random_patch_mask(
            keys[4], size=crop, patch=PATCH, ratio=options["patch_ratio"]
        ),
    }


VIEWS: dict[str, View] = {
    "supervised": View(supervised, _supervised_defaults, _supervised_check),
    "online_target": View(online_target, _online_target_defaults, _online_target_check),
}


def default_options(name: str, size: int, *, preset: str = "fixed") -> dict[str, Any]:
    """What ``config.views`` starts from for one view.

    Args:
      name: of ``VIEWS``.
      size: side of the prepared images in pixels.
      preset: ``paper`` or ``fixed``.
    """
    return _view(name).defaults(size, preset)


def check(names: Sequence[str], config: Options) -> None:
    """Raises a UserError that names the option if a view cannot be made from ``config.views``."""
    for name in names:
        view, options = _view(name), _options_of(name, names, config)
        for key in view.defaults(256, "fixed"):
            if key not in options:
                raise UserError(f"config.views.{key} is missing, which the view '{name}' needs")
        view.check(options)


def make_views(
    names: Sequence[str],
    batch: Mapping[str, Array],
    *,
    seed: int | Array,
    step: int | Array,
    config: Options,
    train: bool,
) -> dict[str, Array]:
    """Makes the named views of a decoded batch; jit-able in batch, seed and step.

    Args:
      names: of ``VIEWS``; their arrays must have different names.
      batch: image float32 [B, S, S, 1], index int32 [B] and perhaps mask int32 [B, S, S].
      seed: of the run.
      step: optimiser step; ignored when not training, so that validation always sees the same.
      config: ``config.views``: the options of the one view, or a dict of them by name.
      train: whether to augment.

    Returns:
      The arrays of all views, leading dimension B.

    Raises:
      UserError: on unusable options or missing masks.
    """
    check(names, config)
    made: dict[str, Array] = {}
    for name in names:
        view, options = VIEWS[name], _options_of(name, names, config)
        stream = f"view/{name}/{'train' if train else 'evaluation'}"
        keys = example_keys(seed, stream, step if train else 0, batch["index"])
        example = {key: batch[key] for key in ("image", "mask") if key in batch}

        def one(key: Array, example: Example, view=view, options=options) -> dict[str, Array]:
            return view.make(key, example, options, train)

        arrays = jax.vmap(one)(keys, example)
        repeated = made.keys() & arrays.keys()
        if repeated:
            raise ValueError(f"views {list(names)} both make {sorted(repeated)}")
        made.update(arrays)
    return made


def _view(name: str) -> View:
    if name not in VIEWS:
        raise UserError(f"view '{name}' is unknown; there are {', '.join(VIEWS)}")
    return VIEWS[name]


def _options_of(name: str, names: Sequence[str], config: Options) -> Options:
    return config[name] if len(names) > 1 else config


def _check_fractions(options: Options, *names: str) -> None:
    for name in names:
        if not 0 <= options[name] <= 1:
            raise UserError(f"config.views.{name}={options[name]} must lie in 0..1")


def _check_ranges(options: Options, *names: str) -> None:
    for name in names:
        values = tuple(options[name])
        if len(values) != 2 or not 0 < values[0] <= values[1]:
            raise UserError(f"config.views.{name}={values} must be a range (low, high), low > 0")
