"""CM-UNet: who gets a gradient, what each option changes, accumulation, the momentum branch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmunet_jax.models.heads import init_adapter
from cmunet_jax.models.unet import UNet
from cmunet_jax.objectives.base import SHARED_CONTEXT, mask
from cmunet_jax.objectives.cmunet import ADAPTERS, CMUNet
from tests.objectives import tiny

VARIANTS = [name for name in tiny.OBJECTIVES if name.startswith("cmunet")]


def _norm(tree):
    return float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(tree)))


def _assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_gradient_reaches_the_momentum_branch(name):
    objective = tiny.OBJECTIVES[name]
    variables, views = tiny.case(objective)

    def loss(params, extra):
        return tiny.full_loss(objective, variables.replace(params=params, extra=extra), views)[0]

    online, momentum = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables.params, variables.extra)
    assert _norm(momentum) == 0
    for part, gradient in online.items():
        assert _norm(gradient) > 1e-3, part


@pytest.mark.parametrize("adapter", ["learned", "ema"])
def test_the_trained_adapter_trains_nothing_else(adapter):
    objective = CMUNet(width=2, adapter=adapter)
    variables, views = tiny.case(objective)
    context, state = objective.prepare(variables, views, tiny.KEY, train=True)

    @jax.jit
    def gradients(params):
        def loss(params):
            return objective.loss(params, state, views, context, tiny.KEY, train=True)[0]

        return jax.grad(loss)(params)

    other = {**variables.params, "adapter": init_adapter(jax.random.key(9), 32)}
    a, b = gradients(variables.params), gradients(other)
    assert np.abs(a["adapter"]["kernel"] - b["adapter"]["kernel"]).max() > 1e-3
    for part in set(a) - {"adapter"}:
        _assert_close(a[part], b[part], rtol=1e-5, atol=1e-7)


def test_the_targets_start_as_copies_and_follow():
    objective = CMUNet(width=2, adapter="ema")
    variables, _ = tiny.case(objective)
    for part in ("encoder", "projector", "adapter"):
        _assert_close(variables.extra["target"][part], variables.params[part])
    moved = jax.tree.map(lambda x: x + 1, variables.params)
    extra = objective.post_update(moved, variables.extra, 0)
    _assert_close(
        extra["target"]["encoder"],
        jax.tree.map(lambda x: x + 0.004, variables.params["encoder"]),
        atol=1e-6,
    )
    _assert_close(extra["target_batch_stats"], variables.extra["target_batch_stats"])


def test_target_statistics_come_from_the_target_view():
    objective = CMUNet(width=2)
    variables, views = tiny.case(objective)
    _, out = tiny.full_loss(objective, variables, views)
    target = out.state["extra"]["target_batch_stats"]["encoder"]["down1"]["bn1"]["mean"]
    online = out.state["batch_stats"]["encoder"]["down1"]["bn1"]["mean"]
    other = {**views, "view_a": views["view_a"] + 5}
    _, out = tiny.full_loss(objective, variables, other)
    after = out.state["extra"]["target_batch_stats"]["encoder"]["down1"]["bn1"]["mean"]
    np.testing.assert_array_equal(target, after)
    assert np.abs(online - out.state["batch_stats"]["encoder"]["down1"]["bn1"]["mean"]).max() > 0.01


def test_masking_sets_the_patches_of_an_image_to_zero():
    image = jnp.ones((2, 32, 48, 1))
    patches = jnp.zeros((2, 2, 3), bool).at[1, 0, 2].set(True)
    masked = np.array(mask(image, patches))
    assert (masked[1, :16, 32:] == 0).all()
    masked[1, :16, 32:] = 1
    assert (masked == 1).all()


def test_one_mask_for_all_inputs_is_that_of_the_first_image():
    shared, own = CMUNet(width=2, mask_per_sample=False), CMUNet(width=2)
    variables, views = tiny.case(shared)
    context, _ = shared.prepare(variables, views, tiny.KEY, train=True)
    online, _ = shared.online(variables.params, variables.batch_stats, views, context, train=True)
    first = {**views, "patches": jnp.broadcast_to(views["patches"][:1], views["patches"].shape)}
    expected, _ = own.online(variables.params, variables.batch_stats, first, context, train=True)
    _assert_close(online["pixels"], expected["pixels"], atol=1e-6)
    _, out = tiny.full_loss(shared, variables, views)
    error = np.square(
        np.asarray(online["pixels"]) - np.asarray(_standardised_patches(views["view_a"]))
    )
    weight = np.repeat(np.repeat(np.asarray(views["patches"]), 16, 1), 16, 2)
    np.testing.assert_allclose(
        out.metrics["loss_reconstruction"][0], error[weight].mean(), rtol=1e-4
    )


def _standardised_patches(image):
    image = np.asarray(image, np.float64)[..., 0].copy()
    for b in range(image.shape[0]):
        for y in range(0, image.shape[1], 16):
            for x in range(0, image.shape[2], 16):
                patch = image[b, y : y + 16, x : x + 16]
                patch[:] = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
    return image


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_step_key_moves_only_the_fresh_adapter(adapter):
    objective = CMUNet(width=2, adapter=adapter)
    variables, views = tiny.case(objective)
    prepare = jax.jit(lambda key: objective.prepare(variables, views, key, train=True)[0]["keys"])
    a, again, b = prepare(tiny.KEY), prepare(tiny.KEY), prepare(jax.random.key(8))
    np.testing.assert_array_equal(a, again)
    assert (np.abs(a - b).max() > 0.1) == (adapter == "fresh")


def _rows(tree, start):
    """Two rows from `start`; what belongs to the whole batch stays whole."""
    return {k: v if k in SHARED_CONTEXT else v[start : start + 2] for k, v in tree.items()}


def test_microbatches_see_the_keys_of_the_whole_batch():
    """With normalisation fixed (evaluation mode) accumulation must be exact."""
    objective = CMUNet(width=2)
    variables, views = tiny.case(objective, batch=6)
    context, state = objective.prepare(variables, views, tiny.KEY, train=False)

    def gradient(views, context):
        def loss(params):
            return objective.loss(params, state, views, context, tiny.KEY, train=False)[0]

        return jax.value_and_grad(loss)(variables.params)

    gradient = jax.jit(gradient)
    whole = gradient(views, context)
    parts = [gradient(_rows(views, i), _rows(context, i)) for i in (0, 2, 4)]
    mean = jax.tree.map(lambda *x: sum(x) / 3, *parts)
    _assert_close(mean, whole, rtol=1e-3, atol=1e-5)
    alone = {"keys": context["keys"][:2], "position": jnp.arange(2)}
    assert gradient(_rows(views, 0), alone)[0] < parts[0][0]  # fewer negatives


def test_transfer_covers_the_segmentation_network():
    objective = CMUNet(width=2)
    variables, views = tiny.case(objective)
    target = UNet(2).init(tiny.KEY, views["view_a"], train=True)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)  # noqa: E731
    for collection in ("params", "batch_stats"):
        source = getattr(variables, collection)
        moved = {new: source[old] for old, new in objective.transfer.mapping.items()}
        assert shapes(moved) == shapes(target[collection])
    assert objective.transfer.reinit == ("decoder/head",)


def test_pictures_show_the_view_where_it_is_visible():
    objective = CMUNet(width=2)
    variables, views = tiny.case(objective)
    context, _ = objective.prepare(variables, views, tiny.KEY, train=False)
    pictures = objective.pictures(variables.params, variables.state, views, context, tiny.KEY)
    assert list(pictures) == ["view", "masked", "reconstruction", "error"]
    hidden = np.repeat(np.repeat(np.asarray(views["patches"]), 16, 1), 16, 2)
    visible = ~hidden
    np.testing.assert_array_equal(pictures["reconstruction"][visible], pictures["view"][visible])
    assert (pictures["error"][visible] == 0).all() and pictures["error"][hidden].max() > 0
    assert (pictures["masked"][hidden] == 0.5).all()
