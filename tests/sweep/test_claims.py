"""Claims: one owner at a time, whatever clocks, crashes and sleeps do."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from cmunet_jax.sweep import claims as claims_lib
from cmunet_jax.sweep.claims import Claims
from cmunet_jax.sweep.store import open_store
from tests.conftest import ROOT

LEASE = 60.0


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two runners, as if on two machines: neither can see the other's process."""
    store, clock = open_store(tmp_path), Clock()
    first = Claims(store, LEASE, clock=clock)
    monkeypatch.setattr(claims_lib, "_machine", lambda: "elsewhere 1")
    return first, Claims(store, LEASE, clock=clock), clock, store


def test_a_claimed_trial_is_not_free_and_a_released_one_is(two):
    first, second, _, _ = two
    claim = first.take("k")
    assert claim.attempt == 1 and second.take("k") is None
    first.release(claim, seconds=12.5, energy=3.0)
    again = second.take("k")
    assert (again.attempt, again.seconds, again.energy) == (2, 12.5, 3.0)
    assert first.take("k") is None


def test_what_ended_between_a_look_and_a_claim_is_not_taken_again(two):
    """The other runner published and released after this one had read the states."""
    first, second, _, store = two
    claim = first.take("k")
    asked = []
    assert second.take("k", ended=lambda: bool(asked.append(1))) is None
    assert not asked, "an owner that is alive has not published its last word"
    first.release(claim, seconds=1.0, energy=None)
    assert second.take("k", ended=lambda: True) is None
    assert store.names("trials/k/attempts") == ["1.json"]
    assert second.take("k", ended=lambda: False).attempt == 2


def test_a_silent_owner_is_replaced_after_a_lease_and_notices(two):
    first, second, clock, _ = two
    claim = first.take("k")
    assert second.take("k") is None  # sees the claim for the first time
    clock.now += LEASE - 1
    assert second.take("k") is None
    clock.now += 2
    other = second.take("k")
    assert other.attempt == 2
    assert not first.holds(claim) and claim.lost
    assert not first.renew(claim, seconds=1, energy=None)
    first.release(claim, seconds=1, energy=None)
    assert second.holds(other), "the release of the old owner changes nothing"
    assert second.renew(other, seconds=1, energy=None)


def test_a_sign_of_life_renews_the_lease(two):
    first, second, clock, _ = two
    claim = first.take("k")
    for _ in range(5):
        assert second.take("k") is None
        clock.now += LEASE * 0.9
        assert first.renew(claim, seconds=1, energy=None)
    assert second.take("k") is None and first.holds(claim)


@pytest.mark.parametrize("jump", [-1e6, 1e6, -3600, 3600])
def test_wall_clocks_may_jump(two, monkeypatch, jump):
    first, second, clock, store = two
    claim = first.take("k")
    assert second.take("k") is None
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    clock.now += LEASE / 2
    assert second.take("k") is None and first.holds(claim)
    text = store.read("trials/k/claim.json").decode()
    stamp = json.loads(text)["renewed"]
    store.write("trials/k/claim.json", text.replace(stamp, "1970-01-01T00:00:00+00:00").encode())
    assert second.take("k") is None, "the time in the file decides nothing"


def test_a_runner_that_sleeps_itself_does_not_take_over(two):
    """Nothing changed while it slept, but its monotonic clock stood still, too."""
    first, second, clock, _ = two
    claim = first.take("k")
    assert second.take("k") is None
    clock.now += 1  # an hour in which neither ran
    assert second.take("k") is None and first.holds(claim)


def test_a_dead_owner_on_this_machine_is_replaced_at_once(tmp_path):
    code = (
        "import os, sys\n"
        "from cmunet_jax.sweep.claims import Claims\n"
        "from cmunet_jax.sweep.store import open_store\n"
        "assert Claims(open_store(sys.argv[1]), 1e6).take('k')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    claim = Claims(open_store(tmp_path), 1e6).take("k")
    assert claim.attempt == 2


@pytest.mark.parametrize("key", ["started", "ticks"])
def test_another_process_with_the_same_number_is_not_the_owner(tmp_path, key):
    store = open_store(tmp_path)
    first = Claims(store, LEASE)
    first._process = {"pid": os.getpid(), key: 1}  # before any of today's processes
    assert first.take("k")
    assert Claims(store, LEASE).take("k").attempt == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts from its start")
def test_setting_the_clock_ends_no_process(tmp_path, monkeypatch):
    """A time of day is the machine's start, which the kernel moves with the clock, and a span."""
    store = open_store(tmp_path)
    claim = Claims(store, LEASE).take("k")
    before = psutil.Process().create_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: before + 3600)
    assert Claims(store, LEASE).take("k") is None and claim.attempt == 1


def test_a_half_written_lease_expires_like_any_other(two):
    first, second, clock, store = two
    first.take("k")
    store.write("trials/k/claim.json", b'{"attempt": 1, "rele')
    assert second.take("k") is None
    clock.now += LEASE + 1
    assert second.take("k").attempt == 2


def test_of_many_processes_exactly_one_takes_each_trial(tmp_path):
    code = (
        "import json, sys, time\n"
        "from cmunet_jax.sweep.claims import Claims\n"
        "from cmunet_jax.sweep.store import open_store\n"
        "claims = Claims(open_store(sys.argv[1]), 60)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(json.dumps([n for n in range(60) if claims.take(f'k{n}')]), flush=True)\n"
        "sys.stdin.readline()\n"  # alive until all are done: the dead are replaced
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    taken = [json.loads(process.stdout.readline()) for process in processes]
    for process in processes:
        process.communicate("end\n")
    assert sorted(n for found in taken for n in found) == list(range(60))
