# ruff: noqa: E501 (lines of real modules are long)
"""What a step sends is what its program says; real programs are counted in test_devices.py."""

import pytest

from cmunet_jax.train import communication
from cmunet_jax.train.communication import Collective

# Lines of real modules: of a CPU, of a GPU (asynchronous) and of a TPU, shortened.
MODULE = """\
HloModule jit_step, is_scheduled=true

%add.clone (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x, %y)
}

%body (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg = (s32[], f32[8,4]{1,0}) parameter(0)
  %all-reduce.7 = (f32[2]{0}, /*index=1*/bf16[3,3,4,2]{3,2,1,0}) all-reduce(%a, %b), channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, to_apply=%add.clone, metadata={op_name="jit(step)/while/bn/reduce_sum"}
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %g)
}

%condition (arg.1: (s32[], f32[8,4])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main.10_spmd (p0: f32[8,4], p1: f32[2,4]) -> f32[8,4] {
  %p0 = f32[8,4]{1,0} parameter(0)
  %while.3 = (s32[], f32[8,4]{1,0}) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %all-gather-start = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%p1), channel_id=2, replica_groups=[1,4]<=[4], dimensions={0}, metadata={op_name="jit(step)/dot_general"}
  %all-gather-done = f32[8,4]{1,0} all-gather-done(%all-gather-start)
  %reduce-scatter.1 = f32[2,4]{1,0} reduce-scatter(%g), channel_id=3, replica_groups={{0,1},{2,3}}, dimensions={0}, to_apply=%add.clone
  %collective-permute-start = (u8[5]{0}, u8[5]{0}, u32[], u32[]) collective-permute-start(%q), source_target_pairs={{0,1},{1,0}}
  ROOT %fusion.all-reduce = f32[8,4]{1,0} fusion(%all-gather-done), kind=kLoop, calls=%fused
}
"""


def test_collectives_are_read_with_their_arrays_groups_and_loops():
    found = communication.collectives(MODULE, devices=4)
    by_kind = {one.kind: one for one in found}
    assert len(found) == 4
    reduced = by_kind["all-reduce"]
    assert reduced.arrays == (("f32", (2,)), ("bf16", (3, 3, 4, 2)))
    assert (reduced.nbytes, reduced.times, reduced.group) == (8 + 2 * 72, 3, 4)
    assert reduced.origin == "jit(step)/while/bn/reduce_sum"
    gathered = by_kind["all-gather"]
    assert (gathered.arrays, gathered.times, gathered.group) == ((("f32", (8, 4)),), 1, 4)
    scattered = by_kind["reduce-scatter"]  # its type is one of two parts
    assert (scattered.nbytes, scattered.group) == (2 * 2 * 4 * 4, 2)
    assert by_kind["collective-permute"].nbytes == 5


def test_an_asynchronous_collective_of_a_tpu_counts_once():
    gather = "%all-gather.{} = f32[{},4]{{1,0}} all-gather(%p), channel_id={}, dimensions={{0}}"
    module = """
%start (p: f32[2,4]) -> f32[8,4] {
  FIRST
}

%meanwhile (p: f32[2,4], q: f32[2,4]) -> f32[2,4] {
  AGAIN
  ROOT %add = f32[2,4]{1,0} add(%q, %q)
}

ENTRY %main (p: f32[2,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} fusion(%p), kind=kCustom, calls=%start
  %b = f32[2,4]{1,0} fusion(%p, %p), kind=kCustom, calls=%meanwhile
  OTHER
  EQUAL
  WIDER
}
"""
    for name, given in {  # the last three are apart: another channel, one more, another array
        "FIRST": (1, 8, 63),
        "AGAIN": (2, 8, 63),
        "OTHER": (3, 8, 1),
        "EQUAL": (4, 8, 1),
        "WIDER": (5, 12, 63),
    }.items():
        module = module.replace(name, gather.format(*given))
    found = communication.collectives(module, devices=4)
    assert [(one.nbytes, one.times) for one in found] == 3 * [(128, 1)] + [(192, 1)]


def test_rings_send_what_is_known_of_them():
    """A sum of S bytes costs each of n devices 2 (n - 1) / n S, a gather half of that."""
    reduced = Collective("all-reduce", (("f32", (100,)),), 4, 1, "")
    gathered = Collective("all-gather", (("f32", (100,)),), 4, 1, "")
    assert reduced.sent() == pytest.approx(2 * 3 / 4 * 400)
    assert gathered.sent() == pytest.approx(3 / 4 * 400)
    assert reduced.sent(512) == pytest.approx(2 * 511 / 512 * 400)


def test_totals_and_the_line_add_up():
    found = communication.collectives(MODULE, devices=4)
    table = communication.totals(found)
    assert table["all-reduce"] == {"count": 3, "bytes": 3 * 152, "sent_bytes": 3 * 1.5 * 152}
    line = communication.describe(found)
    assert "3 all-reduce (0.000456 MB)" in line and "1 all-gather" in line
    assert communication.describe([]) == "nothing"


def test_a_prediction_grows_with_the_keys_and_not_with_the_sums():
    speed = dict(bytes_per_second=1e9, seconds_per_hop=0.0)
    keys = [Collective("all-gather", (("f32", (64, 256)),), 4, 1, "jit(step)/dot_general")]
    weights = [
        Collective("all-gather", (("f32", (64, 256)),), 4, 1, "jit(step)/sharding_constraint")
    ]
    eight, many = (communication.predict(keys, devices=n, **speed) for n in (8, 64))
    assert many / eight == pytest.approx(8 * (63 / 64) / (7 / 8))
    eight, many = (communication.predict(weights, devices=n, **speed) for n in (8, 64))
    assert many / eight == pytest.approx((63 / 64) / (7 / 8))
    hops = communication.predict(keys, devices=8, bytes_per_second=1e30, seconds_per_hop=1.0)
    assert hops == pytest.approx(3)
