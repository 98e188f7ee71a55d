"""Results: published once, read with suspicion; what is ready, blocked and chosen follows."""

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmunet_jax.sweep.records import BLOCKED, DONE, FAILED, READY, WAITING, Records, write_reads
from cmunet_jax.sweep.store import open_store
from tests.sweep import plans

DATA = plans.DATA


@pytest.fixture
def records(tmp_path):
    return Records(open_store(tmp_path), DATA)


def _done(records, key, value=None, status=DONE, error=None):
    selection = None if value is None else {"split": "val", "metric": "dice", "value": value}
    return records.publish(key, {"status": status, "error": error, "selection": selection})


def test_a_result_is_published_once(records):
    assert _done(records, "a", 0.5) and not _done(records, "a", 0.9)
    assert records.result("a")["selection"]["value"] == 0.5
    assert records.result("b") is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"version": 1, "key": "a", "sta', "half-written"),
        ("", "half-written"),
        ("[]", "half-written"),
        (json.dumps({"version": 1, "key": "b", "status": "done", "data": DATA}), "damaged"),
        (json.dumps({"version": 9, "key": "a", "status": "done", "data": DATA}), "damaged"),
        (json.dumps({"version": 1, "key": "a", "status": "fine", "data": DATA}), "'fine'"),
        (
            json.dumps(
                {"version": 1, "key": "a", "status": "done", "data": {"fingerprint": "0" * 64}}
            ),
            "another build of the data",
        ),
        (json.dumps({"version": 1, "key": "a", "status": "done"}), "another build of the data"),
    ],
)
@pytest.mark.parametrize("mend", [True, False])
def test_a_bad_result_counts_as_none_and_is_kept(tmp_path, content, reason, mend):
    store = open_store(tmp_path)
    store.write("trials/a/result.json", content.encode())
    records = Records(store, DATA, mend=mend)
    assert records.result("a") is None
    assert len(records.complaints) == 1 and reason in records.complaints[0]
    kept = [name for name in store.names("trials/a") if "rejected" in name]
    assert len(kept) == mend and (store.read("trials/a/result.json") is None) == mend
    if mend:
        assert store.read(f"trials/a/{kept[0]}") == content.encode()
        assert _done(records, "a")


def test_what_waits_is_ready_or_blocked(records):
    plan = plans.study()
    states = {key: state.status for key, state in records.states(plan).items()}
    assert states.pop("pre") == states.pop("scratch") == READY
    assert set(states.values()) == {WAITING}
    _done(records, "pre")
    states = {key: state.status for key, state in records.states(plan).items()}
    assert [states[f"search{n}"] for n in (1, 2, 3)] == [READY] * 3
    assert states["fine1"] == WAITING
    for number, status in ((1, FAILED), (2, DONE), (3, FAILED)):
        _done(records, f"search{number}", 0.5, status=status)
    assert records.states(plan)["fine1"].status == READY, "a failed rate is only out"


def test_a_failed_pretraining_blocks_what_needs_it_and_nothing_else(records):
    _done(records, "pre", status=FAILED, error="it broke")
    states = records.states(plans.study())
    assert states["pre"].why == "it broke"
    for key in ("search1", "search2", "search3", "fine1", "fine2"):
        assert states[key].status == BLOCKED and "trial pre failed" in states[key].why
    assert states["scratch"].status == READY


def test_a_search_without_a_survivor_blocks(records):
    _done(records, "pre")
    for number in (1, 2, 3):
        _done(records, f"search{number}", status=FAILED, error="loss is nan")
    state = records.states(plans.study())["fine1"]
    assert state.status == BLOCKED and "search" in state.why


def test_failed_trials_get_another_chance_when_asked_for(records):
    _done(records, "pre", status=FAILED, error="it broke")
    records.add_failure("pre", "it broke")
    assert records.forget_failures(plans.study()) == 1
    assert records.states(plans.study())["pre"].status == READY
    assert records.failures("pre") == []
    assert records.forget_failures(plans.study()) == 0


SCORES = st.none() | st.sampled_from([math.nan, math.inf]) | st.floats(0, 1)


@given(
    folds=st.integers(1, 3),
    rates=st.lists(st.sampled_from([1e-4, 1e-3, 1e-2, 1e-1]), min_size=1, unique=True),
    data=st.data(),
)
def test_the_chosen_rate_has_the_best_mean_and_is_the_smallest_of_equals(
    tmp_path_factory, folds, rates, data
):
    records = Records(open_store(tmp_path_factory.mktemp("r")), DATA)
    searches, table = [], {}
    for rate, fold in itertools.product(rates, range(folds)):
        key = f"search-{rate}-{fold}"
        value = data.draw(SCORES)
        failed = data.draw(st.booleans()) and data.draw(st.booleans())
        searches.append(plans.trial(key, "search", rate=rate))
        _done(records, key, value, status=FAILED if failed else DONE)
        table.setdefault(rate, []).append(math.nan if failed or value is None else value)
    final = plans.trial("fine", needs=tuple(s.key for s in searches))
    by_key = {t.key: t for t in (*searches, final)}
    means = {rate: math.fsum(found) / folds for rate, found in table.items()}
    finite = {rate: mean for rate, mean in means.items() if math.isfinite(mean)}
    if not finite:
        with pytest.raises(ValueError, match="no learning rate"):
            records.chosen(final, by_key)
        return
    chosen = records.chosen(final, by_key)
    best = max(finite.values())
    near = [rate for rate, mean in finite.items() if mean >= best - 1e-12]
    assert chosen["learning_rate"] in near
    exact = [r for r, found in table.items() if found == table[chosen["learning_rate"]]]
    assert chosen["learning_rate"] == min(exact)
    assert chosen["from"] == [s.key for s in searches]
    assert [rate for rate, _ in chosen["scores"]] == sorted(rates)


def test_the_log_of_test_reads_is_in_order_of_time(tmp_path):
    store = open_store(tmp_path)
    plan = plans.study()
    for key, when in (("fine1", "2026-01-02"), ("scratch", "2026-01-01")):
        store.write(f"trials/{key}/reads/1.json", json.dumps({"time": when, "key": key}).encode())
    store.write("trials/fine2/reads/1.json", b"{half")
    write_reads(store, plan)
    rows = [json.loads(line) for line in store.read("test_reads.jsonl").splitlines()]
    assert [row["key"] for row in rows] == ["scratch", "fine1"]
