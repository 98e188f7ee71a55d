"""What networks the names of a state_dict can be, and its tensors as our parameters.

A `Layout` is one kind of file: by which names it is recognised, which of our objectives it is, what
its parts are called and what may be left out of it, each with a reason. Every tensor of a file is
either mapped or ignored for such a reason; anything else is an error that lists it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from cmunet_jax.interop import torch_names
from cmunet_jax.interop.torch_names import Entry
from tfds_angio.errors import UserError

COUNTER = "counts batches; evaluation has no use for it"
_MOMENTUM = "momentum copy, of use in pre-training only"

Makes = Callable[[str, str, str], list[Entry]]
"""(prefix in the file, path of ours, kind of up-sampling) -> entries."""


def _encoder(torch: str, ours: str, up: str) -> list[Entry]:
    return torch_names.encoder_entries(torch, ours)


def _decoder(torch: str, ours: str, up: str) -> list[Entry]:
    return torch_names.decoder_entries(torch, ours, up=up)


def _projector(torch: str, ours: str, up: str) -> list[Entry]:
    return torch_names.projector_entries(torch, ours)


def _common_name(name: str) -> str:
    """Our name of a tensor -> that of the widespread U-Net with inc, down1-4, up1-4 and outc."""
    name = re.sub(r"^down_conv1\.double_conv\.", "inc.", name)
    name = re.sub(
        r"^down_conv(\d)\.double_conv\.",
        lambda found: f"down{int(found[1]) - 1}.maxpool_conv.1.",
        name,
    )
    name = re.sub(r"^double_conv\.", "down4.maxpool_conv.1.", name)
    name = re.sub(r"^up_conv(\d)\.", lambda found: f"up{5 - int(found[1])}.", name)
    name = name.replace(".up_sample.", ".up.").replace(
        ".double_conv.double_conv.", ".conv.double_conv."
    )
    return name.replace("conv_last.", "outc.conv.")


def _common_encoder(torch: str, ours: str, up: str) -> list[Entry]:
    return [_renamed(entry) for entry in torch_names.encoder_entries("", ours)]


def _common_decoder(torch: str, ours: str, up: str) -> list[Entry]:
    return [_renamed(entry) for entry in torch_names.decoder_entries("", ours, up=up)]


def _renamed(entry: Entry) -> Entry:
    return dataclasses.replace(entry, torch=_common_name(entry.torch))


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
      first: the kernel whose shape tells the width.
      last: the kernel whose shape tells the outputs; '' where there is no decoder.
      sampling: a name that only transposed convolutions give.
      ignored: {prefix: why it is not mapped}.
      skip_first: whether its blocks take [skip, up-sampled], where ours take [up-sampled, skip].
      without_bias: whether its convolutions may have no bias (before a norm it has no effect).
    """

    title: str
    objective: str
    signs: tuple[str, ...]
    parts: tuple[Part, ...]
    first: str
    last: str = ""
    sampling: str = ""
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    skip_first: bool = False
    without_bias: bool = False


def _kernels(encoder: str, decoder: str | None = None) -> dict[str, Any]:
    """The three names that tell width, outputs and up-sampling, behind these prefixes."""
    first = f"{encoder}down_conv1.double_conv.double_conv.0.weight"
    if decoder is None:
        return {"first": first}
    last, sampling = f"{decoder}conv_last.weight", f"{decoder}up_conv1.up_sample.weight"
    return {"first": first, "last": last, "sampling": sampling}


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
        **_kernels("backbone.", "pixel_decoder."),
        ignored={
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
        **_kernels("sparse_encoder.sp_cnn.", "dense_decoder."),
        ignored={
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
        **_kernels("encoder_q."),
        ignored={
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
        **_kernels("", ""),
    ),
    Layout(
        "U-Net of an encoder and a decoder",
        "",
        ("encoder.down_conv1.", "decoder.up_conv1."),
        (Part("encoder.", "encoder", _encoder), Part("decoder.", "decoder", _decoder)),
        **_kernels("encoder.", "decoder."),
    ),
    Layout(
        "U-Net with inc, down1-4, up1-4, outc",
        "",
        ("inc.double_conv.", "down4.maxpool_conv.1.", "up1.conv.double_conv.", "outc.conv."),
        (Part("", "encoder", _common_encoder), Part("", "decoder", _common_decoder)),
        first="inc.double_conv.0.weight",
        last="outc.conv.weight",
        sampling="up4.up.weight",
        skip_first=True,
        without_bias=True,
    ),
    *(
        Layout(
            "encoder",
            "moco",
            (f"{p}down_conv1.",),
            (Part(p, "encoder", _encoder),),
            **_kernels(p),
        )
        for p in ("", "encoder.", "backbone.")
    ),
)
"""In the order in which they are tried: the first whose signs are all there is it."""


def _is_halved(layout: Layout, shapes: Mapping[str, Any]) -> bool:
    """Whether the widespread U-Net has 8 times its width at the coarsest level, where ours has 16.

    Its bilinear form does, as bilinear up-sampling does not halve the channels.
    """
    first, last = (
        shapes.get(name) for name in (layout.first, "down4.maxpool_conv.1.double_conv.3.weight")
    )
    return bool(layout.sampling not in shapes and first and last and last[0] == 8 * first[0])


def recognise(names: Mapping[str, Any]) -> Layout:
    """The layout of a state_dict, given as {name: shape}.

    Raises:
      UserError: if it is none, with some of the names, or is known to be another network.
    """
    for layout in LAYOUTS:
        if all(any(name.startswith(sign) for name in names) for sign in layout.signs):
            if layout.skip_first and _is_halved(layout, names):
                raise UserError(
                    f"it is a {layout.title} of the form bilinear=True, which has half the "
                    "channels before each up-sampling: another network than ours, so its weights "
                    "have no place. Only the form with transposed convolutions (bilinear=False) "
                    "can be imported."
                )
            return layout
    listed = [f"  {ascii(name)[1:-1]:.100} {list(names[name])}" for name in sorted(names)[:12]]
    more = [f"  ... and {len(names) - 12} more"] if len(names) > 12 else []
    raise UserError(
        "the names in it are of no network that can be imported; docs/weights.md lists those:\n"
        + "\n".join(listed + more)
    )
