"""The one train step: accumulation, devices, streaming, averages, one trace."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage

from cmunet_jax.config import from_dict
from cmunet_jax.data import source, views
from cmunet_jax.objectives.base import AnyBatch
from cmunet_jax.objectives.scratch import Scratch
from cmunet_jax.train import sharding
from cmunet_jax.train import state as state_lib
from cmunet_jax.train.step import Spec, TrainStep, _merge, _split, gradients
from tests.objectives import tiny

SIZE, EXAMPLES, BATCH = 32, 12, 8
SHARED_OBJECTIVES = ("scratch-fixed", "cmunet-paper")  # one without keys, one with
ADAM = optax.adam(1e-3)


def arrays(masks=True):
    """A resident data set of blobs, the bright ones wanted, as PreparedSplit.arrays().

    The noise matters: where a line of pixels is constant, standardising by lines (preset `paper`)
    amplifies rounding, and sums in another order give another loss.
    """
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(EXAMPLES, SIZE, SIZE)), (0, 4, 4))
    noisy = smooth / smooth.std() + 0.3 * rng.normal(size=smooth.shape)
    code = np.clip(128 + 40 * noisy, 0, 255).astype(np.uint8)
    made = {
        "code": code,
        "scale": np.full(EXAMPLES, 0.02, np.float32),
        "offset": np.full(EXAMPLES, -2.5, np.float32),
    }
    return made | ({"mask": (code > 160).astype(np.uint8)} if masks else {})


def spec(objective, **changes):
    """A Spec of the supervised or the pre-training view at 32²."""
    name = objective.views[0]
    options = from_dict(views.default_options(name, SIZE))
    if name == "online_target":
        options.crop, options.max_offset = SIZE, 0  # 2 x 2 patches
    values = dict(
        seed=3, batch_size=BATCH, accumulation=1, ema_decay=0.9, views=options, size=EXAMPLES,
        resident=True,
    )  # fmt: skip
    return Spec(**(values | changes))


def start(objective, tx, mesh, *, ema=True, layout="data"):
    """The state before the first step, on the mesh."""
    init = jax.jit(objective.init, static_argnums=1)
    variables = init(jax.random.key(0), (SIZE, SIZE, 1))
    state = state_lib.create(variables, tx, ema=ema)
    return sharding.place(state, sharding.Layout(mesh, layout).of(state))


def run(objective, steps, *, tx=ADAM, **changes):
    """Losses and final state of a few steps on resident data."""
    mesh = sharding.create_mesh()
    data = sharding.place(arrays(isinstance(objective, Scratch)), sharding.replicated(mesh))
    step = TrainStep(objective, tx, spec(objective, **changes), mesh)
    state, losses = start(objective, tx, mesh, layout=step.spec.layout), []
    for _ in range(steps):
        state, totals = step(state, step.zero_metrics(state, data), data)
        losses.append(float(totals["loss"][0] / totals["loss"][1]))
    return losses, state, step


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_microbatches_interleave_and_merge_back(parts):
    x = jnp.arange(24.0).reshape(8, 3)
    split = _split({"x": x}, parts)["x"]
    assert split.shape == (parts, 8 // parts, 3)
    np.testing.assert_array_equal(_merge(split), x)
    np.testing.assert_array_equal(split[0], x[::parts])


@pytest.mark.parametrize(
    "name", ["cmunet-ema", pytest.param("cmunet-paper", marks=pytest.mark.slow)]
)
def test_accumulation_keeps_the_negatives_of_the_whole_batch(name):
    """With frozen normalisation, accumulated gradients equal those of one pass."""
    objective = tiny.OBJECTIVES[name]
    variables, made = tiny.case(objective, batch=8)

    class Frozen(AnyBatch):
        """Normalises by running statistics, so that only the bookkeeping is compared."""

        def prepare(self, v, views, key, *, train):
            return objective.prepare(v, views, key, train=False)

        def loss(self, params, state, views, context, key, *, train):
            return objective.loss(params, state, views, context, key, train=False)

    if name == "cmunet-paper":  # the shared mask is that of the first image of a microbatch
        made["patches"] = jnp.broadcast_to(made["patches"][:1], made["patches"].shape)
    state = state_lib.create(variables, optax.sgd(1.0), ema=False)
    results = [
        jax.jit(lambda s, v, n=n: gradients(Frozen(), s, v, tiny.KEY, accumulation=n))(state, made)
        for n in (1, 4)
    ]
    for (grads, _, metrics), _ in [(results[0], 0), (results[1], 1)]:
        assert set(metrics) >= {"loss", "loss_contrast"}
        assert np.isfinite(optax.global_norm(grads))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5),
        results[0][0],
        results[1][0],
    )
    losses = [float(m["loss"][0] / m["loss"][1]) for _, _, m in results]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_streaming_gives_the_same_losses_as_resident_data():
    objective = tiny.OBJECTIVES["scratch-fixed"]
    resident, _, _ = run(objective, 3)
    mesh, tx = sharding.create_mesh(), optax.adam(1e-3)
    step = TrainStep(objective, tx, spec(objective, resident=False), mesh)
    state, streamed, data = start(objective, tx, mesh), [], arrays()
    for number in range(3):
        indices = np.asarray(source.batch_indices(3, number, size=EXAMPLES, batch_size=BATCH))
        raw = {name: value[indices] for name, value in data.items()}
        raw = jax.device_put(raw | {"index": indices}, sharding.by_example(mesh))
        state, totals = step(state, step.zero_metrics(state, raw), raw)
        streamed.append(float(totals["loss"][0]))
    assert streamed == resident


def test_one_trace_a_run_and_state_counts_steps():
    _, state, step = run(tiny.OBJECTIVES["scratch-fixed"], 3)
    assert step.jitted._cache_size() == 1
    assert int(state.step) == 3


def test_averages_start_young_and_follow():
    old, new = {"a": jnp.zeros(3)}, {"a": jnp.ones(3)}
    first = state_lib.update_ema(old, new, decay=0.99, step=jnp.zeros((), jnp.int32))
    np.testing.assert_allclose(first["a"], 0.9, rtol=1e-6)
    late = state_lib.update_ema(old, new, decay=0.99, step=jnp.asarray(100_000))
    np.testing.assert_allclose(late["a"], 0.01, rtol=1e-4)


def test_the_whole_step_learns_what_is_bright():
    """No constant prediction brings the loss below 0.9 of the first: the network must look."""
    chances = ("flip_horizontal", "flip_vertical", "rot90", "affine", "downscale", "blur", "gamma",
               "noise", "brightness")  # fmt: skip
    plain = dict.fromkeys(chances, 0.0) | {"contrast": (1.0, 1.0)}
    options = from_dict(views.default_options("supervised", SIZE) | plain)
    losses, _, _ = run(tiny.OBJECTIVES["scratch-fixed"], 30, tx=optax.adam(2e-2), views=options)
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
