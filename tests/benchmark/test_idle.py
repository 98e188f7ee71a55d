"""Time between steps, as it is read from a profile."""

import itertools
import pathlib
import time

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmunet_jax.benchmark import idle
from cmunet_jax.benchmark.idle import Operation, Run

PAUSE, RUNS = 0.05, 4


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """(operations of each device, runs by the profiler's own numbers) of runs with pauses."""
    # Both are called <lambda>, as two programs of a training may be called alike.
    double = jax.jit(lambda x: (x @ x) / jnp.linalg.norm(x))
    other = jax.jit(lambda x: x + 1)
    x = double(other(jnp.ones((64, 64)))).block_until_ready()
    folder = tmp_path_factory.mktemp("profile")
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), profiler_options=options):
        for _ in range(RUNS):
            x = double(x).block_until_ready()
            time.sleep(PAUSE)
            other(x).block_until_ready()
    (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(file))
    numbered = {}
    for plane in profile.planes:
        for event in itertools.chain.from_iterable(line.events for line in plane.lines):
            stats = dict(event.stats)
            if "lambda" in str(stats.get("hlo_module")):
                ended = (event.start_ns + event.duration_ns) * 1e-9
                numbered.setdefault(stats["run_id"], []).append((event.start_ns * 1e-9, ended))
    spans = [Run(min(s for s, _ in of), max(e for _, e in of)) for of in numbered.values()]
    return idle.operations(profile), sorted(spans, key=lambda run: run.start)


def test_the_runs_are_those_that_the_profiler_numbered(profiled):
    (operations,), numbered = profiled
    by_program = {
        program: idle.runs(list(group), RUNS)
        for program, group in itertools.groupby(
            sorted(operations, key=lambda o: o.program), key=lambda o: o.program
        )
    }
    found = sorted(itertools.chain(*by_program.values()), key=lambda run: run.start)
    assert len(found) == len(numbered) == RUNS * len(by_program)
    for run, span in zip(found, numbered, strict=True):
        assert (run.start, run.end) == pytest.approx((span.start, span.end), abs=1e-9)


def test_pauses_are_idle(profiled):
    (operations,), _ = profiled
    found = idle.runs(operations, RUNS)  # of the one that takes longer
    whole = found[-1].end - found[0].start
    assert idle.idle_share(found) * whole >= PAUSE * (RUNS - 1)
    assert idle.idle_share(found) < 1


seconds = st.floats(1e-4, 1.0)


@given(st.lists(st.tuples(seconds, seconds, seconds), min_size=2, max_size=6), st.integers(0, 3))
def test_gaps_are_found_whatever_runs_inside_and_between(steps, repeats):
    """Each step: a first operation, a loop's body some times, a last one; then a gap."""
    operations, now, gaps = [], 10.0, 0.0
    for first, last, gap in steps:
        parts = [("first", first), *[("body", 1e-3)] * repeats, ("last", last)]
        for name, duration in parts:
            operations.append(Operation("step", name, now, now + duration))
            now += duration
        operations.append(Operation("zeros", "zeros", now + gap / 4, now + gap / 2))
        now, gaps = now + gap, gaps + gap
    gaps -= steps[-1][2]  # after the last step
    total = now - steps[-1][2] - 10.0
    found = idle.runs(operations[::-1], len(steps))
    if sum(a + b for a, b, _ in steps) >= sum(gap for *_, gap in steps) / 4:
        assert idle.idle_share(found) == pytest.approx(gaps / total)


def test_steps_that_cannot_be_told_apart_are_an_error():
    operations = [Operation("step", "body", float(i), i + 0.5) for i in range(5)]
    with pytest.raises(ValueError, match="no operation of step that ran 4 times"):
        idle.runs(operations, 4)
    with pytest.raises(ValueError, match="any program"):
        idle.runs([], 4)
