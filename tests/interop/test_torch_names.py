"""PyTorch names and layouts, against NumPy versions of PyTorch's operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmunet_jax.interop import torch_names
from cmunet_jax.interop.torch_names import Entry
from cmunet_jax.models.initialise import draw, shapes_of
from cmunet_jax.models.layers import UpConv
from cmunet_jax.models.sparse import SparseUNet
from cmunet_jax.models.unet import UNet
from tfds_angio.errors import UserError

ENTRIES = torch_names.unet_entries()


def _weights(width=2):
    made = draw(jax.random.key(0), shapes_of(UNet(width), jnp.zeros((1, 16, 16, 1))))
    return made["params"], made["batch_stats"]


def test_every_leaf_has_one_pytorch_name():
    params, stats = _weights()
    state_dict = torch_names.to_torch(params, stats, ENTRIES)
    assert len(state_dict) == len(ENTRIES) == len(jax.tree.leaves((params, stats)))
    assert state_dict["down_conv2.double_conv.double_conv.3.weight"].shape == (4, 4, 3, 3)
    assert state_dict["up_conv4.up_sample.weight"].shape == (32, 16, 2, 2)
    assert state_dict["conv_last.weight"].shape == (2, 2, 1, 1)


def test_there_and_back_is_the_identity():
    params, stats = _weights()
    state_dict = torch_names.to_torch(params, stats, ENTRIES)
    state_dict["conv_last.num_batches_tracked"] = np.array(3)
    back = torch_names.from_torch(state_dict, ENTRIES)
    jax.tree.map(np.testing.assert_array_equal, back, (params, stats))
    for entry in ENTRIES:
        leaf = torch_names.get(
            {"params": params, "batch_stats": stats}[entry.collection], entry.path
        )
        assert torch_names.torch_shape(entry, leaf.shape) == state_dict[entry.torch].shape


def test_a_transposed_convolution_means_the_same():
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((3, 5, 2, 2)), rng.standard_normal(5)
    x = rng.standard_normal((1, 4, 6, 3))
    # PyTorch: y[2i+a, 2j+b, o] = sum_c x[i, j, c] · weight[c, o, a, b] + bias[o]
    expected = np.einsum("nijc,coab->niajbo", x, weight).reshape(1, 8, 12, 5) + bias
    entries = [
        Entry("up.weight", "params", "kernel", "up"),
        Entry("up.bias", "params", "bias", "vector"),
    ]
    params, _ = torch_names.from_torch({"up.weight": weight, "up.bias": bias}, entries)
    actual = UpConv(5).apply({"params": jax.tree.map(jnp.asarray, params)}, x)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_weights_of_another_network_are_refused_by_name():
    state_dict = torch_names.to_torch(*_weights(), ENTRIES)
    del state_dict["conv_last.bias"]
    state_dict["fc.weight"] = np.zeros((2, 2))
    with pytest.raises(UserError, match=r"missing \['conv_last.bias'\].*\['fc.weight'\]"):
        torch_names.from_torch(state_dict, ENTRIES)


def test_a_tensor_of_the_wrong_rank_is_refused():
    state_dict = torch_names.to_torch(*_weights(), ENTRIES)
    state_dict["conv_last.weight"] = np.zeros((2, 2))
    with pytest.raises(UserError, match=r"conv_last.weight has shape \(2, 2\); 4 axes"):
        torch_names.from_torch(state_dict, ENTRIES)


def test_sparks_names_cover_its_network():
    entries = torch_names.spark_entries()
    shapes = shapes_of(SparseUNet(2), jnp.zeros((1, 16, 16, 1)), jnp.zeros((1, 1, 1), bool))
    rng = np.random.default_rng(0)
    params, stats = (
        jax.tree.map(lambda x: rng.standard_normal(x.shape), shapes[k])
        for k in ("params", "batch_stats")
    )
    state_dict = torch_names.to_torch(params, stats, entries)
    assert len(state_dict) == len(entries) == len(jax.tree.leaves((params, stats)))
    assert state_dict["mask_tokens.0"].shape == (1, 32, 1, 1)
    assert state_dict["mask_tokens.4"].shape == state_dict["dense_decoder.conv_last.weight"].shape
    assert state_dict["densify_norms.3.running_var"].shape == (4,)
    assert "sparse_encoder.sp_cnn.down_conv1.double_conv.double_conv.0.weight" in state_dict
    back = torch_names.from_torch(state_dict, entries)
    jax.tree.map(np.testing.assert_array_equal, back, (params, stats))
