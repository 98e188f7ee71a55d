"""A sweep in a bucket: workers that share nothing else, each with folders of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest

from cmunet_jax.sweep import child
from cmunet_jax.sweep.store import open_store
from tests.conftest import ROOT
from tests.sweep import fake_gcs, stand_in


@pytest.fixture
def bucket():
    with fake_gcs.serve() as (found, environment):
        yield found, environment


def _start(code: str, *args: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        cwd=ROOT,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _outputs(processes: list[subprocess.Popen[str]], seconds: float = 120) -> list[str]:
    found = [process.communicate(timeout=seconds) for process in processes]
    for process, (_, errors) in zip(processes, found):
        assert process.returncode == 0, errors
    return [output for output, _ in found]


def test_the_store_does_in_a_bucket_what_it_does_in_a_folder(bucket, tmp_path):
    (tmp_path / "run" / "deep").mkdir(parents=True)
    (tmp_path / "run" / "deep" / "a b.bin").write_bytes(bytes(range(256)) * 5000)
    (tmp_path / "run" / "empty").write_bytes(b"")
    code = """
        import json, pathlib, sys
        from cmunet_jax.sweep.store import open_store
        store, here = open_store("gs://hearts/my sweep"), pathlib.Path(sys.argv[1])
        said = {"absent": store.read("x/none.json"), "nothing": store.names("x")}
        said["create"] = [store.create("x/one.json", b"1"), store.create("x/one.json", b"2")]
        store.write("x/two.json", b"2")
        said["names"], said["one"] = store.names("x"), store.read("x/one.json").decode()
        store.rename("x/two.json", "x/three.json")
        store.rename("x/none.json", "x/four.json")
        said["renamed"] = store.names("x")
        store.upload(here / "run", "t/run")
        said["down"] = [store.download("t/run", here / "back"), store.download("u", here / "u")]
        store.remove("t/run/deep")
        store.remove("t/none")
        said["removed"] = store.names("t/run")
        print(json.dumps(said))
    """
    (output,) = _outputs([_start(code, str(tmp_path), **bucket[1])])
    assert json.loads(output) == {
        "absent": None,
        "nothing": [],
        "create": [True, False],
        "names": ["one.json", "two.json"],
        "one": "1",
        "renamed": ["one.json", "three.json"],
        "down": [True, False],
        "removed": ["empty"],
    }
    for name in ("deep/a b.bin", "empty"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_of_many_processes_exactly_one_takes_a_trial(bucket):
    """All start together, at every trial anew, so that they do collide."""
    code = """
        import json, sys, time
        from cmunet_jax.sweep.claims import Claims
        from cmunet_jax.sweep.store import open_store
        store = open_store("gs://hearts/sweep")
        claims, taken = Claims(store, 60), []
        print("ready", flush=True)
        start = float(sys.stdin.readline())
        for number in range(20):
            while time.time() < start + number * 0.1:
                time.sleep(0.001)
            if claims.take(f"trial{number}"):
                taken.append(number)
        print(json.dumps(taken))
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            cwd=ROOT,
            env=os.environ | bucket[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    start = time.time() + 0.5
    for process in processes:
        process.stdin.write(f"{start}\n")
        process.stdin.flush()
    found = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, found
    taken = sorted(number for output, _ in found for number in json.loads(output))
    assert taken == list(range(20))
    assert bucket[0].refused, "no two processes ever wanted the same trial at once"
    attempts = [name for name in bucket[0].created if "/attempts/" in name]
    assert len(attempts) == len(set(attempts)) == 20


def _begin(plan, scratch, bucket) -> subprocess.Popen[str]:
    return subprocess.Popen(
        stand_in.command(plan, "gs://hearts/sweep", scratch),
        cwd=ROOT,
        env=os.environ | bucket[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _json(bucket, name):
    return json.loads(bucket[0].objects[f"sweep/trials/{name}"])


def test_workers_with_folders_of_their_own_finish_a_plan_once(bucket, tmp_path):
    plan = [stand_in.trial("p", kind="pretrain", steps=3, seconds=0.3)]
    plan += [stand_in.trial(f"s{i}", seconds=0.2) for i in range(4)]
    plan += [stand_in.trial(f"f{i}", seconds=0.2, after="p") for i in range(3)]
    said = _outputs([_begin(plan, tmp_path / str(i), bucket) for i in range(3)])
    assert "".join(said).count(": done in") == len(plan)
    for trial in plan:
        assert _json(bucket, f"{trial.key}/result.json")["status"] == "done"
        assert bucket[0].objects[f"sweep/trials/{trial.key}/log.txt"] == b"from step 0\n"
    created = [name for name in bucket[0].created if "/attempts/" in name]
    assert sorted(created) == sorted(f"sweep/trials/{t.key}/attempts/1.json" for t in plan)
    # Who fine-tunes did not pre-train, as a rule: what it begins with came through the bucket.
    assert all(_json(bucket, f"f{i}/evaluation/began.json") == 3 for i in range(3))


def test_a_machine_that_vanishes_loses_little(bucket, tmp_path):
    plan = [stand_in.trial("p", kind="pretrain", steps=25, seconds=0.2)]
    first = _begin(plan, tmp_path / "first", bucket)
    folder, until = "sweep/trials/p/run/", time.monotonic() + 60

    def saved():
        names = list(bucket[0].objects)
        return {int(n.split("/")[5]) for n in names if n.startswith(f"{folder}checkpoints/")}

    while max(saved(), default=0) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    first.kill()
    first.communicate()
    reached = max(saved())
    assert 2 <= reached < 25
    _outputs([_begin(plan, tmp_path / "second", bucket)])
    assert _json(bucket, "p/result.json")["steps"] == 25
    began = int(bucket[0].objects["sweep/trials/p/log.txt"].split()[-1])
    assert began >= reached
    assert len(saved()) <= 3, "old checkpoints are left"
    assert _json(bucket, "p/attempts/2.json")["attempt"] == 2


def test_an_own_old_attempt_is_not_taken_for_the_result(tmp_path, monkeypatch):
    """This machine began the pre-training, another finished it: fine-tuning starts from that."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(child, "MODULE", "tests.sweep.stand_in")
    url = f"memory://{tmp_path}"
    store = open_store(url)
    result = {"version": 1, "key": "p", "status": "done", "data": stand_in.DATA, "steps": 9}
    result["checkpoint"] = {"path": "run/checkpoints/9", "digest": "d" * 64}
    store.write("trials/p/result.json", json.dumps(result).encode())
    manifest = json.dumps({"step": 9, "digest": "d" * 64}).encode()
    store.write("trials/p/run/checkpoints/9/manifest/metadata", manifest)
    (tmp_path / "trials" / "p" / "run" / "checkpoints" / "4").mkdir(parents=True)
    plan = [stand_in.trial("p", kind="pretrain"), stand_in.trial("f", after="p")]
    stand_in.work(plan, url, tmp_path)
    assert json.loads(store.read("trials/f/evaluation/began.json")) == 9


@pytest.mark.slow
def test_a_real_study_in_a_bucket(bucket, tiny_dataset, tmp_path):
    """Two workers, each with its own home; the smallest study, with real trials."""
    command = [
        *(sys.executable, "-m", "cmunet_jax.main", "--config=configs/sweep.py:size=tiny"),
        "--workdir=gs://hearts/sweep",
        f"--config.data.dir={tiny_dataset.directory.parents[2]}",
        *("--config.methods=scratch,mae", "--config.labels=8", "--config.draws=(0,)"),
        *("--config.learning_rates=(1e-3,)", "--config.runner=worker"),
    ]
    workers = [
        subprocess.Popen(
            [*command, f"--config.scratch={tmp_path / str(i)}"],
            cwd=ROOT,
            env=os.environ | bucket[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = _outputs(workers, seconds=500)
    assert "".join(said).count(": done in") == 3
    keys = [t["key"] for t in json.loads(bucket[0].objects["sweep/plan.json"])["trials"]]
    results = [_json(bucket, f"{key}/result.json") for key in keys]
    assert [result["status"] for result in results] == ["done"] * 3
    created = [name for name in bucket[0].created if "/attempts/" in name]
    assert len(created) == 3
    (summary,) = [n for n in bucket[0].objects if n.endswith("/evaluation/summary.json")][:1]
    assert json.loads(bucket[0].objects[summary])["n"] == len(tiny_dataset.ids("test"))
