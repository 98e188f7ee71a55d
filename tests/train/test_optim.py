"""Schedules by their definition, decay by its mask, estimates by hand."""

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
    if name != "lamb":  # its trust ratio of a zero update is defined as 1
        assert not np.any(updates["bias"]) and not np.any(updates["scale"])


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


def test_long_runs_on_a_cpu_are_announced_with_the_smaller_preset(monkeypatch):
    monkeypatch.setattr(estimate, "flops_per_second", lambda: 1e11)
    said = estimate.forecast(Compiled(flops=1e13), steps=1000, accumulation=2, stage="pretrain")
    assert "at least 3 min a step, 2 days" in said and "size=small" in said
    assert estimate.forecast(Compiled(flops=1e9), steps=10, accumulation=1, stage="x") is None
    assert "29 days" in estimate.measured(250.0, remaining=10_000, stage="pretrain")
    assert estimate.measured(0.1, remaining=100, stage="pretrain") is None
