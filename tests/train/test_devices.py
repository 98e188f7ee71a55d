"""The number of devices and processes, and how the state is spread, change no loss."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from cmunet_jax.train import communication, sharding
from cmunet_jax.train.step import TrainStep
from tests import processes
from tests.objectives import tiny
from tests.train.test_step import ADAM, BATCH, arrays, run, spec, start
from tfds_angio.errors import UserError

# Objective, layout, accumulation, rematerialisation on several devices: one without keys, one with.
CASES = [
    ("scratch-fixed", "data", 1),
    ("cmunet-paper", "data", 1),
    ("scratch-fixed", "fsdp", 1),
]
SLOW_CASES = [*CASES, ("cmunet-fixed", "fsdp", 2), ("scratch-fixed", "fsdp", 1, "blocks")]
PROGRAM = """
import json, sys
import jax
if len(sys.argv) > 2:
    address, count, index = sys.argv[2:]
    jax.distributed.initialize(
        address, int(count), int(index), cluster_detection_method="deactivate"
    )
from tests.train.test_devices import made
print("RESULT " + json.dumps(made(json.loads(sys.argv[1]))), flush=True)
"""


def made(cases):
    """For each case the losses of two steps, what is spread, and what a step sends."""
    return [describe(*case) for case in cases]


def describe(name, layout, accumulation, remat="none"):
    """One case, on the devices of this process or of all."""
    objective = dataclasses.replace(tiny.OBJECTIVES[name], remat=remat)
    mesh = sharding.create_mesh()
    data = sharding.place(arrays(name.startswith("scratch")), sharding.replicated(mesh))
    step = TrainStep(
        objective, ADAM, spec(objective, layout=layout, accumulation=accumulation), mesh
    )
    state, losses = start(objective, ADAM, mesh, layout=layout), []
    compiled = step.jitted.lower(state, step.zero_metrics(state, data), data).compile()
    for _ in range(2):
        state, totals = compiled(state, step.zero_metrics(state, data), data)
        losses.append(float(totals["loss"][0] / totals["loss"][1]))
    spread = lambda tree: [  # noqa: E731
        x.shape for x in jax.tree.leaves(tree) if not x.sharding.is_fully_replicated
    ]
    sent = communication.of_step(compiled, devices=mesh.size)
    return {
        "losses": losses,
        "spread": spread(state.params),
        "moments": spread(state.opt_state),
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "sent": [(one.kind, one.times, [shape for _, shape in one.arrays]) for one in sent],
        "devices": jax.device_count(),
    }


def result(out):
    """What PROGRAM printed."""
    (line,) = [line for line in out.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


@pytest.fixture(scope="module")
def alone():
    """The losses on one device, each case once."""
    known = {}

    def losses(name, layout, accumulation, remat="none"):
        key = (name, accumulation)
        if key not in known:
            known[key] = run(tiny.OBJECTIVES[name], 2, accumulation=accumulation)[0]
        return known[key]

    return losses


def check_losses(found, cases, alone, devices, *, second=2e-4):
    """The first loss is exact but for rounding, which Adam can blow up on the way to the second.

    It makes whole steps of gradients that are nothing but rounding (biases before a normalisation).
    """
    for case, one in zip(cases, found, strict=True):
        assert one["devices"] == devices
        assert bool(one["spread"]) == bool(one["moments"]) == (case[1] == "fsdp"), case
        for got, expected, rtol in zip(one["losses"], alone(*case), (2e-5, second), strict=True):
            np.testing.assert_allclose(got, expected, rtol=rtol, err_msg=str(case))


@pytest.fixture(scope="module")
def eight(run_python):
    """CASES on eight devices."""
    return result(run_python("-c", PROGRAM, json.dumps(CASES), devices=8).stdout)


def test_eight_devices_give_the_losses_of_one(eight, alone):
    check_losses(eight, CASES, alone, 8)


def sizes(one, kind):
    """Elements of each array that collectives of a kind carry a step, with its repetitions."""
    return [
        times * int(np.prod(shape))
        for found, times, shapes in one["sent"]
        if found == kind
        for shape in shapes
    ]


def test_the_contrast_gathers_four_times_the_width_an_image_and_no_more(eight):
    """256 floats an image at the paper's width of 64; here it is 2, and 8 floats."""
    contrast = eight[1]
    assert sizes(contrast, "all-gather") == [BATCH * 4 * tiny.OBJECTIVES["cmunet-paper"].width]
    assert {kind for kind, _, _ in contrast["sent"]} == {"all-gather", "all-reduce"}


def test_data_parallel_sums_each_gradient_once(eight):
    supervised = eight[0]
    assert {kind for kind, _, _ in supervised["sent"]} == {"all-reduce"}
    # Besides the gradients: means and variances of the normalisations, forwards and backwards.
    summed = sum(sizes(supervised, "all-reduce"))
    assert supervised["parameters"] <= summed < 1.1 * supervised["parameters"]


def test_fully_sharded_gathers_each_spread_weight_once(eight):
    sharded = eight[2]
    gathered = [
        shape for kind, _, shapes in sharded["sent"] if kind == "all-gather" for shape in shapes
    ]
    assert sorted(gathered) == sorted(sharded["spread"]) and gathered
    assert all(times == 1 for _, times, _ in sharded["sent"])


@pytest.mark.slow
def test_two_devices_give_the_losses_of_one(run_python, alone):
    out = run_python("-c", PROGRAM, json.dumps(SLOW_CASES), devices=2).stdout
    check_losses(result(out), SLOW_CASES, alone, 2, second=2e-3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_of_two_devices_give_the_losses_of_one(alone):
    address = processes.free_address()
    commands = [["-c", PROGRAM, json.dumps(SLOW_CASES), address, "2", str(i)] for i in range(2)]
    with processes.started(commands) as running:
        ended = processes.finish(running, timeout=800)
    assert [one.status for one in ended] == [0, 0], ended[0].err + ended[1].err
    for one in ended:
        check_losses(result(one.out), SLOW_CASES, alone, 4, second=2e-3)


class Mesh:
    """Of eight devices."""

    size = 8


@pytest.mark.parametrize(("batch", "accumulation", "good"), [(16, 2, True), (12, 1, False)])
def test_batches_that_devices_cannot_share_are_named(batch, accumulation, good):
    if good:
        sharding.check_batch(batch, accumulation, Mesh())
    else:
        with pytest.raises(UserError, match="batch_size=12.*multiple of 8"):
            sharding.check_batch(batch, accumulation, Mesh())


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 64, 128), (None, None, None, "data")),  # the longest
        ((3, 3, 128, 64), (None, None, "data")),
        ((3, 3, 128, 128), (None, None, None, "data")),  # the last of equals
        ((3, 3, 129, 64), (None, None, None, "data")),  # that eight divides
        ((3, 3, 129, 65), ()),  # none
        ((128,), ()),  # small
        ((), ()),
    ],
)
def test_a_leaf_is_spread_along_its_longest_axis_that_divides(shape, spec):
    assert tuple(sharding.Layout(Mesh(), "fsdp")._spec(shape)) == spec
    assert tuple(sharding.Layout(Mesh(), "data")._spec(shape)) == ()


def test_a_layout_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="config.sharding='zero'.*data, fsdp"):
        sharding.Layout(Mesh(), "zero")
