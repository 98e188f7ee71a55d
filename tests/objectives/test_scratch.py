"""The supervised objective."""

import jax
import numpy as np
import optax
import pytest

from cmunet_jax import losses
from cmunet_jax.objectives.scratch import Scratch
from tests.objectives import tiny
from tfds_angio.errors import UserError


def _gradients(objective, variables, views, loss=None):
    def default(params):
        return tiny.full_loss(objective, variables.replace(params=params), views)[0]

    return jax.jit(jax.grad(loss or default))(variables.params)


def test_the_released_dice_term_moves_no_weight():
    paper = Scratch(width=2, soft_dice=False)
    variables, views = tiny.case(paper)

    def cross_entropy(params):
        logits, _ = paper.network.apply(
            {"params": params, "batch_stats": variables.batch_stats},
            views["image"],
            train=True,
            mutable=["batch_stats"],
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, views["mask"]).mean()

    expected = _gradients(paper, variables, views, cross_entropy)
    actual = _gradients(paper, variables, views)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected)
    loss, out = tiny.full_loss(paper, variables, views)
    np.testing.assert_allclose(
        loss, out.metrics["cross_entropy"][0] + out.metrics["dice_loss"][0], rtol=1e-6
    )
    assert out.metrics["dice_loss"][0] > 0


def test_soft_dice_moves_weights():
    fixed, paper = Scratch(width=2), Scratch(width=2, soft_dice=False)
    variables, views = tiny.case(fixed)
    head = [_gradients(o, variables, views)["decoder"]["head"]["kernel"] for o in (fixed, paper)]
    assert np.abs(head[0] - head[1]).max() > 1e-3


def test_the_network_takes_the_variables_of_the_objective():
    objective = Scratch(width=2)
    variables, views = tiny.case(objective)
    weights = {"params": variables.params, "batch_stats": variables.batch_stats}
    logits = objective.network.apply(weights, views["image"], train=False)
    assert logits.shape == (4, 32, 32, 2)
    loss, out = tiny.full_loss(objective, variables, views, train=False)
    expected = losses.cross_entropy(logits, views["mask"])
    np.testing.assert_allclose(out.metrics["cross_entropy"][0], expected, rtol=1e-5)


def test_sizes_that_16_does_not_divide_are_refused():
    with pytest.raises(UserError, match="100x96.*112x96"):
        Scratch(width=2).init(tiny.KEY, (100, 96, 1))
