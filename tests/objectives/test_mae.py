"""MAE: what is hidden, what counts, each option against plain NumPy, accumulation, transfer."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmunet_jax import objectives
from cmunet_jax.data import views as views_lib
from cmunet_jax.objectives import mae
from cmunet_jax.objectives.mae import MAE
from tests.objectives import proofs, tiny
from tfds_angio.errors import UserError

OBJECTIVE = tiny.OBJECTIVES["mae-fixed"]
CHOICES = list(itertools.product(mae.LOSS_OVER, mae.TARGETS, (True, False)))


class _Given(MAE):
    """Reconstructs what `params` says, and keeps what it was shown."""

    def restore(self, params, stats, image, *, train):
        return params, {"shown": image}


def _hidden(patches):
    return np.kron(np.asarray(patches), np.ones((16, 16))) > 0


def _target(image, kind):
    image = np.asarray(image, np.float64)[..., 0].copy()
    if kind == "patch":
        for b, y, x in np.ndindex(image.shape[0], image.shape[1] // 16, image.shape[2] // 16):
            patch = image[b, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
            patch[:] = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
    return image


@pytest.mark.parametrize(("loss_over", "target", "own"), CHOICES)
def test_the_loss_of_each_choice(loss_over, target, own):
    objective = _Given(
        width=2, loss_over=loss_over, reconstruction_target=target, mask_per_sample=own
    )
    views = tiny.masked(batch=5)
    made = np.random.default_rng(0).normal(size=views["image"].shape[:3])
    state = {"batch_stats": {}, "extra": {}}
    value, out = objective.loss(jnp.asarray(made), state, views, {}, tiny.KEY, train=True)
    hidden = _hidden(views["patches"] if own else np.repeat(views["patches"][:1], 5, 0))
    error = np.square(made - _target(views["image"], target))
    expected = error[hidden].mean() if loss_over == "masked" else error.mean()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["error_masked"][0], error[hidden].mean(), rtol=1e-5)
    np.testing.assert_allclose(out.metrics["error_visible"][0], error[~hidden].mean(), rtol=1e-5)
    shown = np.asarray(out.state["batch_stats"]["shown"])[..., 0]
    np.testing.assert_array_equal(shown[~hidden], np.asarray(views["image"])[..., 0][~hidden])
    assert (shown[hidden] == 0).all()


def test_nothing_hidden_reaches_the_network():
    variables, views = tiny.case(OBJECTIVE)
    hidden = _hidden(views["patches"])[..., None]

    @jax.jit
    def restored(image):
        masked = mae.base.mask(image, views["patches"])
        return OBJECTIVE.restore(variables.params, variables.batch_stats, masked, train=True)[0]

    same = restored(jnp.where(hidden, 9.0, views["image"]))
    np.testing.assert_array_equal(same, restored(views["image"]))
    other = restored(jnp.where(hidden, views["image"], 9.0))
    assert np.abs(other - same).max() > 1e-2


def test_accumulated_gradients_are_those_of_one_pass():
    proofs.check_accumulation_is_exact(OBJECTIVE)


def test_transfer_loads_encoder_and_decoder_and_leaves_the_head():
    proofs.check_transfer_of_all_but_the_head(OBJECTIVE)


def test_presets_are_the_released_method_and_the_papers():
    def made(preset):
        config = {"objective": objectives.default_options("mae", preset), "model": {"width": 2}}
        options = views_lib.default_options("masked", 64, preset=preset)
        options |= objectives.view_options("mae", preset)
        views_lib.check(("masked",), options)
        assert options["patch_ratio"] == 0.5
        return objectives.create(config), options

    paper, view = made("paper")
    assert paper == tiny.OBJECTIVES["mae-paper"]
    assert view["area"] == (1, 1) and view["flip_horizontal"] == 0
    fixed, view = made("fixed")
    assert fixed == OBJECTIVE
    assert view["area"] == (0.2, 1) and view["flip_horizontal"] == 0.5


@pytest.mark.parametrize("key", ["loss_over", "reconstruction_target"])
def test_unknown_choices_are_named(key):
    with pytest.raises(UserError, match=rf"config\.objective\.{key}='row'"):
        dataclasses.replace(OBJECTIVE, **{key: "row"})


@pytest.mark.parametrize("name", ["mae-fixed", "mae-paper"])
def test_pictures_show_what_is_asked_of_the_network(name):
    """Pasted into what is visible where only the hidden patches count, whole otherwise."""
    objective = tiny.OBJECTIVES[name]
    variables, views = tiny.case(objective)
    pictures = jax.jit(lambda v: objective.pictures(v.params, v.state, views, {}, tiny.KEY))(
        variables
    )
    assert set(pictures) == {"view", "masked", "reconstruction", "error"}
    patches = views["patches"] if name == "mae-fixed" else np.repeat(views["patches"][:1], 4, 0)
    hidden = _hidden(patches)[..., None]
    assert (np.asarray(pictures["masked"])[hidden] == 0.5).all()
    visible_error = np.asarray(pictures["error"])[~hidden]
    assert (visible_error.max() < 1e-5) == (name == "mae-fixed")
