"""Workers: every trial once, whatever fails; what is finished is never lost or repeated."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest

from cmunet_jax.sweep import child, worker
from cmunet_jax.sweep.records import BLOCKED, DONE, FAILED, READY, WAITING, Records
from cmunet_jax.sweep.store import StorageError, open_store
from cmunet_jax.sweep.worker import Settings, Worker
from cmunet_jax.train import loop
from tests.conftest import ROOT
from tests.sweep import plans


class Lines:
    """Remembers what it is told."""

    def __init__(self):
        self.said = []

    def show(self, states, current):
        """Nothing to see."""

    def say(self, text):
        """Keeps a line."""
        self.said.append(text)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(child, "MODULE", "tests.sweep.fake_trial")
    monkeypatch.setattr(worker, "_POLL", 0.02)
    monkeypatch.chdir(ROOT)


@pytest.fixture(params=["folder", "memory"])
def place(request, tmp_path):
    return tmp_path / "sweep" if request.param == "folder" else f"memory://{uuid.uuid4().hex}/s"


def make(plan, place, scratch, *, lines=None, lease=30.0, attempts=2):
    store = open_store(place)
    records = Records(store, plans.DATA)
    settings = Settings(lease, attempts, "needed", scratch)
    return Worker(plan, store, records, settings, lines or Lines()), records, store


def runs(place, scratch, key):
    """How often a trial's process was started."""
    base = scratch if "://" in str(place) else place
    path = base / "trials" / key / "runs.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_study_is_done_in_order_and_only_once(place, tmp_path):
    plan, scratch = plans.study(), tmp_path / "scratch"
    one, records, store = make(plan, place, scratch)
    states, stopped = one.run()
    assert not stopped and {s.status for s in states.values()} == {DONE}
    fine = records.result("fine1")
    assert fine["rate"] == 1e-2, "the best of the search"
    assert fine["began"].endswith("/checkpoints/1") and "pre" in fine["began"]
    entry = json.loads(store.read("trials/fine1/trial.json"))
    assert entry["chosen"]["learning_rate"] == entry["config"]["optim"]["learning_rate"] == 1e-2
    assert entry["chosen"]["from"] == ["search1", "search2", "search3"]
    again, _, _ = make(plan, place, scratch)
    again.run()
    assert [runs(place, scratch, trial.key) for trial in plan] == [1] * len(plan)


def test_two_workers_share_a_study(place, tmp_path):
    plan = [plans.trial(f"t{n}", seconds=0.1) for n in range(8)]
    plan += [plans.trial("pre", "pretrain", seconds=0.2), plans.trial("last", needs=("pre",))]
    scratches = [tmp_path / "one", tmp_path / "two"]
    workers = [make(plan, place, scratch)[0] for scratch in scratches]
    results = []
    threads = [threading.Thread(target=lambda w=w: results.append(w.run())) for w in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    for states, stopped in results:
        assert not stopped and {s.status for s in states.values()} == {DONE}
    if "://" in str(place):
        counts = [sum(runs(place, s, t.key) for s in scratches) for t in plan]
    else:
        counts = [runs(place, None, t.key) for t in plan]
    assert counts == [1] * len(plan)


def test_a_failing_trial_is_recorded_and_the_rest_go_on(tmp_path):
    plan = plans.study()
    plan[0] = plans.trial("pre", "pretrain", errors=["exit 2", "exit 2", "exit 2"])
    lines = Lines()
    one, records, store = make(plan, tmp_path / "s", tmp_path, lines=lines)
    states, _ = one.run()
    assert states["pre"].status == FAILED and states["pre"].why == "it ended with exit 2"
    assert {states[k].status for k in ("search1", "fine1", "fine2")} == {BLOCKED}
    assert states["scratch"].status == DONE
    result = records.result("pre")
    assert result["attempts"] == 2 and result["data"] == plans.DATA
    assert runs(tmp_path / "s", None, "pre") == 2
    assert records.failures("pre") == ["it ended with exit 2"] * 2


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("SIGKILL", "killed by SIGKILL"),
        ("traceback", "exit status 1: Traceback: something broke"),
        ("exit 2", "it ended with exit 2"),
    ],
)
def test_a_trial_that_dies_once_is_repeated(tmp_path, kind, text):
    lines = Lines()
    one, records, _ = make([plans.trial("a", errors=[kind])], tmp_path / "s", tmp_path, lines=lines)
    states, _ = one.run()
    assert states["a"].status == DONE and records.result("a")["attempts"] == 2
    assert any(text in line for line in lines.said), lines.said


def test_a_rate_at_which_training_breaks_down_is_only_out(tmp_path):
    plan = plans.study()
    plan[2] = plans.trial("search2", "search", needs=("pre",), rate=1e-2, errors=["exit 2"] * 9)
    one, records, _ = make(plan, tmp_path / "s", tmp_path)
    states, _ = one.run()
    assert states["search2"].status == FAILED and states["fine1"].status == DONE
    assert records.result("fine1")["rate"] == 1e-1


def test_a_full_disk_stops_the_worker_and_costs_nothing(tmp_path):
    plan = [plans.trial("a", errors=["exit 74"]), plans.trial("b")]
    one, records, _ = make(plan, tmp_path / "s", tmp_path)
    with pytest.raises(StorageError, match="trial a stopped, to be continued"):
        one.run()
    assert records.failures("a") == []
    states, _ = make(plan, tmp_path / "s", tmp_path)[0].run()
    assert {s.status for s in states.values()} == {DONE}


def test_a_store_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    one, _, store = make([plans.trial("a")], tmp_path / "s", tmp_path)

    def full(*unused):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        one.run()
    monkeypatch.undo()
    assert store.names("trials/a/attempts") == []


def test_a_result_that_cannot_be_published_is_not_lost(tmp_path, monkeypatch):
    """The disk fills up just when the trial has ended."""
    plan = [plans.trial("a")]
    one, records, store = make(plan, tmp_path / "s", tmp_path)
    real = type(store).create

    def full(self, name, content):
        if name.endswith("result.json"):
            raise StorageError("No space left on device")
        return real(self, name, content)

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "create", full)
        with pytest.raises(StorageError):
            one.run()
    assert records.result("a") is None
    states, _ = make(plan, tmp_path / "s", tmp_path)[0].run()
    assert states["a"].status == DONE


def test_a_deleted_pretraining_is_done_again(tmp_path):
    plan, place = plans.study(), tmp_path / "s"
    one, records, store = make(plan[:4], place, tmp_path)
    one.run()
    checkpoints = place / "trials" / "pre" / "run" / "checkpoints"
    shutil.rmtree(checkpoints / "1")
    two, records, _ = make(plan, place, tmp_path)
    states, _ = two.run()
    assert {s.status for s in states.values()} == {DONE}
    assert "no longer there" in records.complaints[0]
    assert (checkpoints / "1").is_dir() and runs(place, None, "pre") == 2
    assert runs(place, None, "search1") == 1, "what was finished stays"


def test_an_older_step_of_a_pretraining_is_not_taken_for_the_finished_one(place, tmp_path):
    """Its newest checkpoint is lost and one from the middle of the run is left."""
    plan, scratch = plans.study(), tmp_path / "scratch"
    make(plan[:1], place, scratch)[0].run()
    store = make(plan, place, scratch)[2]
    kept = store.read("trials/pre/run/checkpoints/1/manifest/metadata")
    store.write("trials/pre/run/checkpoints/0/manifest/metadata", kept.replace(b'"d"', b'"old"'))
    store.remove("trials/pre/run/checkpoints/1")
    two, records, _ = make(plan, place, scratch)
    states, _ = two.run()
    assert {s.status for s in states.values()} == {DONE}
    assert "no longer there" in records.complaints[0] and runs(place, scratch, "pre") == 2
    assert records.result("fine1")["began"].endswith("/checkpoints/1")


def test_a_checkpoint_with_other_content_than_was_published_is_not_taken(tmp_path):
    plan, place = plans.study(), tmp_path / "s"
    make(plan[:1], place, tmp_path)[0].run()
    manifest = place / "trials/pre/run/checkpoints/1/manifest/metadata"
    manifest.write_text('{"digest": "another"}')
    two, records, _ = make(plan, place, tmp_path)
    two.run()
    assert "other content" in records.complaints[0] and runs(place, None, "pre") == 2


def test_what_another_runner_has_withdrawn_is_not_started_from(tmp_path):
    """This one has read the result; meanwhile the pre-training is being repeated."""
    plan, place = [plans.trial("pre", "pretrain"), plans.trial("fine", needs=("pre",))], tmp_path
    make(plan[:1], place, tmp_path)[0].run()
    one, records, _ = make(plan, place, tmp_path)
    assert records.states(plan)["fine"].status == READY
    Records(open_store(place), plans.DATA).withdraw("pre", "names a checkpoint that is gone")
    assert not one._ready(plan[1])
    assert records.states(plan)["fine"].status == WAITING


def test_a_claim_that_is_lost_during_an_upload_publishes_nothing(tmp_path, monkeypatch):
    plan, lines, place = [plans.trial("a")], Lines(), f"memory://{uuid.uuid4().hex}/s"
    one, records, store = make(plan, place, tmp_path, lines=lines)
    real = store.upload

    def slow(source, name):
        real(source, name)
        other = {"owner": "other", "machine": "elsewhere", "lease_seconds": 1e6}
        if name.endswith(child.LOG):  # the last one, after the trial has ended
            store.create("trials/a/attempts/2.json", json.dumps(other).encode())

    monkeypatch.setattr(store, "upload", slow)
    one._try(plan[0], {}, loop.StopRequest())
    assert records.result("a") is None
    assert any("taken it over" in line for line in lines.said), lines.said


def test_a_pretraining_that_leaves_no_checkpoint_does_not_go_on_forever(tmp_path):
    plan = [plans.trial("pre", "pretrain", saves=False), plans.trial("fine", needs=("pre",))]
    one, records, _ = make(plan, tmp_path / "s", tmp_path)
    states, _ = one.run()
    assert states["pre"].status == FAILED and states["fine"].status == BLOCKED
    assert "checkpoint" in states["pre"].why and runs(tmp_path / "s", None, "pre") == 2


def test_a_half_written_result_is_done_again_and_no_other(tmp_path):
    plan, place = plans.study(), tmp_path / "s"
    make(plan, place, tmp_path)[0].run()
    path = place / "trials" / "fine2" / "result.json"
    path.write_bytes(path.read_bytes()[:40])
    two, records, _ = make(plan, place, tmp_path)
    states, _ = two.run()
    assert {s.status for s in states.values()} == {DONE} and len(records.complaints) == 1
    assert [runs(place, None, t.key) for t in plan] == [1 + (t.key == "fine2") for t in plan]


def test_checkpoints_of_a_search_are_not_kept(tmp_path):
    make(plans.study(), tmp_path / "s", tmp_path)[0].run()
    kept = {p.parent.parent.name for p in (tmp_path / "s").glob("trials/*/run/checkpoints")}
    assert kept == {"pre", "fine1", "fine2", "scratch"}


def test_a_worker_that_lost_its_lease_publishes_nothing(tmp_path):
    """Asleep for longer than a lease: another has taken the trial over."""
    plan, lines = [plans.trial("a", seconds=1.0)], Lines()
    one, records, store = make(plan, tmp_path / "s", tmp_path, lines=lines)
    thread = threading.Thread(target=one.run, daemon=True)
    thread.start()
    while not runs(tmp_path / "s", None, "a"):
        time.sleep(0.01)
    other = json.dumps({"owner": "other", "machine": "elsewhere", "lease_seconds": 1e6})
    assert store.create("trials/a/attempts/2.json", other.encode())
    until = time.monotonic() + 60
    while not any("taken it over" in line for line in lines.said):
        assert time.monotonic() < until, lines.said
        time.sleep(0.01)
    assert records.result("a") is None
    assert records.publish("a", {"status": DONE, "by": "the other"})
    thread.join(timeout=60)
    assert not thread.is_alive(), "all is done"
    assert json.loads(store.read("trials/a/result.json"))["by"] == "the other"
    assert runs(tmp_path / "s", None, "a") == 1


CODE = """
import sys
from pathlib import Path
from cmunet_jax.sweep import child
from tests.sweep import plans, stand_in
child.MODULE = "tests.sweep.fake_trial"
plan = [plans.trial(f"t{n}", seconds=0.4, value=n) for n in range(4)]
stand_in.work(plan, sys.argv[1], Path(sys.argv[1]))
"""


def _start(place):
    return subprocess.Popen([sys.executable, "-c", CODE, str(place)], cwd=ROOT)


def _wait_for(path, seconds=60.0):
    until = time.monotonic() + seconds
    while not list(path.parent.glob(path.name)):
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_worker_that_is_ended_leaves_the_rest_to_the_next(tmp_path, number):
    process = _start(tmp_path)
    _wait_for(tmp_path / "trials" / "t1" / "runs.txt")
    process.send_signal(number)
    process.wait(timeout=60)
    done = list(tmp_path.glob("trials/*/result.json"))
    assert [p.parent.name for p in done] == ["t0"]
    before = done[0].stat().st_mtime_ns
    assert _start(tmp_path).wait(timeout=120) == 0
    assert len(list(tmp_path.glob("trials/*/result.json"))) == 4
    assert done[0].stat().st_mtime_ns == before
    counts = [runs(tmp_path, None, f"t{n}") for n in range(4)]
    assert counts == [1, 2, 1, 1], "only the one that was at work is done again"
