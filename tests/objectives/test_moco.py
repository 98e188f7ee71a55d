"""MoCo: the queue, the momentum branch, what normalisation may tell, transfer, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmunet_jax import objectives
from cmunet_jax.models import initialise
from cmunet_jax.models.unet import UNet
from cmunet_jax.objectives.moco import MoCo, enqueue, preset_options
from cmunet_jax.train import transfer
from configs import common, pretrain
from tests.objectives import tiny
from tfds_angio.errors import UserError

FIXED, PAPER = tiny.OBJECTIVES["moco-fixed"], tiny.OBJECTIVES["moco-paper"]
BOTH = pytest.mark.parametrize("objective", [FIXED, PAPER], ids=["fixed", "paper"])
BATCH = 8


def _close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def _unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _norm(tree):
    return float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(tree)))


def _prepare(objective, variables, views, *, train=True):
    """(arranged views, context, state), compiled."""

    @jax.jit
    def run(variables, views):
        arranged = objective.arrange(views, tiny.KEY)
        return arranged, *objective.prepare(variables, arranged, tiny.KEY, train=train)

    return run(variables, views)


# --- the queue


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9))
def test_the_queue_is_first_in_first_out(count, blocks, batches):
    rng = np.random.default_rng(batches)
    queue, pointer = jnp.zeros((count * blocks, 3)), jnp.int32(0)
    keys = rng.standard_normal((batches, count, 3)).astype(np.float32)
    for batch in keys:
        queue, pointer = enqueue(queue, pointer, jnp.asarray(batch))
    assert pointer == batches * count % (count * blocks) and pointer.dtype == jnp.int32
    oldest_first = np.roll(np.asarray(queue), -int(pointer), axis=0)
    remembered = _unit(keys.reshape(-1, 3))[-count * blocks :]
    np.testing.assert_allclose(oldest_first[-len(remembered) :], remembered, atol=1e-6)
    assert not oldest_first[: -len(remembered)].any()


def test_a_batch_that_would_wrap_is_refused():
    with pytest.raises(ValueError, match="10 keys is not a multiple of the 4"):
        enqueue(jnp.zeros((10, 2)), jnp.int32(8), jnp.ones((4, 2)))


@BOTH
def test_queries_meet_the_old_queue_which_then_takes_their_keys(objective):
    variables, views = tiny.case(objective, batch=BATCH)
    arranged, context, state = _prepare(objective, variables, views)
    loss, out = jax.jit(lambda *a: objective.loss(*a, tiny.KEY, train=True))(
        variables.params, state, arranged, context
    )
    queries, _ = objective._features(
        variables.params, variables.batch_stats, views["view_q"], train=True
    )
    keys, old = _unit(context["keys"]), _unit(variables.extra["queue"])
    own = keys[np.asarray(arranged.get("key_row", np.arange(BATCH)))]
    positive = np.exp((_unit(queries) * own).sum(-1) / 0.07)
    negatives = np.exp(_unit(queries) @ old.T / 0.07).sum(-1)
    expected = -np.log(positive / (positive + negatives)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-3, atol=1e-6)
    queue = np.asarray(out.state["extra"]["queue"])
    np.testing.assert_allclose(queue[:BATCH], keys, atol=1e-6)
    np.testing.assert_array_equal(queue[BATCH:], variables.extra["queue"][BATCH:])
    assert out.state["extra"]["pointer"] == BATCH


@BOTH
def test_evaluation_changes_nothing(objective):
    variables, views = tiny.case(objective)
    _, out = jax.jit(lambda v: tiny.full_loss(objective, v, views, train=False))(variables)
    jax.tree.map(np.testing.assert_array_equal, out.state, variables.state)


# --- the momentum branch


@BOTH
def test_no_gradient_reaches_the_momentum_branch_or_the_queue(objective):
    variables, views = tiny.case(objective)

    @jax.jit
    def both(params, target, queue):
        def loss(params, target, queue):
            extra = {**variables.extra, "target": target, "queue": queue}
            return tiny.full_loss(objective, variables.replace(params=params, extra=extra), views)[
                0
            ]

        return jax.grad(loss, argnums=(0, 1, 2))(params, target, queue)

    online, target, queue = both(
        variables.params, variables.extra["target"], variables.extra["queue"]
    )
    assert _norm(target) == _norm(queue) == 0
    for name, block in online["encoder"].items():
        assert _norm(block) > 1e-3, name


def test_the_key_encoder_starts_as_a_copy_and_follows():
    variables, _ = tiny.case(FIXED)
    _close(variables.extra["target"], variables.params)
    moved = jax.tree.map(lambda x: x + 1, variables.params)
    extra = FIXED.post_update(moved, variables.extra, 0)
    _close(extra["target"], jax.tree.map(lambda x: x + 0.001, variables.params), atol=1e-6)
    rest = {name: extra[name] for name in extra if name != "target"}
    jax.tree.map(np.testing.assert_array_equal, rest, {k: variables.extra[k] for k in rest})


# --- normalisation


def test_groups_are_normalised_by_themselves():
    objective = MoCo(width=2, queue=16, key_norm="batch", bn_group=2)
    variables, views = tiny.case(objective, batch=BATCH)
    run = jax.jit(
        lambda objective, image: objective._features(
            variables.params, variables.batch_stats, image, train=True
        ),
        static_argnums=0,
    )
    grouped, _ = run(objective, views["view_q"])
    alone = dataclasses.replace(objective, bn_group=0)
    for group in range(4):
        expected, _ = run(alone, views["view_q"][group::4])
        np.testing.assert_allclose(grouped[group::4], expected, rtol=1e-4, atol=1e-5)


def test_shuffled_keys_find_their_queries():
    """Where normalisation does not look at the batch, shuffling must change nothing."""
    variables, views = tiny.case(PAPER, batch=BATCH)
    arranged, context, _ = _prepare(PAPER, variables, views, train=False)
    _, plain, _ = _prepare(FIXED, variables, views, train=False)
    rows = np.asarray(arranged["key_row"])
    assert sorted(rows) == list(range(BATCH)) and (rows != np.arange(BATCH)).any()
    np.testing.assert_allclose(context["keys"][rows], plain["keys"], atol=1e-5)
    again = PAPER.arrange(views, tiny.KEY)
    np.testing.assert_array_equal(again["key_row"], rows)
    other = PAPER.arrange(views, jax.random.key(8))
    assert (np.asarray(other["key_row"]) != rows).any()


@pytest.mark.parametrize(("key_norm", "alone"), [("running", True), ("batch", False)])
def test_a_key_tells_nothing_of_its_batch(key_norm, alone):
    objective = MoCo(width=2, queue=16, key_norm=key_norm)
    variables, views = tiny.case(objective, batch=4)
    changed = {**views, "view_k": views["view_k"].at[1:].mul(3.0)}
    _, a, _ = _prepare(objective, variables, views)
    _, b, _ = _prepare(objective, variables, changed)
    same = np.abs(np.asarray(a["keys"][0]) - np.asarray(b["keys"][0])).max() < 1e-6
    assert same == alone


# --- what is handed on and shown


def test_the_encoder_alone_is_transferred():
    variables, views = tiny.case(FIXED)
    target = initialise.draw(tiny.KEY, initialise.shapes_of(UNet(2), views["view_q"]))
    params, stats, report = transfer.transfer(
        target["params"],
        target["batch_stats"],
        variables.params,
        variables.batch_stats,
        FIXED.transfer,
    )
    _close(params["encoder"], variables.params["encoder"])
    _close(params["decoder"], target["params"]["decoder"])
    assert not report.left
    assert all("/encoder/" in path for path in report.loaded)
    assert all("/decoder/" in path for path in report.reinitialised)


def test_pictures_name_the_nearest_key_and_its_place_in_the_queue():
    variables, views = tiny.case(FIXED)
    same = {**views, "view_k": views["view_q"]}
    swapped = {**views, "view_k": views["view_q"][::-1]}
    draw = jax.jit(
        lambda views, context: FIXED.pictures(
            variables.params, variables.state, views, context, tiny.KEY
        )
    )
    for made, colour in ((same, "green"), (swapped, "red")):
        _, context, _ = _prepare(FIXED, variables, made, train=False)
        pictures = draw(made, context)
        assert set(pictures) == {"query", "key", "nearest", "similarity"}
        frame = np.asarray(pictures["nearest"])[:, 0, 0]
        assert (frame.argmax(-1) == ("red", "green").index(colour)).all()
        similarity = np.asarray(pictures["similarity"])
        green = (similarity[..., 1] > 0.75).any(1)
        assert (green.sum(1) == 1).all()  # one line an image
        if colour == "green":
            assert green[:, -1].all()  # an identical view has cosine 1
        grey = (similarity == np.float32(0.6)).all(-1)
        assert grey[:, -1].any(-1).all() and not grey[:, 0].all(-1).any()


# --- presets and refusals


def test_presets():
    paper, fixed = (
        objectives.create({"objective": objectives.default_options("moco", name), "model": {}})
        for name in ("paper", "fixed")
    )
    assert (paper.queue, paper.key_norm, paper.bn_group) == (65_536, "shuffled", 32)
    assert (fixed.queue, fixed.key_norm, fixed.bn_group) == (1024, "running", 0)
    for made in (paper, fixed):
        assert (made.temperature, made.momentum) == (0.07, 0.999)
        shapes = jax.eval_shape(lambda k, made=made: made.init(k, (224, 224, 1)), jax.random.key(0))
        assert shapes.extra["queue"].shape == (made.queue, 1024)
    with pytest.raises(UserError, match="'original'.*paper, fixed"):
        preset_options("original")


@pytest.mark.parametrize("preset", ["paper", "fixed"])
@pytest.mark.parametrize("size", common.SIZES)
def test_every_config_has_batches_that_fit(size, preset):
    config = pretrain.get_config(f"objective=moco,size={size},preset={preset}")
    made = objectives.create(config)
    made.check_batch(config.batch_size, accumulation=config.accumulation)
    assert (made.key_norm == "shuffled") == (made.bn_group > 0) == (preset == "paper")


@pytest.mark.parametrize(
    ("options", "batch", "accumulation", "message"),
    [
        ({"queue": 100}, 16, 1, r"queue=100 is not a multiple of config.batch_size=16.*Use 96"),
        ({"queue": 8}, 16, 1, r"queue=8 is not a multiple.*Use 16"),
        ({"bn_group": 3}, 8, 1, r"bn_group=3 does not divide the 8 images of a pass"),
        ({"bn_group": 4}, 8, 4, r"bn_group=4 does not divide the 2 images of a pass"),
        ({"key_norm": "shuffled", "bn_group": 8}, 8, 1, r"one group of all 8 images"),
    ],
)
def test_batches_that_do_not_fit_are_named(options, batch, accumulation, message):
    objective = MoCo(**{"queue": 64, **options})
    with pytest.raises(UserError, match=message) as caught:
        objective.check_batch(batch, accumulation=accumulation)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue": 0}, "queue=0"),
        ({"bn_group": -1}, "bn_group=-1"),
        ({"key_norm": "shuffled"}, "bn_group"),
        ({"key_norm": "ema"}, "key_norm='ema'.*shuffled, batch, running"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"momentum": 1.5}, "momentum=1.5"),
    ],
)
def test_bad_options_are_one_clear_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        MoCo(**options)
    assert "\n" not in str(caught.value)
