"""Files as each method's program writes them, by the real torch.save: every tensor is ours after.

The fixtures are made by tests/interop/make_fixtures.py; their values by tests/interop/patterns.py,
in PyTorch's names and layouts, so nothing here needs PyTorch.
"""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmunet_jax.interop import importing, layouts, safetensors_file, state_dicts, torch_names
from cmunet_jax.models.initialise import shapes_of
from cmunet_jax.models.unet import UNet
from tests.conftest import ROOT
from tests.golden import case as golden
from tests.interop.patterns import pattern
from tests.interop.torch_writer import write_legacy, write_zip
from tfds_angio.errors import UserError

FIXTURES = ROOT / "tests" / "interop" / "fixtures"
COUNTERS = "counts batches; evaluation has no use for it"


def unpack(name, folder):
    path = folder / name
    path.write_bytes(gzip.decompress((FIXTURES / f"{name}.gz").read_bytes()))
    return path


def unet_state(width=2, outputs=2, up="transposed", prefix=""):
    """A state_dict of patterns, in PyTorch's names and shapes."""
    shapes = shapes_of(UNet(width, outputs, up=up), jnp.zeros((1, 16, 16, 1)))
    entries = torch_names.unet_entries(up=up)
    return {
        prefix + e.torch: pattern(
            e.torch,
            torch_names.torch_shape(e, torch_names.get(shapes[e.collection], e.path).shape),
        )
        for e in entries
    }  # fmt: skip


CASES = {
    # name: layout, objective, kind, prefix, leaves mapped
    "cmunet.pth": ("CM-UNet pre-training", "cmunet", "zip", "", 190),
    "spark.pth": ("SparK pre-training", "spark", "zip", "", 143),
    "moco.ckpt": ("MoCo v2 pre-training", "moco", "zip", "", 60),
    "genesis.pt": ("U-Net", "genesis", "legacy", "module.", 118),
    "ratio.pth": ("U-Net", "scratch", "zip", "", 118),
    "ratio_legacy.pth": ("U-Net", "scratch", "legacy", "module.", 118),
    "unet_half.pth": ("U-Net", "scratch", "zip", "", 118),
    "unet_bfloat16.pth": ("U-Net", "scratch", "zip", "", 118),
    "unet_double_legacy.pth": ("U-Net", "scratch", "legacy", "", 118),
    "encoder.pth": ("encoder", "moco", "zip", "", 60),
}


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_of_a_file_is_mapped_or_ignored_for_a_reason(name, tmp_path):
    imported, origin = importing.read(unpack(name, tmp_path))
    layout, objective, kind, prefix, count = CASES[name]
    assert (imported.layout, imported.objective, origin.kind) == (layout, objective, kind)
    assert (origin.prefix, imported.width, imported.up) == (prefix, 2, "transposed")
    assert (
        len(imported.mapped)
        == count
        == len(jax.tree.leaves(imported.params)) + len(jax.tree.leaves(imported.batch_stats))
    )
    assert all(imported.ignored.values()) and COUNTERS in imported.ignored.values()
    trees = {"params": imported.params, "batch_stats": imported.batch_stats}
    layouts = {
        e.torch: e.layout
        for e in (
            *torch_names.unet_entries(),
            *torch_names.spark_entries(),
            *torch_names.encoder_entries("backbone."),
            *torch_names.encoder_entries("encoder_q."),
            *torch_names.decoder_entries("pixel_decoder."),
            *torch_names.decoder_entries("feature_decoder."),
            *torch_names.projector_entries("projector.", "projector"),
            *torch_names.projector_entries("head.predictor.", "predictor"),
        )
    }
    for torch, path in imported.mapped.items():
        leaf = torch_names.get(trees, path)
        back = torch_names._TO_TORCH[layouts[torch]](leaf)
        np.testing.assert_array_equal(back, pattern(torch, back.shape), err_msg=torch)
        assert leaf.dtype == np.float32


def test_what_a_checkpoint_holds_beside_its_weights_is_told(tmp_path):
    imported, origin = importing.read(unpack("cmunet.pth", tmp_path))
    assert origin.facts["epoch"] == 300 and origin.facts["mmengine_version"] == "0.10.3"
    assert imported.ignored["optimizer"] == "state of the optimiser"
    assert imported.ignored["message_hub"] == "log of the training"
    momentum = "momentum copy, of use in pre-training only"
    assert imported.ignored["target_projector.fc1.weight"] == momentum
    assert set(imported.params) == {
        "encoder", "pixel_decoder", "feature_decoder", "projector", "predictor"
    }  # fmt: skip
    spark, _ = importing.read(unpack("spark.pth", tmp_path))
    assert spark.ignored["config"] == "not a tensor"
    text = importing.summary(imported, origin)
    assert "190 tensors mapped" in text and "28 x counts batches" in text


@pytest.mark.parametrize(
    ("beside", "place"),
    [
        ({"model": unet_state()}, "model"),
        ({"ema": {"state_dict": unet_state(), "decay": 0.9}}, "ema.state_dict"),
        ({"callbacks": {"EMA": {"weights": unet_state()}}}, "callbacks.EMA.weights"),
    ],
)
def test_another_set_of_weights_in_the_file_is_counted_and_said(tmp_path, beside, place):
    path = write_zip(tmp_path / "two.pth", {"state_dict": unet_state(), **beside})
    imported, origin = importing.read(path)
    assert imported.ignored[place] == "118 tensors of another set of weights, not imported"
    (note,) = (x for x in importing.summary(imported, origin).splitlines() if "taken" in x)
    assert f"another set: {place} (118 tensors)" in note and "under 'state_dict'" in note


def test_tensors_beside_the_weights_are_counted(tmp_path):
    one = np.zeros(3, np.float32)
    moments = {name: {"exp_avg": one} for name in unet_state()}
    beside = {
        "criterion": {"a": one, "more": {"b": one, "c": one}},
        "queue": one,
        "optimizer": moments,
        "callbacks": {"best": one},
        "seed": 3,
    }
    path = write_zip(tmp_path / "a.pth", {"state_dict": unet_state(), **beside})
    imported, _ = importing.read(path)
    assert imported.notes == [] and dict(imported.ignored) == {
        "criterion": "1 tensor beside the weights, not imported",
        "criterion.more": "2 tensors beside the weights, not imported",
        "queue": "1 tensor beside the weights, not imported",
        "optimizer": "state of the optimiser",
        "callbacks": "state of the training loop",
        "seed": "a record of the training",
    }
    loop = [list(unet_state().values())]
    loop.append(loop)
    found = state_dicts.find({"state_dict": unet_state(), "shadow": loop})
    assert found.left == {"shadow": "118 tensors of another set of weights, not imported"}


def test_float64_is_rounded_and_said_so(tmp_path):
    imported, origin = importing.read(unpack("unet_double_legacy.pth", tmp_path))
    assert imported.notes == ["118 tensors were float64 and are rounded"]
    assert "118 tensors were float64" in importing.summary(imported, origin)


@pytest.mark.parametrize("order", ["little", "big"])
def test_both_byte_orders_give_the_same_values(tmp_path, order):
    state = unet_state()
    imported, _ = importing.read(write_zip(tmp_path / "a.pth", state, order=order))
    kernel = imported.params["encoder"]["down2"]["conv1"]["kernel"]
    expected = state["down_conv2.double_conv.double_conv.0.weight"]
    np.testing.assert_array_equal(kernel, expected.transpose(2, 3, 1, 0))


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("prefix", ["", "module.", "model.module."])
def test_a_plain_state_dict_with_any_wrapper(tmp_path, write, prefix):
    path = write(tmp_path / "a.pt", unet_state(3, prefix=prefix))
    imported, origin = importing.read(path)
    assert (imported.width, imported.objective, origin.prefix) == (3, "scratch", prefix)


def test_bilinear_upsampling_is_seen_from_the_names(tmp_path):
    path = write_zip(tmp_path / "a.pth", unet_state(up="bilinear"))
    imported, _ = importing.read(path)
    assert imported.up == "bilinear" and "upsample1" not in imported.params["decoder"]


def test_a_network_that_restores_is_what_the_config_says(tmp_path):
    path = write_zip(tmp_path / "a.pth", unet_state(outputs=1))
    assert importing.read(path)[0].objective == "genesis"
    assert importing.read(path, one_output="mae")[0].objective == "mae"


def test_our_own_safetensors_come_back_exactly(tmp_path):
    rng = np.random.default_rng(0)
    shapes = shapes_of(UNet(2), jnp.zeros((1, 16, 16, 1)))
    params, stats = (
        jax.tree.map(lambda x: rng.random(x.shape).astype(np.float32), shapes[kind])
        for kind in ("params", "batch_stats")
    )
    path = tmp_path / "a.safetensors"
    safetensors_file.write(path, params, stats, {"digest": "abc"})
    imported, origin = importing.read(path)
    jax.tree.map(
        np.testing.assert_array_equal, (imported.params, imported.batch_stats), (params, stats)
    )
    assert origin.kind == "safetensors" and origin.facts == {"metadata": {"digest": "abc"}}
    assert imported.objective == "scratch" and not imported.ignored


@pytest.mark.parametrize(
    "stem", ["public_unet_w8", pytest.param("oracle_unet_w6", marks=pytest.mark.slow)]
)
def test_imported_formula_weights_give_the_golden_logits(tmp_path, stem):
    stored = dict(np.load(ROOT / "tests" / "golden" / "fixtures" / f"{stem}.npz"))
    width, seed = golden.width_of(stem), int(stored["seed"])
    shapes = {name: value.shape for name, value in unet_state(width).items()}
    state = {name: golden.formula(name, shape, seed) for name, shape in shapes.items()}
    imported, _ = importing.read(write_legacy(tmp_path / "a.pth", {"state_dict": state}))
    variables = {"params": imported.params, "batch_stats": imported.batch_stats}
    network = UNet(imported.width)
    forward = jax.jit(lambda weights, x: network.apply(weights, x, train=False))
    logits = forward(variables, stored["x"][..., None])
    np.testing.assert_allclose(np.moveaxis(logits, -1, 1), stored["logits_eval"], atol=1e-4)


def changed(**changes):
    """A state_dict with some tensors exchanged, or removed where None is given."""
    state = unet_state()
    for name, value in changes.items():
        name = name.replace("__", ".")
        state.pop(name, None)
        if value is not None:
            state[name] = value
    return state


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(conv_last__bias=None), r"(?s)do not fit.*missing \(1\):\n +conv_last.bias \[2\]"),
        (changed(fc__weight=np.zeros((3, 5))), r"(?s)left over \(1\):\n +fc.weight \[3, 5\]"),
        (
            changed(conv_last__bias=np.zeros(3)),
            r"(?s)of another shape \(1\):\n +conv_last.bias: \[3\], expected \[2\]",
        ),
        (changed(conv_last__weight=np.zeros((7, 2, 1, 1))), "width 2 and 7 outputs"),
        (
            changed(conv_last__weight=None),
            r"(?s)the last convolution, conv_last.weight, is missing, expected \[2, 2, 1, 1\]\n"
            r" +missing \(1\):\n +conv_last.weight \[2, 2, 1, 1\]",
        ),
        (changed(conv_last__bias=np.zeros(2, "i8")), "conv_last.bias is int64"),
        (changed(conv_last__bias=np.array([1, np.nan])), "conv_last.bias has values that are not"),
        (
            {k: np.repeat(v, 2, 1) if k.endswith("1.double_conv.double_conv.0.weight") else v
             for k, v in unet_state().items()},
            r"(?s)of another shape.*down_conv1.double_conv.double_conv.0.weight: \[2, 2, 3, 3\]",
        ),
        ({"layer1.0.weight": np.zeros((2, 2))}, r"(?s)no network that.*layer1.0.weight \[2, 2\]"),
        ({"epoch": 3}, "no weights that can be found .its keys: epoch"),
        ([1], "holds a list and no weights"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_listed_with_names_and_shapes(tmp_path, content, message):
    path = write_zip(tmp_path / "odd.pth", content)
    with pytest.raises(UserError, match=message) as caught:
        importing.read(path)
    assert str(path) in str(caught.value)


FIRST = "down_conv1.double_conv.double_conv.0.weight"


@pytest.mark.parametrize(
    ("first", "said", "listed"),
    [
        (None, "is missing, expected [4, 1, 3, 3]", f"missing (1):\n    {FIRST} [4, 1, 3, 3]"),
        ((3, 1, 3, 3), "has shape [3, 1, 3, 3], expected [4, 1, 3, 3]", "another shape (1):"),
        ((4, 1, 9), "has shape [4, 1, 9], expected [4, 1, 3, 3]", "another shape (1):"),
        ((), "has shape [], expected [4, 1, 3, 3]", "another shape (1):"),
        ((4, 3, 3, 3), "it takes images of 3 channels, ours are grey", "another shape (1):"),
    ],
)
def test_a_first_kernel_that_does_not_fit_is_said_first_and_alone(tmp_path, first, said, listed):
    state = unet_state(4)
    state.pop(FIRST)
    if first is not None:
        state[FIRST] = np.zeros(first, np.float32)
    with pytest.raises(UserError, match="a network of width 4 ") as error:
        importing.read(write_zip(tmp_path / "odd.pth", state))
    lines = str(error.value).splitlines()
    assert lines[1].startswith(f"  look here first: the first convolution, {FIRST}, ")
    assert said in lines[1] and listed in str(error.value) and len(lines) == 4


def test_a_file_in_which_nothing_tells_the_width_says_what_is_missing(tmp_path):
    state = {"down_conv1.x": np.zeros(2, np.float32)}
    with pytest.raises(UserError, match=rf"{FIRST}, is missing, expected \[width, 1, 3, 3\]"):
        importing.read(write_zip(tmp_path / "odd.pth", state))


def test_many_misfits_are_counted(tmp_path):
    extra = {f"extra.{n}": np.zeros(1, np.float32) for n in range(100)}
    path = write_zip(tmp_path / "odd.pth", unet_state() | extra)
    with pytest.raises(UserError, match=r"(?s)left over \(100\).*and 40 more"):
        importing.read(path)


def common_state(outputs=2, bias=True):
    """The same network as `unet_state`, as the widespread U-Net names and orders it."""
    state = {}
    for name, value in unet_state(outputs=outputs).items():
        if name.startswith("up_conv") and name.endswith("double_conv.double_conv.0.weight"):
            half = value.shape[1] // 2
            value = np.concatenate([value[:, half:], value[:, :half]], 1)
        if bias or not name.endswith(("double_conv.0.bias", "double_conv.3.bias")):
            state[layouts._common_name(name)] = value
    return state


def test_the_widespread_unet_is_read_into_our_order(tmp_path):
    expected, _ = importing.read(write_zip(tmp_path / "ours.pth", unet_state()))
    state = common_state()
    assert "inc.double_conv.0.weight" in state and "up1.up.weight" in state
    assert "down4.maxpool_conv.1.double_conv.4.running_mean" in state
    found, _ = importing.read(write_zip(tmp_path / "theirs.pth", state))
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert found.layout == "U-Net with inc, down1-4, up1-4, outc" and not found.notes
    found, _ = importing.read(write_zip(tmp_path / "theirs.pth", common_state(bias=False)))
    assert found.notes == ["18 convolutions have no bias; ours have one of zero"]
    assert not found.params["encoder"]["down1"]["conv1"]["bias"].any()
    assert "inc.double_conv.0.bias" not in found.mapped


def test_the_widespread_unet_of_half_the_channels_is_refused_by_that_reason(tmp_path):
    blocks = {  # channels of input, middle and output, as multiples of the width
        "inc.": (0.5, 1, 1),
        **{f"down{i}.maxpool_conv.1.": (2 ** (i - 1), 2**i, 2**i) for i in (1, 2, 3)},
        "down4.maxpool_conv.1.": (8, 8, 8),
        "up1.conv.": (16, 8, 4),
        "up2.conv.": (8, 4, 2),
        "up3.conv.": (4, 2, 1),
        "up4.conv.": (2, 1, 1),
    }
    state = {"outc.conv.weight": np.zeros((2, 2, 1, 1), np.float32)}
    for name, parts in blocks.items():
        first, middle, last = (int(2 * part) for part in parts)
        for at, ins, outs in ((0, first, middle), (3, middle, last)):
            state[f"{name}double_conv.{at}.weight"] = np.zeros((outs, ins, 3, 3), np.float32)
            for part in ("weight", "bias", "running_mean", "running_var"):
                state[f"{name}double_conv.{at + 1}.{part}"] = np.zeros(outs, np.float32)
    with pytest.raises(UserError, match=r"bilinear=True, which has half the channels") as error:
        importing.read(write_zip(tmp_path / "theirs.pth", state))
    assert "\n" not in str(error.value)


def test_some_missing_biases_are_no_network_without_biases(tmp_path):
    state = common_state()
    del state["inc.double_conv.3.bias"]
    with pytest.raises(UserError, match=r"(?s)missing \(1\):\n +inc.double_conv.3.bias"):
        importing.read(write_zip(tmp_path / "a.pth", state))


def test_one_output_may_be_the_logit_of_the_artery(tmp_path):
    path = write_zip(tmp_path / "a.pth", common_state(outputs=1))
    found, _ = importing.read(path, one_output="artery")
    head = found.params["decoder"]["head"]
    assert found.objective == "scratch" and head["kernel"].shape == (1, 1, 2, 2)
    assert not head["kernel"][..., 0].any() and head["kernel"][..., 1].any()
    assert head["bias"][0] == 0
