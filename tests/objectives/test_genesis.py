"""Model Genesis: the loss, accumulation, devices, transfer, pictures, presets."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmunet_jax import objectives
from cmunet_jax.data import views as views_lib
from tests.objectives import proofs, tiny

OBJECTIVE = tiny.OBJECTIVES["genesis"]


def test_the_loss_is_the_error_of_all_pixels():
    variables, views = tiny.case(OBJECTIVE)
    value, out = jax.jit(lambda v: tiny.full_loss(OBJECTIVE, v, views))(variables)
    made, _ = OBJECTIVE.restore(variables.params, variables.batch_stats, views["image"], train=True)
    target = np.asarray(views["target"], np.float64)
    expected = np.square(np.asarray(made)[..., None] - target).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    untouched = np.square(np.asarray(views["image"]) - target).mean()
    np.testing.assert_allclose(out.metrics["error_untouched"][0], untouched, rtol=1e-5)


def test_the_target_is_no_input():
    variables, views = tiny.case(OBJECTIVE)

    @jax.jit
    def state(views):
        return tiny.full_loss(OBJECTIVE, variables, views)[1].state

    one, other = state(views), state({**views, "target": views["target"] + 3})
    jax.tree.map(np.testing.assert_array_equal, one, other)
    moved = state({**views, "image": views["image"] + 3})
    means = [jax.tree.leaves(tree["batch_stats"])[0] for tree in (one, moved)]
    assert np.abs(means[0] - means[1]).max() > 1e-3


def test_accumulated_gradients_are_those_of_one_pass():
    proofs.check_accumulation_is_exact(OBJECTIVE)


def test_transfer_loads_encoder_and_decoder_and_leaves_the_head():
    proofs.check_transfer_of_all_but_the_head(OBJECTIVE)


# The view and the loss, of MAE too, for they share the network: one process for each number of
# devices.
_DEVICES = """
import json, sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from cmunet_jax import objectives
from cmunet_jax.data import views
from tests.objectives import tiny
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
rows, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
image = np.random.default_rng(0).normal(size=(8, 64, 64, 1)).astype(np.float32)
batch = jax.device_put({"image": image, "index": np.arange(8, dtype=np.int32)}, rows)
found = {"devices": jax.device_count()}
for name, key in (("genesis", "genesis"), ("mae", "mae-fixed"), ("mae", "mae-paper")):
    objective = tiny.OBJECTIVES[key]
    preset = "paper" if key.endswith("paper") else "fixed"
    options = views.default_options(objective.views[0], 64, preset=preset)
    options |= objectives.view_options(name, preset)
    make = lambda b: views.make_views(
        objective.views, b, seed=0, step=3, config=options, train=True)
    made = jax.jit(make, out_shardings=rows)(batch)
    variables = jax.device_put(objective.init(jax.random.key(0), (64, 64, 1)), whole)
    loss, _ = jax.jit(lambda v, x: tiny.full_loss(objective, v, x))(variables, made)
    found[key] = [float(loss), *(float(np.abs(x).sum(dtype=float)) for x in made.values())]
json.dump(found, sys.stdout)
"""


def test_eight_devices_make_the_same_views_and_losses(run_python):
    one, eight = (json.loads(run_python("-c", _DEVICES, devices=n).stdout) for n in (1, 8))
    assert (one.pop("devices"), eight.pop("devices")) == (1, 8)
    for name, values in one.items():
        np.testing.assert_allclose(eight[name], values, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("preset", ["paper", "fixed"])
def test_presets_differ_in_the_painted_noise_alone(preset):
    config = {"objective": objectives.default_options("genesis", preset), "model": {"width": 2}}
    assert objectives.create(config) == OBJECTIVE
    options = views_lib.default_options("genesis", 256, preset=preset)
    views_lib.check(("genesis",), options)
    assert options.pop("paint_noise") == ("unit" if preset == "paper" else "image")
    assert options == {
        "size": 256,
        "flip": 0.4,
        "flips": 3,
        "shuffle": 0.5,
        "shuffle_side": 10,
        "shuffle_windows": 10_000,
        "intensity": 0.9,
        "paint": 0.9,
        "inpaint": 0.2,
    }


def test_pictures_show_input_output_and_target_in_one_window():
    variables, views = tiny.case(OBJECTIVE)
    pictures = jax.jit(lambda v: OBJECTIVE.pictures(v.params, v.state, views, {}, tiny.KEY))(
        variables
    )
    assert set(pictures) == {"transformed", "restored", "view", "error"}
    same = np.asarray(views["image"] == views["target"])
    shown, view = np.asarray(pictures["transformed"]), np.asarray(pictures["view"])
    np.testing.assert_allclose(shown[same], view[same], atol=1e-6)
    assert np.abs(shown[~same] - view[~same]).max() > 0.05
    error = np.clip(2 * np.abs(np.asarray(pictures["restored"]) - view), 0, 1)
    np.testing.assert_allclose(pictures["error"], error, atol=1e-6)
    assert jnp.asarray(pictures["error"]).max() > 0.1
