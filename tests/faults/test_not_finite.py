"""A loss that is not finite: the run stops and names the images, or leaves the step out."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cmunet_jax import config as config_lib
from cmunet_jax.data import source
from cmunet_jax.stages import train as train_stage
from cmunet_jax.train import checkpoint, loop, optim, sharding
from cmunet_jax.train.step import NOT_FINITE, TrainStep
from tests.objectives import tiny as tiny_objectives
from tests.stage_helpers import tiny
from tests.train.states import assert_same
from tests.train.test_step import BATCH, EXAMPLES, arrays, spec, start
from tfds_angio.errors import UserError

pytestmark = pytest.mark.faults

SEED, STEPS = 3, 6
OBJECTIVE, ADAM = tiny_objectives.OBJECTIVES["scratch-fixed"], optax.adam(1e-3)


def rows(step):
    return np.asarray(source.batch_indices(SEED, step, size=EXAMPLES, batch_size=BATCH)).tolist()


# 12 examples in batches of 8: an epoch is one step, and this example is not in every one.
BAD = next(i for i in rows(2) if i not in rows(0) and i not in rows(1))
BAD_STEPS = [step for step in range(STEPS) if BAD in rows(step)]


@pytest.fixture(scope="module")
def steps():
    """(mesh, data with one image of infinities, {skip: compiled step})."""
    mesh = sharding.create_mesh()
    data = arrays()
    data["scale"][BAD] = np.inf
    data = jax.device_put(data, sharding.replicated(mesh))
    made = {}
    for skip in (False, True):
        step = TrainStep(OBJECTIVE, ADAM, spec(OBJECTIVE, skip_not_finite=skip), mesh)
        state = start(OBJECTIVE, ADAM, mesh)
        made[skip] = loop.compile_step(step, state, data, steps=STEPS, stage="finetune")
    return mesh, data, made


class Writer(list):
    def write_scalars(self, step, scalars):
        self.append((step, scalars))

    def save(self, step, state, **unused):
        self.append((step, "saved"))

    def wait(self):
        pass


def fit(steps, *, skip, log_every=STEPS, **hooks):
    mesh, data, made = steps
    writer = Writer()
    hooks = dict(log_every=log_every, eval_every=0, pictures_every=0, save_every=0) | hooks
    state = loop.fit(
        made[skip], start(OBJECTIVE, ADAM, mesh), itertools.repeat(data), total_steps=STEPS,
        hooks=loop.Hooks(**hooks), checkpointer=writer, writer=writer,
        progress=lambda done: None, rate=lambda step: 0.1, stage="finetune",
        batch_ids=lambda step: [f"image{i}" for i in rows(step)],
    )  # fmt: skip
    return state, writer


def test_the_case_is_one_that_can_tell():
    assert BAD_STEPS[0] == 2 and 0 < len(BAD_STEPS) < STEPS


def test_it_stops_and_names_the_first_step_and_its_images(steps):
    with pytest.raises(UserError) as error:
        fit(steps, skip=False)
    message = str(error.value)
    images = ", ".join(f"image{i}" for i in rows(2))
    assert f"at step {STEPS} (first at step 3, on the images {images})" in message
    assert "on_nan=skip" in message and "\n" not in message


def test_skipped_steps_change_nothing_but_their_number(steps):
    """Training with the bad steps skipped = training in which they were never taken."""
    mesh, data, made = steps
    state, writer = fit(steps, skip=True, log_every=2)
    clean = jax.device_put(arrays(), sharding.replicated(mesh))
    expected, step = start(OBJECTIVE, ADAM, mesh), made[True]
    for number in range(STEPS):
        expected = expected.replace(step=jax.device_put(jnp.int32(number), expected.step.sharding))
        if number not in BAD_STEPS:
            expected, _ = step.step(expected, step.zero_metrics(), clean)
    assert int(state.step) == STEPS
    assert_same(state.replace(step=expected.step), expected)
    logged = {step: scalars for step, scalars in writer if scalars != "saved"}
    skipped = {step: scalars.get("train/skipped", 0.0) for step, scalars in logged.items()}
    assert skipped == {n: float(len({n - 2, n - 1} & {*BAD_STEPS})) for n in (2, 4, 6)}
    for number, scalars in logged.items():
        assert ("train/loss" in scalars) == (skipped[number] < 2)
        assert all(np.isfinite(value) for value in scalars.values())


def test_skipping_costs_nothing_when_off(steps):
    """Without the option the program holds no selection between two states."""
    mesh, data, _ = steps
    state = start(OBJECTIVE, ADAM, mesh)
    counts = {}
    for skip in (False, True):
        step = TrainStep(OBJECTIVE, ADAM, spec(OBJECTIVE, skip_not_finite=skip), mesh)
        text = step.jitted.lower(state, step.zero_metrics(state, data), data).as_text()
        counts[skip] = text.count("call @_where")
    assert counts[True] - counts[False] >= len(jax.tree.leaves(state))


def test_a_run_of_nothing_but_skipped_steps_ends(steps):
    totals = {
        "loss": (jnp.float32(0), jnp.float32(0)),
        "gradient_norm": (jnp.float32(0), jnp.float32(0)),
        NOT_FINITE: (jnp.int32(5), jnp.int32(loop.MOST_SKIPPED)),
    }
    with pytest.raises(UserError, match="all 10 steps before step 20 were skipped.*step 6.*a, b"):
        loop._means(totals, 20, lambda step: ["a", "b"])


def test_a_stopped_run_goes_on_with_skip_in_its_workdir(tiny_dataset, tmp_path, monkeypatch):
    """From the config to the message and on: the ids are those of the data set."""
    config = tiny("pretrain", tiny_dataset, STEPS)
    config.checkpoint.every = "1 steps"
    real, broken = train_stage.prepare, []

    def prepare(*args):
        inputs = real(*args)
        batch = inputs.of_step(2, seed=config.seed, batch_size=config.batch_size)
        earlier = [
            inputs.of_step(step, seed=config.seed, batch_size=config.batch_size)
            for step in range(2)
        ]
        bad = next(name for name in batch if name not in sum(earlier, []))
        broken.append((bad, batch))
        scale = np.array(inputs.rows.scale)
        scale[inputs.ids.index(bad)] = np.nan
        object.__setattr__(inputs.rows, "scale", scale)
        return inputs

    monkeypatch.setattr(train_stage, "prepare", prepare)
    with pytest.raises(UserError) as error:
        train_stage.run(config, tmp_path)
    bad, batch = broken[0]
    assert ", ".join(batch) in str(error.value) and bad in batch
    assert "first at step 3" in str(error.value)
    assert checkpoint.load(tmp_path).step == 2, "nothing that is not finite was saved"
    config.optim.on_nan = "skip"
    assert train_stage.run(config, tmp_path) == 0
    loaded = checkpoint.load(tmp_path)
    assert loaded.step == STEPS
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(loaded.params))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum(row.get("train/skipped", 0) for row in rows) >= 1


def test_other_words_are_refused():
    options = config_lib.from_dict({"on_nan": "ignore"})
    with pytest.raises(UserError, match="on_nan='ignore'.*stop, skip"):
        optim.skips(options)
