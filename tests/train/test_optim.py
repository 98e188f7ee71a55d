"""Schedules by their definition, decay by its mask, estimates by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cmunet_jax.train import estimate, optim
from configs import common
from tfds_angio.errors import UserError


def options(**changes):
    """config.optim with changes."""
    return common.optim(**changes)


def test_the_released_schedule_of_pre_training():
    """Linear from 1e-4 of the peak over 40 of 300 epochs, then cosine to 0 (method.md, 3)."""
    rate = optim.schedule(
        options(learning_rate=2.4e-3, reference_batch=256),
        batch_size=256, total_steps=300, warmup_steps=40,
    )  # fmt: skip
    np.testing.assert_allclose(rate(0), 2.4e-7, rtol=1e-3)  # float32
    np.testing.assert_allclose(rate(20), 1.2e-3, rtol=1e-3)
    np.testing.assert_allclose(rate(40), 2.4e-3, rtol=1e-5)
    np.testing.assert_allclose(rate(170), 1.2e-3, rtol=1e-5)
    np.testing.assert_allclose(rate(300), 0, atol=1e-9)


def test_the_rate_scales_with_the_batch():
    assert optim.peak_learning_rate(options(learning_rate=1.0, reference_batch=256), 64) == 0.25
    assert optim.peak_learning_rate(options(learning_rate=1.0), 64) == 1.0


def test_step_schedule_halves():
    rate = optim.schedule(
        options(learning_rate=1.0, schedule="step", halve_every=0.25),
        batch_size=8, total_steps=100, warmup_steps=0,
    )  # fmt: skip
    np.testing.assert_allclose([rate(s) for s in (0, 24, 25, 50, 99)], [1, 1, 0.5, 0.25, 0.125])


@pytest.mark.parametrize("name", ["adamw", "sgd", "adam", "lamb"])
def test_decay_spares_biases_and_norm_scales(name):
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones(2)}
    chosen = options(name=name, weight_decay=0.1, learning_rate=0.1)
    tx = optim.create(chosen, optax.constant_schedule(0.1))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert np.all(updates["kernel"] < 0)
    assert not np.any(updates["bias"]) and not np.any(updates["scale"])


def _lamb_by_hand(params, gradients, *, rates, decays, b1, b2, clip):
    """LAMB of You et al. (2020), algorithm 2, kernels only adapted, in float64 NumPy."""
    moments = {k: (np.zeros_like(p), np.zeros_like(p)) for k, p in params.items()}
    for t, (step, rate, decay) in enumerate(zip(gradients, rates, decays), start=1):
        norm = np.sqrt(sum((g**2).sum() for g in step.values()))
        for name, g in step.items():
            g = g * min(1, clip / norm)
            m, v = moments[name]
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            moments[name] = m, v
            update = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-6)
            if params[name].ndim > 1:
                update += decay * params[name]
                update *= np.linalg.norm(params[name]) / np.linalg.norm(update)
            params[name] = params[name] - rate * update
    return params


def test_lamb_is_the_published_update():
    """Clipped gradients, growing weight decay, layer-wise trust; none of them on biases."""
    rng = np.random.default_rng(3)
    shapes = {"kernel": (3, 3, 2, 4), "bias": (4,), "token": (5,)}
    draw = lambda scale: {k: scale * rng.standard_normal(s) for k, s in shapes.items()}  # noqa: E731
    start, gradients = draw(0.1), [draw(scale) for scale in (1.0, 0.01, 3.0, 0.5)]
    chosen = options(
        name="lamb", learning_rate=1.0, schedule="constant", warmup="0 steps", b2=0.95,
        weight_decay=0.04, weight_decay_end=0.2, clip_norm=5.0,
    )  # fmt: skip
    rates, steps = [0.1, 0.2, 0.3, 0.4], len(gradients)
    cosine = [0.2 + (0.04 - 0.2) * (0.5 + 0.5 * np.cos(np.pi * t / steps)) for t in range(steps)]
    expected = _lamb_by_hand(
        dict(start), gradients, rates=rates, decays=cosine, b1=0.9, b2=0.95, clip=5.0
    )
    with jax.enable_x64(True):
        schedule = lambda step: jnp.asarray(rates)[step]  # noqa: E731
        tx = optim.create(chosen, schedule, total_steps=steps)
        params = jax.tree.map(jnp.asarray, start)
        state = tx.init(params)
        for gradient in gradients:
            updates, state = tx.update(jax.tree.map(jnp.asarray, gradient), state, params)
            params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, expected)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adam", "lamb"])
def test_weight_decay_moves_from_start_to_end(name):
    chosen = options(name=name, weight_decay=0.04, weight_decay_end=0.2)
    decay = optim.weight_decay(chosen, total_steps=100)
    np.testing.assert_allclose([decay(0), decay(50), decay(100)], [0.04, 0.12, 0.2], rtol=1e-6)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    tx = optim.create(chosen, optax.constant_schedule(0.1), total_steps=2)
    state, sizes = tx.init(params), []
    for _ in range(2):
        zero = jax.tree.map(jnp.zeros_like, params)
        updates, state = tx.update(zero, state, params)
        assert not np.any(updates["bias"])
        sizes.append(float(-updates["kernel"][0, 0]))
    if name == "adamw":  # decoupled, and not adapted: rate times decay
        np.testing.assert_allclose(sizes, [0.1 * 0.04, 0.1 * 0.12], rtol=1e-5)
    assert min(sizes) > 0


def test_a_constant_weight_decay_stays_a_number():
    assert optim.weight_decay(options(weight_decay=0.3)) == 0.3
    assert optim.weight_decay(options(weight_decay=0.3, weight_decay_end=0.3)) == 0.3
    with pytest.raises(ValueError, match="total_steps"):
        optim.weight_decay(options(weight_decay=0.3, weight_decay_end=0.0))


def test_sgd_is_pytorchs_with_coupled_decay_and_a_changing_rate():
    """torch.optim.SGD: g += wd·p; b = momentum·b + g; p -= lr·b. The rate is not in the buffer."""
    rng = np.random.default_rng(5)
    start, gradients = rng.standard_normal((3, 2)), rng.standard_normal((4, 3, 2))
    chosen = options(
        name="sgd", learning_rate=0.03, momentum=0.9, weight_decay=1e-2, warmup="0 steps"
    )
    rate = optim.schedule(chosen, batch_size=8, total_steps=4, warmup_steps=0)
    tx = optim.create(chosen, rate)
    ours = {"kernel": jnp.asarray(start, jnp.float32)}
    state = tx.init(ours)
    theirs, buffer = start.copy(), np.zeros_like(start)
    for step, gradient in enumerate(gradients):
        updates, state = tx.update({"kernel": jnp.asarray(gradient, jnp.float32)}, state, ours)
        ours = optax.apply_updates(ours, updates)
        buffer = 0.9 * buffer + (gradient + 1e-2 * theirs)
        theirs = theirs - 0.03 * 0.5 * (1 + np.cos(np.pi * step / 4)) * buffer
    np.testing.assert_allclose(ours["kernel"], theirs, rtol=1e-5)


def test_clipping_bounds_the_norm():
    tx = optim.create(
        options(name="sgd", momentum=0.0, clip_norm=1.0), optax.constant_schedule(1.0)
    )
    params = {"a": jnp.zeros(4)}
    updates, _ = tx.update({"a": jnp.full(4, 100.0)}, tx.init(params), params)
    np.testing.assert_allclose(optax.global_norm(updates), 1.0, rtol=1e-5)


@pytest.mark.parametrize("key", ["name", "schedule"])
def test_unknown_choices_are_named(key):
    with pytest.raises(UserError, match=f"config.optim.{key}='cosin'"):
        chosen = options(**{key: "cosin"})
        rate = optim.schedule(chosen, batch_size=1, total_steps=2, warmup_steps=0)
        optim.create(chosen, rate)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4, "4 s"),
        (600, "10 min"),
        (3 * 3600, "3.0 h"),
        (30 * 3600, "30 h"),
        (29 * 86400, "29 days"),
    ],
)
def test_durations_read_as_a_person_would_say_them(seconds, text):
    assert estimate.duration(seconds) == text


class Compiled:
    """What a compiled step says of itself."""

    def __init__(self, gib=0.0, flops=0.0):
        self._gib, self._flops = gib, flops

    def memory_analysis(self):
        return type(
            "M", (), {"temp_size_in_bytes": int(self._gib * 2**30), "argument_size_in_bytes": 0}
        )

    def cost_analysis(self):
        return {"flops": self._flops}


def test_a_step_that_cannot_fit_is_refused_with_a_batch_that_does(monkeypatch):
    monkeypatch.setattr(estimate, "available_bytes", lambda: 16 * 2**30)
    estimate.check_memory(Compiled(gib=8), batch_size=32, stage="pretrain")
    with pytest.raises(UserError) as error:
        estimate.check_memory(Compiled(gib=64), batch_size=32, stage="pretrain")
    message = str(error.value)
    assert "64 GiB" in message and "16 GiB" in message and "about 6 fits" in message
    assert "configs/pretrain.py:size=small" in message


@pytest.mark.parametrize(
    ("remat", "need", "advice"),
    [
        ("none", 20, "remat=norms"),
        ("none", 33, "remat=blocks"),
        ("none", 40, ""),  # neither would do
        ("norms", 20, ""),  # it has been done
        ("", 20, ""),  # no gradient
    ],
)
def test_rematerialisation_is_the_advice_where_it_would_do(monkeypatch, remat, need, advice):
    monkeypatch.setattr(estimate, "available_bytes", lambda: 16 * 2**30)
    with pytest.raises(UserError) as error:
        estimate.check_memory(Compiled(gib=need), batch_size=8, stage="finetune", remat=remat)
    said = re.findall(r"remat=\w+", str(error.value))
    assert said == [advice] if advice else not said


def test_long_runs_on_a_cpu_are_announced_with_the_smaller_preset(monkeypatch):
    monkeypatch.setattr(estimate, "flops_per_second", lambda: 1e11)
    said = estimate.forecast(Compiled(flops=1e13), steps=1000, accumulation=2, stage="pretrain")
    assert "at least 3 min a step, 2 days" in said and "size=small" in said
    assert estimate.forecast(Compiled(flops=1e9), steps=10, accumulation=1, stage="x") is None
    assert "29 days" in estimate.measured(250.0, remaining=10_000, stage="pretrain")
    assert estimate.measured(0.1, remaining=100, stage="pretrain") is None
