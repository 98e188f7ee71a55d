"""SparK: what reaches the loss, the patches that count, devices, accumulation, transfer."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cmunet_jax import config as config_lib
from cmunet_jax import objectives
from cmunet_jax.data import views as views_lib
from cmunet_jax.models.unet import UNet
from cmunet_jax.objectives.spark import SparK
from cmunet_jax.train import state as state_lib
from cmunet_jax.train import transfer
from cmunet_jax.train.step import gradients
from configs import common, pretrain
from tests.models.random_weights import random_weights
from tests.objectives import tiny
from tfds_angio.errors import UserError

OBJECTIVE = SparK(width=2)


def _hidden(views):
    """The masked pixels, bool [B, H, W]."""
    return np.kron(np.asarray(views["patches"]), np.ones((16, 16))) > 0


@pytest.fixture(scope="module")
def case():
    """Variables and views that all tests share, so that one program is compiled."""
    return tiny.case(OBJECTIVE)


@jax.jit
def _run(variables, views):
    """Loss, Out, gradients and reconstruction of a training pass."""

    def loss(params):
        return tiny.full_loss(OBJECTIVE, variables.replace(params=params), views)

    (value, out), grads = jax.value_and_grad(loss, has_aux=True)(variables.params)
    weights = {"params": variables.params, "batch_stats": variables.batch_stats}
    made, _ = OBJECTIVE.network.apply(
        weights, views["image"], ~views["patches"], train=True, mutable=["batch_stats"]
    )
    return value, out, grads, made[..., 0]


def test_the_loss_is_the_error_of_masked_patches_against_their_own_scale(case):
    variables, views = case
    value, out, _, made = _run(variables, views)
    image = np.asarray(views["image"], np.float64)[..., 0]
    errors = []
    for b, y, x in np.argwhere(np.asarray(views["patches"])):
        place = (b, slice(16 * y, 16 * y + 16), slice(16 * x, 16 * x + 16))
        patch = image[place]
        target = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
        errors.append(np.square(made[place] - target).mean())
    np.testing.assert_allclose(value, np.mean(errors), rtol=1e-4)
    np.testing.assert_allclose(out.metrics["loss_reconstruction"][0], value, rtol=1e-6)


class _Given(SparK):
    """The objective with a reconstruction in place of the network's: `params`."""

    @property
    def network(self):
        class Network:
            def apply(self, variables, *inputs, **kwargs):
                return variables["params"][..., None], {"batch_stats": {}}

        return Network()


def test_no_visible_patch_contributes_to_the_loss(case):
    _, views = case
    state = {"batch_stats": {}, "extra": {}}

    def loss(made):
        return _Given().loss(made, state, views, {}, tiny.KEY, train=True)[0]

    gradient = np.asarray(jax.grad(loss)(jnp.ones(views["image"].shape[:3])))
    hidden = _hidden(views)
    assert (gradient[~hidden] == 0).all() and (gradient[hidden] != 0).mean() > 0.99


def test_a_masked_pixel_moves_the_target_only(case):
    """Scaled and shifted masked patches have the same target: nothing may change at all."""
    variables, views = case
    hidden = _hidden(views)[..., None]
    changed = {**views, "image": jnp.where(hidden, 4 * views["image"] + 2, views["image"])}
    value, out, grads, made = _run(variables, views)
    value_2, out_2, grads_2, made_2 = _run(variables, changed)
    jax.tree.map(np.testing.assert_array_equal, (made, out.state), (made_2, out_2.state))
    np.testing.assert_allclose(value, value_2, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4), grads, grads_2
    )
    visible = {**views, "image": jnp.where(hidden, views["image"], 4 * views["image"] + 2)}
    assert np.abs(_run(variables, visible)[3] - made).max() > 1e-2


def test_every_part_is_trained(case):
    _, _, grads, _ = _run(*case)
    for part in ("encoder", "densify", "decoder"):
        assert sum(np.abs(g).sum() for g in jax.tree.leaves(grads[part])) > 1e-3, part
    for level in grads["densify"].values():
        assert np.abs(level["token"]).max() > 1e-6 and np.abs(level["norm"]["scale"]).max() > 1e-6


def test_accumulated_gradients_are_those_of_one_pass(case):
    """Two passes over the same images, each normalised by its own statistics."""
    variables, views = case
    twice = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), views)  # passes take every other row
    state = state_lib.create(variables, optax.sgd(0.1), ema=False)
    mean, obj_state, metrics = jax.jit(
        lambda state, views: gradients(OBJECTIVE, state, views, tiny.KEY, accumulation=2)
    )(state, twice)
    value, out, expected, _ = _run(variables, views)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), mean, expected
    )
    np.testing.assert_allclose(metrics["loss"], (2 * value, 2), rtol=1e-5)
    # Statistics are recorded by both passes: old + (1 - 0.9²) / (1 - 0.9) · (new - old).
    jax.tree.map(
        lambda old, one, two: np.testing.assert_allclose(two, old + 1.9 * (one - old), atol=1e-5),
        variables.batch_stats,
        out.state["batch_stats"],
        obj_state["batch_stats"],
    )


# The mean of one device alone would be wrong twice: other numbers of visible patches in each image.
_UNEVEN = """
import json, sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from cmunet_jax.objectives.spark import SparK
from tests.objectives import tiny
objective = SparK(width=2, dtype="float64")
variables, views = tiny.case(objective, batch=8)
ratio = np.linspace(0.1, 0.9, 8)[:, None, None]
patches = np.random.default_rng(0).random(views["patches"].shape) < ratio
patches[0], patches[1] = True, False
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
views = {"image": views["image"].astype("float64"), "patches": patches}
views = jax.device_put(views, NamedSharding(mesh, PartitionSpec("data")))
variables = jax.tree.map(lambda x: x.astype("float64"), variables)
variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
loss, out = jax.jit(lambda v, x: tiny.full_loss(objective, v, x))(variables, views)
stats = [np.asarray(x).sum().item() for x in jax.tree.leaves(out.state["batch_stats"])]
json.dump([jax.device_count(), float(loss), *stats], sys.stdout)
"""


def test_eight_devices_count_sites_as_one_does(run_python):
    one, eight = (
        json.loads(run_python("-c", _UNEVEN, devices=n, JAX_ENABLE_X64="1").stdout) for n in (1, 8)
    )
    assert (one[0], eight[0]) == (1, 8)
    np.testing.assert_allclose(eight[1:], one[1:], rtol=1e-10)


def test_transfer_loads_encoder_and_decoder(case):
    variables, views = case
    fresh = random_weights(UNet(2), views["image"], train=True)
    params, stats, report = transfer.transfer(
        fresh["params"],
        fresh["batch_stats"],
        variables.params,
        variables.batch_stats,
        OBJECTIVE.transfer,
    )
    expected = {part: variables.params[part] for part in ("encoder", "decoder")}
    expected["decoder"] = expected["decoder"] | {"head": fresh["params"]["decoder"]["head"]}
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    statistics = {part: variables.batch_stats[part] for part in ("encoder", "decoder")}
    jax.tree.map(np.testing.assert_array_equal, stats, statistics)
    assert report.left and all("densify" in path or "head" in path for path in report.left)


@pytest.mark.parametrize("preset", ["paper", "fixed"])
def test_both_presets_are_the_released_method(preset):
    config = {"objective": objectives.default_options("spark", preset), "model": {"width": 2}}
    assert objectives.create(config) == OBJECTIVE
    options = views_lib.default_options("masked", 64, preset=preset)
    options |= objectives.view_options("spark", preset)
    assert options["patch_ratio"] == 0.6 and options["area"] == (0.67, 1.0)
    views_lib.check(OBJECTIVE.views, options)
    with pytest.raises(UserError, match="'original'.*paper, fixed"):
        objectives.default_options("spark", "original")


@pytest.mark.parametrize("preset", common.PRESETS)
@pytest.mark.parametrize("size", common.SIZES)
def test_its_config_is_consistent_at_every_size(size, preset):
    config = pretrain.get_config(f"objective=spark,size={size},preset={preset}")
    config_lib.check(config)
    assert isinstance(objectives.create(config), SparK)
    views_lib.check(OBJECTIVE.views, config.views)
    assert (config.optim.name == "lamb") == (size == "paper")


def test_sizes_that_16_does_not_divide_are_refused():
    with pytest.raises(UserError, match="100x96.*112x96"):
        OBJECTIVE.init(tiny.KEY, (100, 96, 1))
