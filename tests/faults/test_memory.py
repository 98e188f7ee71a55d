"""Out of device memory, from the compiler or a running step: one line with a batch that fits."""

import contextlib
import itertools

import jax
import optax
import pytest

from cmunet_jax.stages import evaluate, segment
from cmunet_jax.train import estimate, loop, sharding
from cmunet_jax.train.step import TrainStep
from tests.objectives import tiny as tiny_objectives
from tests.train.test_step import arrays, spec, start
from tfds_angio.errors import UserError

pytestmark = pytest.mark.faults

GIB = 2**30
GPU = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 21474836480 bytes."
TPU = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 32.00G of 16.00G hbm."


def raised(text, **options):
    with pytest.raises(UserError) as error, estimate.memory_errors(**options):
        raise jax.errors.JaxRuntimeError(text)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "need", "fits"),
    [
        (TPU, 0, "about 12 fits"),  # half of the memory: 32 * 0.5 * 0.8
        (GPU, 64 * GIB, "about 6 fits"),  # 16 of 64 GiB: 32 * 0.25 * 0.8
        (GPU, 8 * GIB, "about 16 fits"),  # it should have fitted: half of the batch
        (GPU, 0, "about 16 fits"),  # nothing is known
    ],
)
def test_the_batch_that_fits(monkeypatch, text, need, fits):
    monkeypatch.setattr(estimate, "available_bytes", lambda: 16 * GIB)
    message = raised(text, batch_size=32, stage="pretrain", need=need)
    assert "config.batch_size=32" in message and "ran out of memory" in message
    assert fits in message or (text is TPU and fits in message)
    assert "config.accumulation" in message and "configs/pretrain.py:size=small" in message


def test_it_is_a_whole_number_of_parts_and_devices(monkeypatch):
    monkeypatch.setattr(estimate, "available_bytes", lambda: 16 * GIB)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    message = raised(GPU, batch_size=64, accumulation=4, stage="finetune", need=32 * GIB)
    assert "about 24 fits" in message  # 64 * 0.5 * 0.8 = 25.6, in steps of 8
    smallest = raised(GPU, batch_size=8, accumulation=4, stage="finetune", need=32 * GIB)
    assert "fits)" not in smallest and "size=small" in smallest


def test_other_errors_pass():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        with estimate.memory_errors(batch_size=8):
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")


class Exhausted:
    """Stands for what jax returns: fails where it is told to."""

    def __init__(self, *, at_compile):
        self._at_compile = at_compile

    def lower(self, *unused):
        return self

    def compile(self):
        if self._at_compile:
            raise jax.errors.JaxRuntimeError(TPU)
        return self

    def memory_analysis(self):
        return None

    def cost_analysis(self):
        return {}

    def __call__(self, *unused):
        raise jax.errors.JaxRuntimeError(GPU)


@pytest.mark.parametrize("at_compile", [True, False])
def test_compiling_and_running_a_step_both_say_it(at_compile):
    mesh, objective = sharding.create_mesh(), tiny_objectives.OBJECTIVES["scratch-fixed"]
    step = TrainStep(objective, optax.adam(1e-3), spec(objective), mesh)
    state, data = start(objective, optax.adam(1e-3), mesh), arrays()
    step.jitted = Exhausted(at_compile=at_compile)
    with pytest.raises(UserError, match="ran out of memory.*batch_size=8.*about . fits"):
        compiled = loop.compile_step(step, state, data, steps=1, stage="finetune")
        assert not at_compile
        loop.fit(
            compiled, state, itertools.repeat(data), total_steps=1,
            hooks=loop.Hooks(1, 0, 0, 0), checkpointer=None, writer=None,
            progress=lambda done: None, rate=lambda step: 0.0, stage="finetune",
        )  # fmt: skip


def test_an_evaluation_says_it_too(monkeypatch, tmp_path):
    """Without a smaller preset, which a finished network does not have."""
    message = raised(GPU, batch_size=16)
    assert "one batch" in message and "about 8 fits" in message and "preset" not in message
    assert "memory_errors" in evaluate.run.__code__.co_names
    assert isinstance(estimate.memory_errors(batch_size=1), contextlib.AbstractContextManager)
    assert segment.round_up(3, sharding.create_mesh()) >= 3
