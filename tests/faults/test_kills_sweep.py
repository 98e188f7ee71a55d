"""Workers of a sweep killed at random: results stay, and a trial goes on from what it saved."""

import json

import pytest

from tests.faults import kills
from tests.sweep import stand_in

pytestmark = pytest.mark.faults

STEPS = 12


def results(folder):
    return {p.parent.name: p.read_bytes() for p in folder.glob("trials/*/result.json")}


def starts(folder, key):
    """The steps from which a trial's processes went on, in order."""
    path = folder / "trials" / key / "log.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(line.rsplit(" ", 1)[1]) for line in lines]


def test_killed_workers_lose_no_trial_and_no_saved_step(tmp_path):
    rng = kills.generator("sweep")
    plan = [stand_in.trial("pre", steps=STEPS, seconds=0.08, kind="pretrain")]
    plan += [stand_in.trial(f"t{n}", steps=STEPS, seconds=0.08, after="pre") for n in range(4)]
    plan += [stand_in.trial(f"s{n}", steps=STEPS, seconds=0.08) for n in range(4)]
    arguments = stand_in.command(plan, str(tmp_path), tmp_path)[1:]
    before = {}
    for _ in range(kills.KILLS["sweep"]):
        lines = sum(len(starts(tmp_path, trial.key)) for trial in plan)
        process = kills.start(arguments)

        def at_work(lines=lines):
            return sum(len(starts(tmp_path, trial.key)) for trial in plan) > lines

        kills.wait_until(at_work, process, 60)
        kills.kill(process, after=rng.uniform(0, 1.5))
        after = results(tmp_path)
        assert all(after[key] == content for key, content in before.items()), "a result was lost"
        before = after
    assert kills.start(arguments).wait(timeout=120) == 0
    assert set(results(tmp_path)) == {trial.key for trial in plan}
    for trial in plan:
        went_on = starts(tmp_path, trial.key)
        assert went_on == sorted(went_on), f"{trial.key} began again before what it had saved"
        assert went_on[0] == 0
        result = json.loads(results(tmp_path)[trial.key])
        assert result["steps"] == STEPS
    untouched = results(tmp_path)
    assert kills.start(arguments).wait(timeout=120) == 0
    assert results(tmp_path) == untouched
