"""The number of devices and processes, and how the state is spread, change no loss."""

import json

import jax
import numpy as np
import pytest

from cmunet_jax.train import sharding
from tests import processes
from tests.objectives import tiny
from tests.train.test_step import run
from tfds_angio.errors import UserError

# Objective, layout, accumulation: one without keys, one with.
CASES = [
    ("scratch-fixed", "data", 1),
    ("cmunet-paper", "data", 1),
    ("scratch-fixed", "fsdp", 1),
]
SLOW_CASES = [*CASES, ("cmunet-fixed", "fsdp", 2)]
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
    """For each case the losses of two steps, and how many of the leaves are spread."""
    found = []
    for name, layout, accumulation in cases:
        losses, state, _ = run(tiny.OBJECTIVES[name], 2, layout=layout, accumulation=accumulation)
        leaves = jax.tree.leaves(state)
        found.append(
            {
                "losses": losses,
                "spread": sum(not leaf.sharding.is_fully_replicated for leaf in leaves),
                "moments": sum(
                    not leaf.sharding.is_fully_replicated
                    for leaf in jax.tree.leaves(state.opt_state)
                ),
                "devices": jax.device_count(),
            }
        )
    return found


def result(out):
    """What PROGRAM printed."""
    (line,) = [line for line in out.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


@pytest.fixture(scope="module")
def alone():
    """The losses on one device, each case once."""
    known = {}

    def losses(name, layout, accumulation):
        key = (name, accumulation)
        if key not in known:
            known[key] = run(tiny.OBJECTIVES[name], 2, accumulation=accumulation)[0]
        return known[key]

    return losses


def check_losses(found, cases, alone, devices):
    for case, one in zip(cases, found, strict=True):
        assert one["devices"] == devices
        assert bool(one["spread"]) == bool(one["moments"]) == (case[1] == "fsdp"), case
        np.testing.assert_allclose(one["losses"], alone(*case), rtol=2e-4, err_msg=str(case))


def test_eight_devices_give_the_losses_of_one(run_python, alone):
    out = run_python("-c", PROGRAM, json.dumps(CASES), devices=8).stdout
    check_losses(result(out), CASES, alone, 8)


@pytest.mark.slow
def test_two_devices_give_the_losses_of_one(run_python, alone):
    out = run_python("-c", PROGRAM, json.dumps(SLOW_CASES), devices=2).stdout
    check_losses(result(out), SLOW_CASES, alone, 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_of_two_devices_give_the_losses_of_one(alone):
    address = processes.free_address()
    commands = [["-c", PROGRAM, json.dumps(SLOW_CASES), address, "2", str(i)] for i in range(2)]
    with processes.started(commands) as running:
        ended = processes.finish(running, timeout=800)
    assert [one.status for one in ended] == [0, 0], ended[0].err + ended[1].err
    for one in ended:
        check_losses(result(one.out), SLOW_CASES, alone, 4)


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
