"""The tensors of a state_dict as our parameters: shapes, widths, and what does not fit."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cmunet_jax.interop import layouts, torch_names
from cmunet_jax.interop.layouts import Layout
from cmunet_jax.interop.state_dicts import StateDict
from cmunet_jax.interop.torch_names import Entry
from cmunet_jax.models.initialise import shapes_of
from cmunet_jax.models.sparse import SparseUNet
from cmunet_jax.models.unet import STRIDE, UNet
from tfds_angio.errors import UserError

MAX_WIDTH, MAX_LISTED = 1024, 60
ONE_OUTPUT = ("genesis", "mae", "artery")
_FLOATS = ("float16", "bfloat16", "float32", "float64")


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
      notes: what was changed on the way, in words.
    """

    layout: str
    objective: str
    width: int
    up: str
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    mapped: Mapping[str, str]
    ignored: Mapping[str, str]
    notes: Sequence[str]


@dataclasses.dataclass(frozen=True)
class _Network:
    """What the shapes tell of the network."""

    width: int
    outputs: int
    up: str


def convert(
    found: StateDict, array: Callable[[Any], np.ndarray], *, one_output: str = "genesis"
) -> Imported:
    """Turns the tensors of a file into our parameters.

    Args:
      found: the tensors.
      array: the values of one of them.
      one_output: what a whole U-Net with one output is, which files do not tell: pre-trained to
        restore images ('genesis' or 'mae'), or a segmentation whose output is the artery's logit
        ('artery').

    Raises:
      UserError: if it is no network of ours; lists what is missing, left over or of another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in found.tensors.items()}
    layout = layouts.recognise(shapes)
    network = _network(layout, shapes)
    parts = [
        p for p in layout.parts if not p.optional or any(n.startswith(p.torch) for n in shapes)
    ]
    entries = [entry for p in parts for entry in p.makes(p.torch, p.ours, network.up)]
    expected = _expected(layout, entries, shapes, network)
    absent = _absent_biases(layout, expected, shapes)
    wanted = {name: shape for name, shape in expected.items() if name not in absent}
    ignored = _ignored(layout, shapes, expected)
    _compare(shapes, wanted, ignored, layout, network)
    values, notes = _values(found.tensors, wanted, array)
    if absent:
        values |= {name: np.zeros(expected[name], np.float32) for name in absent}
        notes.append(f"{len(absent)} convolutions have no bias; ours have one of zero")
    if layout.skip_first:
        _swap_halves(values, entries)
    objective = layout.objective or "scratch"
    if not layout.objective and network.outputs == 1:
        if one_output == "artery":
            _add_background(values, entries)
            objective = "scratch"
            notes.append("its one output is the artery's logit; the background's became zero")
        else:
            objective = one_output
    params, batch_stats = torch_names.from_torch(values, entries)
    return Imported(
        layout=layout.title,
        objective=objective,
        width=network.width,
        up=network.up,
        params=params,
        batch_stats=batch_stats,
        mapped={e.torch: f"{e.collection}/{e.path}" for e in entries if e.torch in wanted},
        ignored={**found.left, **ignored},
        notes=[*found.notes, *notes],
    )


def _network(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> _Network:
    """Width, outputs and up-sampling, from the tensors that tell.

    A kernel that is missing or of another shape is for `_compare` to say, beside all others.
    """
    width = _width(layout, shapes)
    last = shapes.get(layout.last, ())
    outputs = last[0] if len(last) == 4 else 2
    up = "transposed" if not layout.sampling or layout.sampling in shapes else "bilinear"
    if not 1 <= width <= MAX_WIDTH or outputs not in (1, 2):
        raise UserError(
            f"the network in it has width {width} and {outputs} outputs. What can be imported has "
            f"a width of 1 to {MAX_WIDTH} and 2 outputs (background, artery), or 1."
        )
    return _Network(width, outputs, up)


def _width(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The width by the first kernel, unless most of the encoder's tensors tell another."""
    told: collections.Counter[int] = collections.Counter()
    for part in layout.parts:
        for entry in part.makes(part.torch, part.ours, "bilinear"):
            level = re.match(r"encoder/(?:down(\d)|bottleneck)/", entry.path)
            shape = shapes.get(entry.torch)
            if level and shape:
                outputs, rest = divmod(shape[0], 2 ** (int(level[1] or 5) - 1))
                told[outputs if not rest else 0] += 1
    first = shapes.get(layout.first, ())
    most, count = told.most_common(1)[0] if told else (0, 0)
    if most and (2 * count > told.total() or len(first) != 4):
        return most
    if len(first) != 4:
        found = f"has shape {list(first)}" if layout.first in shapes else "is missing"
        raise UserError(
            f"the weights are not complete: the first convolution, {layout.first}, {found}, "
            "expected [width, 1, 3, 3], and no other tensor tells the width."
        )
    return first[0]


def _absent_biases(
    layout: Layout, expected: Mapping[str, Any], shapes: Mapping[str, Any]
) -> list[str]:
    """Biases of convolutions in blocks, if the layout may lack them and all of them are missing."""
    names = [name for name in expected if re.search(r"double_conv\.[03]\.bias$", name)]
    return names if layout.without_bias and not any(name in shapes for name in names) else []


def _swap_halves(values: dict[str, np.ndarray], entries: Sequence[Entry]) -> None:
    """Exchanges [skip, up-sampled] for [up-sampled, skip] in the first kernel of each up block."""
    for entry in entries:
        if re.fullmatch(r"decoder/up\d/conv1/kernel", entry.path):
            kernel = values[entry.torch]
            # Twice as many skip channels as outputs would be another network; shapes are checked.
            skip = kernel.shape[0]
            values[entry.torch] = np.concatenate([kernel[:, skip:], kernel[:, :skip]], 1)


def _add_background(values: dict[str, np.ndarray], entries: Sequence[Entry]) -> None:
    """softmax(0, z) is sigmoid(z): a first output that is always zero."""
    for entry in entries:
        if entry.path.startswith("decoder/head/"):
            one = values[entry.torch]
            values[entry.torch] = np.concatenate([np.zeros_like(one), one])


def _expected(
    layout: Layout,
    entries: Sequence[Entry],
    shapes: Mapping[str, tuple[int, ...]],
    network: _Network,
) -> dict[str, tuple[int, ...]]:
    """The shape in PyTorch of each entry, in a network of ours."""
    width = network.width
    image = jax.ShapeDtypeStruct((1, STRIDE, STRIDE, 1), np.float32)
    if layout.objective == "spark":
        active = jax.ShapeDtypeStruct((1, 1, 1), np.bool_)
        trees = shapes_of(SparseUNet(width, up=network.up), image, active)
    else:
        made = shapes_of(UNet(width, network.outputs, up=network.up), image)
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
            reasons[name] = layouts.COUNTER
        for prefix, why in layout.ignored.items():
            if name.startswith(prefix):
                reasons[name] = why
    return reasons


def _compare(
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    ignored: Mapping[str, str],
    layout: Layout,
    network: _Network,
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
    lines = _likely(shapes, expected, layout)
    for title, names in groups.items():
        if names:
            more = [f"... and {len(names) - MAX_LISTED} more"] if len(names) > MAX_LISTED else []
            lines += [f"  {title} ({len(names)}):"]
            lines += [f"    {name}" for name in names[:MAX_LISTED] + more]
    if lines:
        raise UserError(
            f"the weights do not fit: read as {layout.title}, a network of width {network.width} "
            f"with {network.up} up-sampling.\n" + "\n".join(lines)
        )


def _likely(
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    layout: Layout,
) -> list[str]:
    """Lines on the two kernels by which networks differ most often, if they do not fit."""
    lines = []
    for title, name in (("first", layout.first), ("last", layout.last)):
        found, wanted = shapes.get(name), expected.get(name)
        if wanted is None or found == wanted:
            continue
        has = "is missing" if found is None else f"has shape {list(found)}"
        line = f"  look here first: the {title} convolution, {name}, {has}, expected {list(wanted)}"
        if title == "first" and found and found[:1] + found[2:] == wanted[:1] + wanted[2:]:
            line += f": it takes images of {found[1]} channels, ours are grey"
        lines.append(line)
    return lines


def _values(
    tensors: Mapping[str, Any],
    expected: Mapping[str, Any],
    array: Callable[[Any], np.ndarray],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The mapped tensors as float32, and a note if digits were lost."""
    values, wrong, rounded = {}, [], 0
    for name in expected:
        value = array(tensors[name])
        if value.dtype.name not in _FLOATS:
            wrong.append(f"{name} is {value.dtype.name}")
            continue
        if value.dtype == np.float64:
            rounded += 1
        values[name] = value.astype(np.float32)
        if not np.isfinite(values[name]).all():
            wrong.append(f"{name} has values that are not finite")
        elif name.endswith("running_var") and (values[name] < 0).any():
            wrong.append(f"{name} has a negative variance")
    if wrong:
        lines = "\n".join(f"  {line}" for line in wrong[:MAX_LISTED])
        raise UserError(f"the weights cannot be used ({len(wrong)}):\n{lines}")
    return values, [f"{rounded} tensors were float64 and are rounded"] if rounded else []
