"""What the benchmark counts and computes, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmunet_jax.benchmark import cost, memory, roofline, table, timing
from cmunet_jax.benchmark.cost import Ceilings, Cost
from cmunet_jax.benchmark.memory import Peak
from cmunet_jax.benchmark.rows import Row
from cmunet_jax.benchmark.timing import Effort, Task
from cmunet_jax.models.initialise import shapes_of
from cmunet_jax.models.unet import UNet
from cmunet_jax.train import estimate
from tests.benchmark import ahead, step_memory

CEILINGS = Ceilings({"float32": 100.0}, 10.0)


def _lowered(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))


def _convolution(x, w):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=numbers)


def test_flops_and_bytes_of_a_convolution_are_those_of_the_formula():
    lowered = _lowered(_convolution, (2, 18, 18, 8), (3, 3, 8, 4))
    counted = cost.count(lowered.compile(), textbook=lowered)
    # Two operations for each of B·H·W·K·k²·C products; float32 input, kernel and output.
    assert counted.flops == counted.flops_compiled == 2 * (2 * 16 * 16) * 4 * 9 * 8
    assert counted.bytes == 4 * (2 * 18 * 18 * 8 + 3 * 3 * 8 * 4 + 2 * 16 * 16 * 4)
    assert counted.memory == counted.bytes  # arguments and result, no temporaries
    assert not counted.hidden


def test_padding_is_no_work():
    lowered = jax.jit(lambda x, w: jax.lax.conv(x, w, (1, 1), "SAME")).lower(
        jax.ShapeDtypeStruct((1, 1, 5, 5), jnp.float32),
        jax.ShapeDtypeStruct((1, 1, 3, 3), jnp.float32),
    )
    # Along an axis of 5, three taps meet 5 + 4 + 4 pixels.
    assert cost.count(lowered.compile(), textbook=lowered).flops == 2 * 13 * 13


def test_a_loop_hides_work_from_the_compiled_count_but_not_from_the_textbook():
    def plain(x):
        for _ in range(8):
            x = x @ x
        return x

    def looped(x):
        return jax.lax.fori_loop(0, 8, lambda i, y: y @ y, x)

    textbook = _lowered(plain, (16, 16))
    counted = cost.count(_lowered(looped, (16, 16)).compile(), textbook=textbook)
    assert counted.flops == 8 * 2 * 16**3
    assert counted.hidden


def test_a_forward_pass_counts_at_least_its_convolutions():
    network, size, width = UNet(4), 32, 4
    image = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
    weights = shapes_of(network, image)
    lowered = jax.jit(lambda w, x: network.apply(w, x, train=False)).lower(weights, image)
    counted = lowered.cost_analysis()["flops"]
    # 3×3 convolutions without their padding's share, up-convolutions and head, as H·W·k²·C·K.
    taps = lambda side: (3 * side - 2) ** 2  # noqa: E731
    macs = 0
    for level in range(5):
        side, out = size >> level, width << level
        inputs = out // 2 if level else 1
        macs += taps(side) * (inputs * out + out * out)
        if level < 4:
            macs += taps(side) * (2 * out * out + out * out)  # concatenated, then again
            macs += (side // 2) ** 2 * 4 * (2 * out) * out  # the up-convolution onto this level
    macs += size * size * width * 2
    assert 1 <= counted / (2 * macs) < 1.1  # normalisation and rectifiers are the rest


def test_the_parameters_of_the_papers_network_are_31_million():
    shapes = shapes_of(UNet(64), jax.ShapeDtypeStruct((1, 16, 16, 1), jnp.float32))
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"]))
    assert count == 31_042_434


def test_the_ceilings_count_two_operations_a_product_and_three_arrays():
    assert roofline.product_flops(10) == 2000
    assert roofline.stream_bytes(10) == 120


def test_ceilings_are_the_best_sample(monkeypatch):
    monkeypatch.setattr(roofline, "SIDES", {"cpu": (8, 16)})
    monkeypatch.setattr(roofline, "STREAM_BYTES", {"cpu": 4096})
    ceilings, samples = roofline.measure_ceilings(("float32",), Effort(2, 0, 0))
    rates = [r for by_side in samples["product"]["float32"].values() for r in by_side]
    assert len(rates) == 4 and len(samples["stream"]) == 2
    assert ceilings.flops_per_second == {"float32": jax.device_count() * max(rates)}
    assert ceilings.bytes_per_second == jax.device_count() * max(samples["stream"])


@pytest.mark.parametrize(
    "flops, moved, fraction",
    [(200.0, 10.0, 0.5), (50.0, 30.0, 0.75)],
    ids=["bound by arithmetic", "bound by memory"],
)
def test_rates_and_the_share_of_the_roofline(flops, moved, fraction):
    work = Cost(flops, moved, flops, 123.0)
    row = Row("a", "b", [3.0, 4.0, 5.0], images=8, cost=work)
    rates = row.derived(CEILINGS)
    assert rates["images_per_second"] == 2.0
    assert rates["flops_per_second"] == flops / 4
    assert rates["bytes_per_second"] == moved / 4
    assert rates["roofline_fraction"] == fraction
    stored = row.to_dict(CEILINGS)
    assert stored["samples"] == [3.0, 4.0, 5.0] and stored["median"] == 4.0
    assert stored["cost"]["flops"] == flops


def test_memory_names_its_source():
    work = Cost(1, 1, 1, 50.0)
    assert Row("a", "b", cost=work, peak=Peak(9.0, 70.0)).memory == (70.0, "device")
    assert Row("a", "b", cost=work, peak=Peak(9.0)).memory == (50.0, "program")
    assert Row("a", "b", peak=Peak(9.0)).memory == (9.0, "process")
    assert Row("a", "b").memory is None


def test_the_peak_of_a_block_is_seen_and_forgotten():
    with memory.watch() as small:
        pass
    with memory.watch() as large:
        np.ones(200_000_000 // 8).sum()
    with memory.watch() as after:
        pass
    assert large.process - small.process > 150e6
    assert large.process - after.process > 100e6


def test_spread_and_ratios_are_those_of_the_rounds():
    found = timing.spread([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.median, found.q1, found.q3, found.low, found.high, found.n) == (3, 2, 4, 1, 5, 5)
    # The second round was slow for both: its ratio is that of the first.
    assert timing.ratios([1.0, 10.0], [2.0, 20.0]) == [2.0, 2.0]
    with pytest.raises(ValueError):
        timing.ratios([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="no samples"):
        timing.spread([])


def test_competitors_take_turns():
    order = []
    tasks = {name: Task(lambda name=name: order.append(name)) for name in "ab"}
    samples = timing.alternate(tasks, Effort(repetitions=3, seconds=0, sample_seconds=0))
    # Twice to warm up, then once uncounted before each sample, which the rival's call has cooled.
    assert order == ["a", "a", "b", "b"] + ["a", "a", "b", "b"] * 3
    assert {name: len(taken) for name, taken in samples.items()} == {"a": 3, "b": 3}


def test_quick_functions_are_called_often_enough_for_a_sample():
    calls = []
    timing.measure(Task(lambda: calls.append(1)), Effort(2, 0, sample_seconds=1e-3))
    assert len(calls) > 50


def test_a_sample_ends_when_the_device_does():
    events = []
    task = Task(lambda: events.append("call"), lambda: events.append("wait"))
    task.seconds(3)
    assert events == ["wait", "call", "call", "call", "wait"]


@pytest.mark.parametrize(
    "values, unit, text",
    [
        ((1.234,), "s", "1.23 s"),
        ((0.0456, 0.1), "s", "45.6–100 ms"),
        ((3e-6,), "s", "3.00 µs"),
        ((0.0512,), "%", "5.12 %"),
        ((-0.01, 0.2), "%", "-1.00–20.0 %"),
        ((0.9,), "×", "0.90 ×"),
    ],
)
def test_values_are_written_with_one_unit(values, unit, text):
    assert table.amount(*values, unit=unit) == text


def test_the_table_names_failures_and_notes(capsys):
    rows = [Row("a", "slow thing", [1.0], note="beware"), Row("b", "broken thing", error="no [x]")]
    table.show(rows, CEILINGS, title="title", notes=["machine: one"])
    printed = capsys.readouterr().out
    for text in ("slow thing", "1.00 s", "failed: broken thing: no [x]", "beware", "machine: one"):
        assert text in printed


def test_rematerialisation_takes_less_memory_in_the_compiled_step():
    def measure(remat):
        held, compiled = step_memory.measure(16, 64, "float32", remat, size="tiny", accumulation=2)
        assert ahead.cost(compiled.as_text()) == ""  # of a CPU it tells nothing
        return held, estimate.step_bytes(compiled)

    (state, none), (same, blocks) = measure("none"), measure("blocks")
    assert blocks < 0.75 * none and state == same > 0


def test_costs_are_read_from_the_programs_of_a_gpu_and_a_tpu():
    gpu = """
%inside (x: f32[4000000,2]) -> f32[4000000,2] {
  %other = f32[4000000,2]{1,0} negate(%x)
}

ENTRY %main (a: bf16[4000000,8], b: f32[8,2000000]) -> pred[4000000,2] {
  %a = bf16[4000000,8]{1,0} parameter(0)
  %b = f32[8,2000000]{1,0} parameter(1)
  %c = (f32[4000000,2]{1,0}, u8[5]{0}) custom-call(%a, %b), custom_call_target="__cudnn$conv"
  %d = f32[4000000,2]{1,0} get-tuple-element(%c), index=0
  ROOT %e = pred[4000000,2]{1,0} fusion(%d, %d), kind=kLoop, calls=%inside
}
"""
    # (64 + 64 + 32 MB) of the convolution, (32 + 32 + 8 MB) of the fusion.
    assert ahead.cost(gpu) == "2 kernels take and give 0.2 GB"
    assert ahead.cost(gpu.replace("4000000", "40000000")) == "2 kernels take and give 1.7 GB"
    tpu = '%a = f32[] add(%b, %c), backend_config={"estimated_cycles":"1500000"}\n'
    assert ahead.cost(2 * tpu) == "3.0 M cycles"
