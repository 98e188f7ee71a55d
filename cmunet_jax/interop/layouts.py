"""What networks the names of a state_dict can be, and its tensors as our parameters.

A `Layout` is one kind of file: by which names it is recognised, which of our objectives it is, what
its parts are called and what may be left out of it, each with a reason. Every tensor of a file is
either mapped or ignored for such a reason; anything else is an error that lists it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cmunet_jax.interop import torch_names
from cmunet_jax.interop.state_dicts import StateDict
from cmunet_jax.interop.torch_names import Entry
from cmunet_jax.models.initialise import shapes_of
from cmunet_jax.models.sparse import SparseUNet
from cmunet_jax.models.unet import STRIDE, UNet
from tfds_angio.errors import UserError

MAX_WIDTH, MAX_LISTED = 1024, 60
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_COUNTER = "counts batches; evaluation has no use for it"
_MOMENTUM = "momentum copy, of use in pre-training only"
_FIRST_KERNEL = "down_conv1.double_conv.double_conv.0.weight"

Makes = Callable[[str, str, str], list[Entry]]
"""(prefix in the file, path of ours, kind of up-sampling) -> entries."""


def _encoder(torch: str, ours: str, up: str) -> list[Entry]:
    return torch_names.encoder_entries(torch, ours)


def _decoder(torch: str, ours: str, up: str) -> list[Entry]:
    return torch_names.decoder_entries(torch, ours, up=up)


def _projector(torch: str, ours: str, up: str) -> list[Entry]:
    return torch_names.projector_entries(torch, ours)


def _spark(torch: str, ours: str, up: str) -> list[Entry]:
    return torch_names.spark_entries(torch, up=up)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a network.

    Attributes:
      torch: prefix of its names in the file.
      ours: its path in our parameters.
      makes: its entries.
      optional: whether a file may lack it, as a whole.
    """

    torch: str
    ours: str
    makes: Makes
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class Layout:
    """One kind of file.

    Attributes:
      title: for messages.
      objective: what it is here: a name of `objectives.OBJECTIVES`, or '' for whole U-Nets, whose
        outputs tell.
      signs: prefixes that must all occur among the names.
      parts: what is mapped.
      encoder, decoder: prefix of the encoder and of the decoder whose shapes tell the network.
      ignored: {prefix: why it is not mapped}.
    """

    title: str
    objective: str
    signs: tuple[str, ...]
    parts: tuple[Part, ...]
    encoder: str
    decoder: str | None
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)


LAYOUTS = (
    Layout(
        "CM-UNet pre-training",
        "cmunet",
        ("backbone.down_conv1.", "pixel_decoder."),
        (
            Part("backbone.", "encoder", _encoder),
            Part("pixel_decoder.", "pixel_decoder", _decoder),
            Part("feature_decoder.", "feature_decoder", _decoder, optional=True),
            Part("projector.", "projector", _projector, optional=True),
            Part("head.predictor.", "predictor", _projector, optional=True),
        ),
        "backbone.",
        "pixel_decoder.",
        {
            "target_backbone.": _MOMENTUM,
            "target_projector.": _MOMENTUM,
            "adapter.": "drawn anew at every step, as released",
            "data_preprocessor.": "constants of the image loader; preprocessing is ours",
        },
    ),
    Layout(
        "SparK pre-training",
        "spark",
        ("sparse_encoder.sp_cnn.down_conv1.",),
        (Part("", "", _spark),),
        "sparse_encoder.sp_cnn.",
        "dense_decoder.",
        {
            "densify_projs.": "of SparK's light decoder; a U-Net decoder has no use for them",
            "imn_m": "a constant for pictures",
            "imn_s": "a constant for pictures",
            "norm_black": "a constant for pictures",
        },
    ),
    Layout(
        "MoCo v2 pre-training",
        "moco",
        ("encoder_q.down_conv1.",),
        (Part("encoder_q.", "encoder", _encoder),),
        "encoder_q.",
        None,
        {
            "encoder_q.fc.": "projection head, which fine-tuning does not use",
            "encoder_k.": _MOMENTUM,
            "queue": "keys of earlier images, of use in pre-training only",
            "val_queue": "keys of earlier images, of use in pre-training only",
        },
    ),
    Layout(
        "U-Net",
        "",
        ("down_conv1.", "up_conv1."),
        (Part("", "encoder", _encoder), Part("", "decoder", _decoder)),
        "",
        "",
    ),
    Layout(
        "U-Net of an encoder and a decoder",
        "",
        ("encoder.down_conv1.", "decoder.up_conv1."),
        (Part("encoder.", "encoder", _encoder), Part("decoder.", "decoder", _decoder)),
        "encoder.",
        "decoder.",
    ),
    *(
        Layout("encoder", "moco", (f"{p}down_conv1.",), (Part(p, "encoder", _encoder),), p, None)
        for p in ("", "encoder.", "backbone.")
    ),
)
"""In the order in which they are tried: the first whose signs are all there is it."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """Weights as ours.

    Attributes:
      layout: title of the kind of file.
      objective: the name of the objective that they belong to.
      width: of the finest level.
      up: 'transposed' or 'bilinear'.
      params, batch_stats: nested dicts of float32 arrays.
      mapped: {name in the file: path of ours}.
      ignored: {name in the file: why}.
      rounded: names of tensors that were float64.
    """

    layout: str
    objective: str
    width: int
    up: str
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    mapped: Mapping[str, str]
    ignored: Mapping[str, str]
    rounded: Sequence[str]


def convert(
    found: StateDict, array: Callable[[Any], np.ndarray], *, restores: str = "genesis"
) -> Imported:
    """Turns the tensors of a file into our parameters.

    Args:
      found: the tensors.
      array: the values of one of them.
      restores: the objective that a whole U-Net with one output was trained with, which files do
        not tell: 'genesis' or 'mae'.

    Raises:
      UserError: if it is no network of ours; lists what is missing, left over or of another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in found.tensors.items()}
    layout = recognise(shapes)
    width = _first(shapes, layout.encoder + _FIRST_KERNEL, 4)
    up = "transposed"
    outputs = 2
    if layout.decoder is not None:
        outputs = _first(shapes, f"{layout.decoder}conv_last.weight", 4)
        if not any(n.startswith(f"{layout.decoder}up_conv1.up_sample.") for n in shapes):
            up = "bilinear"
    if not 1 <= width <= MAX_WIDTH or outputs not in (1, 2):
        raise UserError(
            f"the network in it has width {width} and {outputs} outputs. What can be imported has "
            f"a width of 1 to {MAX_WIDTH} and 2 outputs (background, artery), or 1 where it was "
            "pre-trained to restore images."
        )
    parts = [
        p for p in layout.parts if not p.optional or any(n.startswith(p.torch) for n in shapes)
    ]
    entries = [entry for p in parts for entry in p.makes(p.torch, p.ours, up)]
    expected = _expected(layout, entries, shapes, width, outputs, up)
    ignored = _ignored(layout, shapes, expected)
    _compare(shapes, expected, ignored, layout, width, up)
    values, rounded = _values(found.tensors, expected, array)
    params, batch_stats = torch_names.from_torch(values, entries)
    return Imported(
        layout=layout.title,
        objective=layout.objective or ("scratch" if outputs == 2 else restores),
        width=width,
        up=up,
        params=params,
        batch_stats=batch_stats,
        mapped={e.torch: f"{e.collection}/{e.path}" for e in entries},
        ignored={**found.left, **ignored},
        rounded=rounded,
    )


def recognise(names: Mapping[str, Any]) -> Layout:
    """The layout of a state_dict.

    Raises:
      UserError: with some of the names, if it is none.
    """
    for layout in LAYOUTS:
        if all(any(name.startswith(sign) for name in names) for sign in layout.signs):
            return layout
    listed = [f"  {ascii(name)[1:-1]:.100} {list(names[name])}" for name in sorted(names)[:12]]
    more = [f"  ... and {len(names) - 12} more"] if len(names) > 12 else []
    raise UserError(
        "the names in it are of no network that can be imported; docs/weights.md lists those:\n"
        + "\n".join(listed + more)
    )


def _first(shapes: Mapping[str, tuple[int, ...]], name: str, rank: int) -> int:
    shape = shapes.get(name)
    if shape is None or len(shape) != rank:
        found = "is missing" if shape is None else f"has shape {list(shape)}, not {rank} axes"
        raise UserError(f"the weights are not complete: {name} {found}.")
    return shape[0]


def _expected(
    layout: Layout,
    entries: Sequence[Entry],
    shapes: Mapping[str, tuple[int, ...]],
    width: int,
    outputs: int,
    up: str,
) -> dict[str, tuple[int, ...]]:
    """The shape in PyTorch of each entry, in a network of ours."""
    image = jax.ShapeDtypeStruct((1, STRIDE, STRIDE, 1), np.float32)
    if layout.objective == "spark":
        active = jax.ShapeDtypeStruct((1, 1, 1), np.bool_)
        trees = shapes_of(SparseUNet(width, up=up), image, active)
    else:
        made = shapes_of(UNet(width, outputs, up=up), image)
        trees = {
            kind: {
                "encoder": made[kind]["encoder"],
                **dict.fromkeys(
                    ("decoder", "pixel_decoder", "feature_decoder"), made[kind]["decoder"]
                ),
                # A projector is bound to the size of the images, which nothing else tells.
                "projector": _head(kind, width, _inputs(shapes, "projector.fc0.weight")),
                "predictor": _head(kind, width, 4 * width),
            }
            for kind in ("params", "batch_stats")
        }
    return {
        e.torch: torch_names.torch_shape(e, torch_names.get(trees[e.collection], e.path).shape)
        for e in entries
    }


def _inputs(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    """Pixels of the images that a projector takes: the square of a multiple of 16."""
    shape = shapes.get(name, ())
    side = math.isqrt(shape[1]) if len(shape) == 2 else STRIDE
    return max(STRIDE, side // STRIDE * STRIDE) ** 2


def _head(kind: str, width: int, inputs: int) -> dict[str, Any]:
    """Shapes of a projector: inputs -> 24·width -> 4·width."""
    hidden, outputs = 24 * width, 4 * width
    sizes: dict[str, dict[str, tuple[int, ...]]] = {
        "params": {
            "fc0/kernel": (inputs, hidden),
            "fc0/bias": (hidden,),
            "bn0/scale": (hidden,),
            "bn0/bias": (hidden,),
            "fc1/kernel": (hidden, outputs),
        },
        "batch_stats": {"bn0/mean": (hidden,), "bn0/var": (hidden,)},
    }
    tree: dict[str, Any] = {}
    for path, size in sizes[kind].items():
        layer, leaf = path.split("/")
        tree.setdefault(layer, {})[leaf] = jax.ShapeDtypeStruct(size, np.float32)
    return tree


def _ignored(
    layout: Layout, names: Mapping[str, Any], expected: Mapping[str, Any]
) -> dict[str, str]:
    """{name: why} of the tensors that are known and not mapped."""
    reasons = {}
    for name in names:
        if name in expected:
            continue
        if name.endswith(".num_batches_tracked"):
            reasons[name] = _COUNTER
        for prefix, why in layout.ignored.items():
            if name.startswith(prefix):
                reasons[name] = why
    return reasons


def _compare(
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    ignored: Mapping[str, str],
    layout: Layout,
    width: int,
    up: str,
) -> None:
    """Raises a UserError that lists every name and shape which does not fit."""
    groups = {
        "missing": [f"{n} {list(expected[n])}" for n in expected if n not in shapes],
        "left over": [
            f"{ascii(n)[1:-1]:.100} {list(shapes[n])}"
            for n in shapes
            if n not in expected and n not in ignored
        ],
        "of another shape": [
            f"{n}: {list(shapes[n])}, expected {list(expected[n])}"
            for n in expected
            if n in shapes and shapes[n] != expected[n]
        ],
    }
    lines = []
    for title, names in groups.items():
        if names:
            more = [f"... and {len(names) - MAX_LISTED} more"] if len(names) > MAX_LISTED else []
            lines += [f"  {title} ({len(names)}):"]
            lines += [f"    {name}" for name in names[:MAX_LISTED] + more]
    if lines:
        raise UserError(
            f"the weights do not fit: read as {layout.title}, a network of width {width} with "
            f"{up} up-sampling.\n" + "\n".join(lines)
        )


def _values(
    tensors: Mapping[str, Any],
    expected: Mapping[str, Any],
    array: Callable[[Any], np.ndarray],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The mapped tensors as float32, and the names of those that lost digits."""
    values, rounded, wrong = {}, [], []
    for name in expected:
        value = array(tensors[name])
        if value.dtype.name not in _FLOATS:
            wrong.append(f"{name} is {value.dtype.name}")
            continue
        if value.dtype == np.float64:
            rounded.append(name)
        values[name] = value.astype(np.float32)
        if not np.isfinite(values[name]).all():
            wrong.append(f"{name} has values that are not finite")
        elif name.endswith("running_var") and (values[name] < 0).any():
            wrong.append(f"{name} has a negative variance")
    if wrong:
        lines = "\n".join(f"  {line}" for line in wrong[:MAX_LISTED])
        raise UserError(f"the weights cannot be used ({len(wrong)}):\n{lines}")
    return values, rounded
