"""Weights as safetensors: there and back, and what a damaged file says."""

import json
import os
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cmunet_jax.interop import safetensors_file
from cmunet_jax.models.initialise import draw, shapes_of
from cmunet_jax.models.unet import UNet
from tfds_angio.errors import UserError


def _weights(up="transposed"):
    made = draw(jax.random.key(0), shapes_of(UNet(2, up=up), jnp.zeros((1, 16, 16, 1))))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(np.float32),
        (made["params"], made["batch_stats"]),
    )


@pytest.mark.parametrize("up", ["transposed", "bilinear"])
def test_there_and_back_is_exact(tmp_path, up):
    params, stats = _weights(up)
    path = tmp_path / "new" / "unet.safetensors"
    safetensors_file.write(path, params, stats, {"digest": "abc"})
    *back, metadata = safetensors_file.read(path)
    jax.tree.map(np.testing.assert_array_equal, tuple(back), (params, stats))
    assert metadata == {"digest": "abc"}
    assert [p.name for p in path.parent.iterdir()] == ["unet.safetensors"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_others_may_read_it_as_they_may_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        safetensors_file.write(tmp_path / "unet.safetensors", *_weights())
    finally:
        os.umask(before)
    assert (tmp_path / "unet.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_names_and_layouts_are_pytorchs(tmp_path):
    params, stats = _weights()
    path = tmp_path / "unet.safetensors"
    safetensors_file.write(path, params, stats)
    tensors = safetensors.numpy.load_file(path)
    kernel = params["encoder"]["down2"]["conv1"]["kernel"]  # [3, 3, in, out]
    found = tensors["down_conv2.double_conv.double_conv.0.weight"]
    np.testing.assert_array_equal(found[3, 1, 0, 2], kernel[0, 2, 1, 3])


@pytest.mark.parametrize("keep", [0, 4, 200, -3])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "unet.safetensors"
    safetensors_file.write(path, *_weights())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"unet\.safetensors is no complete safetensors file"):
        safetensors_file.read(path)


def _raw(path, dtype, count):
    """A whole file with one tensor of two numbers, `count` bytes of zeros."""
    header = json.dumps({"fc.weight": {"dtype": dtype, "shape": [2], "data_offsets": [0, count]}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(count))
    return path


@pytest.mark.parametrize(("dtype", "count"), [("F8_E4M3", 2), ("F8_E5M2", 2), ("F4", 1)])
def test_numbers_that_numpy_has_not_are_named_with_their_tensor(tmp_path, dtype, count):
    path = _raw(tmp_path / "small.safetensors", dtype, count)
    with pytest.raises(UserError, match=rf"dtype of fc.weight, {dtype}, .*as float32") as caught:
        safetensors_file.read_tensors(path)
    assert str(path) in str(caught.value) and "ownload" not in str(caught.value)


def test_bfloat16_is_read(tmp_path):
    tensors, _ = safetensors_file.read_tensors(_raw(tmp_path / "a.safetensors", "BF16", 4))
    assert tensors["fc.weight"].dtype == jnp.bfloat16


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"unet\.safetensors cannot be written: "):
        safetensors_file.write(tmp_path / "file" / "unet.safetensors", *_weights())
