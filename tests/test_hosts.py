"""Several processes as one run: they meet, or say why not; they stop together; one may be lost."""

from __future__ import annotations

import re
import signal
import time

import jax
import ml_collections
import numpy as np
import pytest

from cmunet_jax.config import from_dict
from cmunet_jax.stages import hosts, train
from cmunet_jax.train import checkpoint, loop, processes
from tests import processes as together
from tests.processes import finetune, losses
from tfds_angio.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "8192",
    "SLURM_STEP_NODELIST": "node[007-009],other",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
POD = {
    "JAX_COORDINATOR_ADDRESS": "job-0-0.job:8476",
    "JAX_NUM_PROCESSES": "4",
    "JOB_COMPLETION_INDEX": "3",
}


def options(kind, **changes):
    """The part of a config that says where the other processes are."""
    values = {"coordinator": "", "processes": 0, "process": 0, "wait_seconds": 5}
    return from_dict({"distributed": kind, "hosts": values | changes})


@pytest.fixture
def asked(monkeypatch):
    """What jax.distributed.initialize was asked for; nothing is started."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    for name in (*SLURM, *POD, *OPEN_MPI, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_one_process_starts_nothing(asked):
    hosts.start(options("off"))
    hosts.start(ml_collections.ConfigDict())
    assert asked == []


def test_explicit_numbers_are_passed_on(asked):
    hosts.start(options("explicit", coordinator="10.0.0.1:8476", processes=2, process=1))
    (call,) = asked
    assert call["coordinator_address"] == "10.0.0.1:8476"
    assert (call["num_processes"], call["process_id"]) == (2, 1)
    assert call["cluster_detection_method"] == "deactivate"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distributed": "yes"}, "config.distributed='yes' is not known"),
        ({}, "config.hosts.coordinator='' must be HOST:PORT"),
        ({"coordinator": "10.0.0.1"}, "must be HOST:PORT"),
        ({"coordinator": "10.0.0.1:²"}, "must be HOST:PORT"),
        ({"coordinator": "10.0.0.1:0"}, "must be HOST:PORT"),
        ({"coordinator": "10.0.0.1:99999"}, "must be HOST:PORT"),
        ({"coordinator": "a:1"}, "config.hosts.process=0 of config.hosts.processes=0"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "from 0 on"),
    ],
)
def test_what_is_missing_is_named(asked, changes, words):
    kind = changes.pop("distributed", "explicit")
    with pytest.raises(UserError, match=re.escape(words)):
        hosts.start(options(kind, **changes))
    assert asked == []


def test_pods_of_an_indexed_job_are_numbered_without_the_kubernetes_api(asked, monkeypatch):
    for name, value in POD.items():
        monkeypatch.setenv(name, value)
    hosts.start(options("auto"))
    (call,) = asked
    assert (call["coordinator_address"], call["num_processes"]) == ("job-0-0.job:8476", 4)
    assert call["process_id"] == 3


@pytest.mark.parametrize(("visible", "taken"), [("0,1,2,3", [0, 1, 2, 3]), ("5", [0]), ("", [0])])
def test_a_slurm_task_takes_all_gpus_that_it_is_shown(asked, monkeypatch, visible, taken):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    hosts.start(options("auto"))
    assert asked[0].get("local_device_ids") == taken


@pytest.mark.parametrize(
    ("scheduler", "address"), [(SLURM, "node007:61440"), (OPEN_MPI, "10.96.0.1:62624")]
)
def test_what_a_scheduler_sets_is_what_jax_finds(asked, monkeypatch, scheduler, address):
    from jax._src.clusters import ompi_cluster, slurm_cluster

    for name, value in scheduler.items():
        monkeypatch.setenv(name, value)
    hosts.start(options("auto"))
    theirs = {id(SLURM): slurm_cluster.SlurmCluster, id(OPEN_MPI): ompi_cluster.OmpiCluster}
    found = theirs[id(scheduler)]
    (call,) = asked
    assert call["coordinator_address"] == found.get_coordinator_address(9, None)
    assert call["coordinator_address"] == address
    assert (call["process_id"], call["num_processes"]) == (1, 2)
    assert call["local_device_ids"] == [found.get_local_process_id()]


@pytest.mark.parametrize(
    ("scheduler", "name", "value"),
    [
        (POD, "JAX_NUM_PROCESSES", "abc"),
        (POD, "JAX_COORDINATOR_ADDRESS", "job-0"),
        (POD, "JOB_COMPLETION_INDEX", "4"),
        (SLURM, "SLURM_NTASKS", "²"),
        (SLURM, "SLURM_STEP_NODELIST", ""),
        (SLURM, "JAX_COORDINATOR_PORT", "0"),
        (SLURM, "JAX_LOCAL_DEVICE_IDS", "a"),
        (OPEN_MPI, "OMPI_MCA_orte_hnp_uri", "x"),
        (OPEN_MPI, "OMPI_COMM_WORLD_RANK", "-1"),
        ({}, "TPU_WORKER_ID", "one"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value(asked, monkeypatch, scheduler, name, value):
    for key, right in (scheduler | {name: value}).items():
        monkeypatch.setenv(key, right)
    with pytest.raises(UserError, match=re.escape(f"{name}='{value}'; it must be ")) as raised:
        hosts.start(options("auto"))
    assert "config.distributed=explicit" in str(raised.value) and asked == []


def test_a_port_that_is_taken_is_said_and_may_be_tried_again(asked, monkeypatch, capsys):
    def initialize(**_):
        raise RuntimeError("UNKNOWN: Failed to start RPC server")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(SystemExit) as ended:
        hosts.start(options("explicit", coordinator="10.0.0.1:8476", processes=2))
    assert ended.value.code == hosts.EXIT_LOST
    assert "process 0 of 2: the port of 10.0.0.1:8476 is taken" in capsys.readouterr().err


def test_a_long_wait_is_told_early(asked, monkeypatch, capsys):
    monkeypatch.setattr(hosts, "NOTE_SECONDS", 0.01)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: time.sleep(0.3))
    address = together.free_address()
    hosts.start(options("explicit", coordinator=address, processes=2, wait_seconds=600))
    assert capsys.readouterr().err == (
        "process 0 of 2: still waiting, for 600 s at most: no coordinator answers at "
        f"{address} (Connection refused) yet.\n"
    )


@pytest.mark.parametrize("address", ["127.0.0.1:²", "a..b:80", "127.0.0.1:99999"])
def test_looking_for_a_coordinator_never_fails(address):
    assert hosts._silence(address)


def test_nothing_to_detect_is_one_line(asked, monkeypatch):
    def initialize(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(UserError, match="neither Slurm .*config.distributed=explicit"):
        hosts.start(options("auto"))


def test_a_lost_process_is_told_from_a_mistake():
    gloo = ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")
    assert "Gloo" in hosts._lost(gloo)
    wrapped = UserError("the checkpoint could not be written")
    wrapped.__cause__ = gloo
    assert "Gloo" in hosts._lost(wrapped)
    assert not hosts._lost(UserError("config.seed is UNAVAILABLE"))
    assert not hosts._lost(ValueError("shapes differ"))


def test_processes_that_see_different_things_are_told(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "meet", lambda place, **_: None)
    gather = processes.multihost_utils
    monkeypatch.setattr(gather, "process_allgather", lambda x: np.stack([x, x]))
    processes.require_same({"the config": "a", "the images": "b"})
    other = np.array([0, 1], np.uint32)
    monkeypatch.setattr(gather, "process_allgather", lambda x: np.stack([x, x + other]))
    with pytest.raises(UserError, match="2 processes of this run differ in the images"):
        processes.require_same({"the config": "a", "the images": "b"})


PRETRAIN = ["--config", "configs/pretrain.py:size=tiny"]


def test_a_process_that_finds_nobody_says_so_in_one_line(tmp_path):
    """The second without a first, and the first without a second, at two addresses."""
    commands = [
        together.main_command(
            *PRETRAIN,
            f"--workdir={tmp_path}",
            *together.explicit(together.free_address(), 2, i, seconds=4),
        )
        for i in (0, 1)
    ]
    with together.started(commands, devices=1) as running:
        first, second = together.finish(running, timeout=60)
    assert (first.status, second.status) == (hosts.EXIT_LOST, hosts.EXIT_LOST)
    assert (
        "process 0 of 2" in first.err
        and "not all processes came (or two have one number) within 4 s" in first.err
    )
    assert "process 1 of 2: no coordinator answers at 127.0.0.1:" in second.err
    assert "Connection refused" in second.err
    for one in (first, second):
        assert len(one.err.strip().splitlines()) == 1, one.err
    assert not list(tmp_path.iterdir())


MEETING = """
import sys
from cmunet_jax import config
from cmunet_jax.stages import hosts, train
from cmunet_jax.train import processes
address, index, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
where = dict(coordinator=address, processes=2, process=index, wait_seconds=50)
hosts.start(config.from_dict({"distributed": "explicit", "hosts": where}))
processes.NOTE_SECONDS, processes.GRACE_SECONDS = 0.5, 0.5
with hosts.together():
    processes.meet("all")
    if index == 0:
        sys.stdin.read()
    print("waits", file=sys.stderr, flush=True)
    processes.meet("some", seconds=seconds)
"""


@pytest.mark.parametrize("asked_to_stop", [False, True])
def test_who_waits_for_one_that_never_comes_ends_and_says_so(asked_to_stop):
    address, seconds = together.free_address(), 60 if asked_to_stop else 1
    commands = [["-c", MEETING, address, str(i), str(seconds)] for i in range(2)]
    with together.started(commands, devices=1) as (first, second):
        said = next(line for line in second.stderr if "waits" in line or "error" in line)
        assert said == "waits\n"
        if asked_to_stop:
            second.send_signal(signal.SIGTERM)
        _, said = second.communicate(timeout=20)
    assert "process 1 of 2: waiting for the others (some)" in said
    if asked_to_stop:
        assert second.returncode == loop.EXIT_PREEMPTED
        assert "SIGTERM, and the others did not come within" in said
    else:
        assert second.returncode == hosts.EXIT_LOST
        assert "error: process 1 of 2: the others did not come within 1 s (some)" in said


def test_processes_with_other_workdirs_or_counts_are_refused_at_once(monkeypatch, tmp_path):
    facts = []
    monkeypatch.setattr(processes, "require_same", lambda same, **_: facts.append(same))
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for count, name in ((2, "run"), (3, "link"), (2, "other")):
        config = options("explicit", coordinator="a:1", processes=count)
        train._require_one_run(config, tmp_path / name)
    one, linked, other = facts
    assert list(one)[:2] == ["the number of processes", "--workdir"]
    assert one["--workdir"] == linked["--workdir"] != other["--workdir"]
    assert one["the number of processes"] != linked["the number of processes"]
    assert one["the config"] == linked["the config"]


# --- real runs --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_stop_together_and_one_goes_on(tiny_dataset, tmp_path, run_python):
    """SIGTERM reaches one of two; both save at one step; two resume, stop again; one resumes."""
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    steps = "--config.train_for=40 steps"
    run_python(*together.main_command(*finetune(tiny_dataset, whole, steps)))
    spread = ["--config.sharding=fsdp", "--config.data.streaming=True"]
    flags = finetune(tiny_dataset, shared, steps, *spread)
    cache = tmp_path / "cache"
    env = {"CMUNET_JAX_CACHE": str(cache), "JAX_RAISE_PERSISTENT_CACHE_ERRORS": "1"}
    with together.started(together.commands_of(flags), **env) as running:
        wait_for(lambda: len(losses(shared)) >= 2, running, shared)
        running[1].send_signal(signal.SIGTERM)
        ended = together.finish(running)
    assert [one.status for one in ended] == [loop.EXIT_PREEMPTED] * 2, ended
    compiled = sorted(cache.glob("jit_step-*-cache"))
    assert len(compiled) == 2, "each process keeps its step"
    stopped = checkpoint.load(shared).step
    assert 4 <= stopped < 40
    assert f"at step {stopped}: saved" in ended[0].out
    assert "step" not in ended[1].out, "only the first process speaks"
    assert "4 x cpu" in ended[0].out and "all-gather" in ended[0].out
    # Again before the first step, where jax and Orbax have no step or save of this start to go by,
    # and after the meeting at which a process that is slow to compile would not be awaited.
    with together.started(together.commands_of(flags), **env) as running:
        lines = running[0].stdout
        assert any(line.startswith("Each step sends") for line in lines), "it did not start"
        running[0].send_signal(signal.SIGTERM)
        ended = together.finish(running)
    assert [one.status for one in ended] == [loop.EXIT_PREEMPTED] * 2, ended
    assert sorted(cache.glob("jit_step-*-cache")) == compiled, "a step was compiled anew"
    first, stopped = stopped, checkpoint.load(shared).step
    assert first < stopped < 40 and f"at step {stopped}: saved" in ended[0].out
    # The other way round: saved by two processes with four devices, continued by one with one.
    done = run_python(*together.main_command(*finetune(tiny_dataset, shared, steps, spread[1])))
    assert f"at step {stopped}" in done.stdout
    assert checkpoint.load(shared).step == 40
    ours, theirs = losses(shared), losses(whole)
    assert ours.keys() == theirs.keys()
    for step in [s for s in ours if s <= 10]:  # later, rounding has grown
        np.testing.assert_allclose(ours[step], theirs[step], rtol=2e-3, err_msg=str(step))
    np.testing.assert_allclose(ours[40], theirs[40], rtol=0.1)


def wait_for(condition, running, workdir, *, seconds=300):
    """Until a condition holds; ends early when a process does."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (workdir / "metrics.jsonl").exists() and condition():
            return
        if any(process.poll() is not None for process in running):
            for process in running:
                process.kill()
            pytest.fail("\n".join(process.communicate()[1] for process in running))
        time.sleep(0.1)
    pytest.fail(f"waited {seconds} s")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_with_two_workdirs_end_with_one_line_each(tiny_dataset, tmp_path):
    address = together.free_address()
    commands = [
        together.main_command(
            *finetune(tiny_dataset, tmp_path / str(i)), *together.explicit(address, 2, i)
        )
        for i in range(2)
    ]
    with together.started(commands) as running:
        ended = together.finish(running, timeout=120)
    assert [one.status for one in ended] == [2, 2], ended
    assert all("differ in --workdir" in one.err for one in ended), ended
    assert not list(tmp_path.iterdir())


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_other_says_so_and_ends(tiny_dataset, tmp_path, victim):
    flags = finetune(tiny_dataset, tmp_path / "run", "--config.train_for=4000 steps")
    checkpoints = tmp_path / "run" / "checkpoints"
    with together.started(together.commands_of(flags)) as running:
        saved = lambda: [p for p in checkpoints.glob("[0-9]*") if p.name.isdigit()]  # noqa: E731
        wait_for(saved, running, tmp_path / "run")
        running[victim].kill()
        _, said = running[1 - victim].communicate(timeout=hosts.HEARTBEAT_SECONDS + 60)
    if running[1 - victim].returncode == -signal.SIGABRT:
        # jax noticed first: at once where the coordinator is gone, else by missing heartbeats.
        assert "another task died" in said
    else:
        assert running[1 - victim].returncode == hosts.EXIT_LOST, said
        assert f"process {1 - victim} of 2: another process of this run is gone" in said
    assert checkpoint.load(tmp_path / "run").step >= 3
