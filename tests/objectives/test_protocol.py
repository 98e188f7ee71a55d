"""What holds for every objective: jit, lowering, devices, accumulation, the table."""

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from cmunet_jax import objectives
from cmunet_jax.objectives import cmunet, scratch
from cmunet_jax.objectives.base import Objective
from tests.objectives import tiny
from tfds_angio.errors import UserError

every = pytest.mark.parametrize("name", list(tiny.OBJECTIVES))
# The rest differ from these only in ways that their own tests look at.
typical = pytest.mark.parametrize("name", ["scratch-fixed", "cmunet-paper", "cmunet-ema", "spark"])


def _config(name="cmunet", model=None, **options):
    return ml_collections.ConfigDict(
        {"objective": {"name": name, "preset": "fixed", **options}, "model": model or {}}
    )


@every
def test_implements_the_protocol(name):
    assert isinstance(tiny.OBJECTIVES[name], Objective)


@typical
def test_jit_equals_eager_and_keeps_the_state_structure(name):
    objective = tiny.OBJECTIVES[name]
    variables, views = tiny.case(objective)
    eager, out = tiny.full_loss(objective, variables, views)
    jitted, out_jitted = jax.jit(lambda *a: tiny.full_loss(objective, *a))(variables, views)
    assert eager.dtype == jnp.float32 and eager.shape == ()
    np.testing.assert_allclose(eager, jitted, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        out.metrics,
        out_jitted.metrics,
    )
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shapes(out_jitted.state) == shapes(variables.state)


@typical
def test_evaluation_changes_no_state(name):
    objective = tiny.OBJECTIVES[name]
    variables, views = tiny.case(objective)
    run = jax.jit(lambda v: tiny.full_loss(objective, v, views, train=False))
    _, out = run(variables)
    jax.tree.map(np.testing.assert_array_equal, out.state, variables.state)


@pytest.mark.parametrize("name", ["scratch-fixed", "cmunet-fixed", "spark", "mae-fixed"])
def test_bfloat16_loss_is_float32_and_near(name):
    exact = tiny.OBJECTIVES[name]
    rough = type(exact)(**{**vars(exact), "dtype": "bfloat16"})
    variables, views = tiny.case(exact, batch=8)
    a, _ = jax.jit(lambda v: tiny.full_loss(exact, v, views))(variables)
    b, out = jax.jit(lambda v: tiny.full_loss(rough, v, views))(variables)
    assert b.dtype == jnp.float32
    assert all(x.dtype in (jnp.float32, jnp.int32) for x in jax.tree.leaves(out))
    np.testing.assert_allclose(a, b, rtol=0.1)


@typical
def test_pictures_lie_between_0_and_1(name):
    objective = tiny.OBJECTIVES[name]
    variables, views = tiny.case(objective)
    context, _ = objective.prepare(variables, views, tiny.KEY, train=False)
    state = variables.state
    pictures = objective.pictures(variables.params, state, views, context, tiny.KEY)
    for picture in pictures.values():
        assert picture.shape[:3] == (4, 32, 32) and picture.shape[3] in (1, 3)
        assert picture.dtype == jnp.float32
        assert np.isfinite(picture).all() and picture.min() >= 0 and picture.max() <= 1


# In float64: three steps amplify the rounding of float32 (other orders of summation) to percents.
_DEVICES = """
import dataclasses, json, sys
import jax, optax
from jax.sharding import NamedSharding, PartitionSpec, AxisType
from tests.objectives import tiny
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
objective = dataclasses.replace(tiny.OBJECTIVES[sys.argv[1]], dtype="float64")
tx = optax.sgd(0.05)
variables, views = jax.tree.map(
    lambda x: x.astype("float64") if x.dtype == "float32" else x, tiny.case(objective, batch=8)
)
views = jax.device_put(views, NamedSharding(mesh, PartitionSpec("data")))
whole = NamedSharding(mesh, PartitionSpec())
variables, opt_state = jax.device_put((variables, tx.init(variables.params)), whole)
step = tiny.step_function(objective, tx)
losses = []
for i in range(3):
    variables, opt_state, value, _ = step(variables, opt_state, views, jax.random.key(i))
    losses.append(float(value))
json.dump({"devices": jax.device_count(), "losses": losses}, sys.stdout)
"""


# Others are trained on several devices in tests/train/test_devices.py.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["cmunet-ema", "spark"])
def test_eight_devices_give_the_losses_of_one(run_python, name):
    one, eight = (
        json.loads(run_python("-c", _DEVICES, name, devices=n, JAX_ENABLE_X64="1").stdout)
        for n in (1, 8)
    )
    assert (one["devices"], eight["devices"]) == (1, 8)
    assert len(set(one["losses"])) == 3
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-9)


@pytest.mark.parametrize("name", ["scratch-fixed", "cmunet-fixed", "spark", "mae-fixed", "genesis"])
def test_one_batch_is_overfitted(name):
    objective = tiny.OBJECTIVES[name]
    objective = type(objective)(**{**vars(objective), "width": 4})
    variables, views = tiny.case(objective)
    tx = optax.adam(1e-2)
    step, opt_state = tiny.step_function(objective, tx), tx.init(variables.params)
    values = []
    for i in range(80):
        variables, opt_state, value, out = step(variables, opt_state, views, jax.random.key(i))
        values.append(float(value))
    assert values[-1] < 0.25 * values[0]
    if name == "scratch-fixed":
        assert out.metrics["dice"][0] > 0.95
    if name == "cmunet-fixed":
        assert out.metrics["contrast_accuracy"][0] == 1


@pytest.mark.parametrize("preset", ["paper", "fixed"])
def test_presets_make_objectives_that_differ_in_the_rows_of_the_method(preset):
    made = objectives.create(_config(**cmunet.preset_options(preset)))
    paper = preset == "paper"
    assert made.mask_per_sample is not paper
    assert made.adapter == ("fresh" if paper else "fixed")
    assert made.reconstruction_target == ("row" if paper else "patch")
    assert (made.temperature, made.momentum) == (0.07, 0.996)
    supervised = objectives.create(_config("scratch", **scratch.preset_options(preset)))
    assert supervised.soft_dice is not paper


def test_create_takes_the_model_from_the_config():
    made = objectives.create(
        _config("scratch", {"width": 8, "dtype": "bfloat16", "up": "bilinear"})
    )
    assert (made.width, made.dtype, made.up) == (8, "bfloat16", "bilinear")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_config("dino"), "objective.name='dino'.*scratch, cmunet"),
        (_config(adapter="none"), "objective.adapter='none'.*fresh"),
        (_config(reconstruction_target="image"), "objective.reconstruction_target.*row, patch"),
        (_config(mask="no"), "objective.mask is not known.*mask_per_sample"),
        (_config(temperature=0.0), "objective.temperature=0.0"),
        (_config(model={"depth": 3}), "model.depth is not known"),
        (_config(model={"dtype": "float16"}), "model.dtype='float16'.*bfloat16"),
        (_config(model={"up": "nearest"}), "model.up='nearest'.*bilinear"),
    ],
)
def test_a_bad_config_is_one_clear_line(config, message):
    with pytest.raises(UserError, match=message) as caught:
        objectives.create(config)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_is_named():
    for module in (cmunet, scratch):
        with pytest.raises(UserError, match="'original'.*paper, fixed"):
            module.preset_options("original")
