"""What is damaged, of other data or without origin is named; the rest is reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmunet_jax.report.study import Study, read_study
from tests.report import fake_sweep
from tfds_angio.errors import UserError


def read(*sweeps: Path) -> Study:
    return read_study(sweeps, resamples=50)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def trial_of(sweep: Path, name: str) -> Path:
    plan = json.loads((sweep / "plan.json").read_text())["trials"]
    return sweep / "trials" / next(t["key"] for t in plan if t["name"] == name)


RUN = "cmunet/18 labels/draw 1/seed 0"


def runs(study: Study, method: str = "cmunet", labels: int = 18) -> int:
    cell = study.cell("fair", method, labels)
    return len(cell.runs) if cell else 0


def test_a_whole_sweep_has_no_problems(small):
    study = read(small)
    assert not study.problems
    assert [len(cell.runs) for cell in study.cells] == [2, 2, 2, 2]
    assert study.sweeps[0].planned == study.sweeps[0].done == 9
    assert {c.pretrained for c in study.cells} == {0, 1}


def damage_cut(trial: Path, name: str) -> None:
    path = trial / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_fingerprint(trial: Path) -> None:
    edit(trial / "result.json", lambda r: r["data"].update(fingerprint="0" * 64))


def evaluated_on_other_data(trial: Path) -> None:
    edit(trial / "evaluation" / "summary.json", lambda s: s["dataset"].update(fingerprint="1" * 64))


def evaluated_on_another_split(trial: Path) -> None:
    edit(trial / "evaluation" / "summary.json", lambda s: s.update(split="val"))


def evaluated_on_other_images(trial: Path) -> None:
    path = trial / "evaluation" / "cases.csv"
    path.write_text(path.read_text().replace("image003", "image999"))


def evaluated_other_weights(trial: Path) -> None:
    edit(trial / "evaluation" / "summary.json", lambda s: s["checkpoint"].update(digest="2" * 64))


def no_evaluation(trial: Path) -> None:
    shutil.rmtree(trial / "evaluation")


def failed(trial: Path) -> None:
    edit(trial / "result.json", lambda r: r.update(status="failed", error="out of\nmemory"))


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (lambda t: damage_cut(t, "result.json"), "damaged", "half-written"),
        (lambda t: damage_cut(t, "evaluation/summary.json"), "damaged", "half-written"),
        (lambda t: damage_cut(t, "evaluation/cases.csv"), "damaged", "cases.csv"),
        (no_evaluation, "damaged", "summary.json is missing"),
        (evaluated_other_weights, "damaged", "222222222222"),
        (other_fingerprint, "data", "000000000000"),
        (evaluated_on_other_data, "data", "111111111111"),
        (evaluated_on_another_split, "images", "split val"),
        (evaluated_on_other_images, "images", "2 differ"),
        (failed, "failed", "out of memory"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_one_bad_trial_is_named_and_left_out(copied, damage, kind, words):
    damage(trial_of(copied, RUN))
    study = read(copied)
    first = next(p for p in study.problems if p.kind == kind)
    assert words in first.text and trial_of(copied, RUN).name in first.where
    assert "\n" not in first.text
    assert runs(study) == 1 and runs(study, "scratch") == 2 and runs(study, labels=500) == 2
    test = next(d.test for d in study.differences if (d.labels, d.metric) == (18, "dice"))
    assert test.n_runs == 1
    assert any(p.kind == "pairing" for p in study.problems)
    assert any("left out" in caveat for caveat in study.caveats)


def test_a_trial_without_result_is_missing_not_wrong(copied):
    (trial_of(copied, RUN) / "result.json").unlink()
    study = read(copied)
    text = next(p.text for p in study.problems if p.kind == "missing")
    assert "1 of 2 finetune trials of cmunet with 18 labels have no result" in text
    assert runs(study) == 1


def test_a_trial_json_that_cannot_be_read_costs_only_its_config(copied):
    damage_cut(trial_of(copied, RUN), "trial.json")
    study = read(copied)
    assert runs(study) == 2
    assert [p.kind for p in study.problems] == ["damaged"]


@pytest.mark.parametrize("how", ["missing", "failed", "data", "unplanned"])
def test_without_its_pretraining_nothing_of_a_method_is_believed(copied, how):
    plan = json.loads((copied / "plan.json").read_text())
    key = next(t["key"] for t in plan["trials"] if t["kind"] == "pretrain")
    trial = copied / "trials" / key
    if how == "missing":
        shutil.rmtree(trial)
    elif how == "failed":
        failed(trial)
    elif how == "data":
        other_fingerprint(trial)
    else:
        plan["trials"] = [t for t in plan["trials"] if t["key"] != key]
        (copied / "plan.json").write_text(json.dumps(plan))
    study = read(copied)
    assert {cell.method for cell in study.cells} == {"scratch"}
    found = [p for p in study.problems if p.kind == "dependency"]
    assert len(found) == 4 and all(key in p.text for p in found)
    assert not study.differences and len(study.drops) == 1


def test_a_run_that_began_from_other_weights_than_its_pretraining_ended_with_is_out(copied):
    plan = json.loads((copied / "plan.json").read_text())["trials"]
    trials = [t for t in plan if t["kind"] == "finetune" and t["method"] != "scratch"]
    before = {t["key"]: t for t in plan if t["kind"] == "pretrain"}
    for number, trial in enumerate(trials):
        start = next(key for key in trial["depends"] if key in before)
        result = json.loads((copied / "trials" / start / "result.json").read_text())
        digest = result["checkpoint"]["digest"] if number else "0" * 64
        path = copied / "trials" / trial["key"] / "run" / "config.json"
        content = json.loads(path.read_text()) | {"init_from": {"path": "x", "digest": digest}}
        path.write_text(json.dumps(content))
    study = read(copied)
    (problem,) = [p for p in study.problems if p.kind == "dependency"]
    assert trials[0]["name"] in problem.text and "0" * 12 in problem.text


def test_a_plan_that_cannot_be_read_is_made_up_from_the_trials(copied):
    before = read(copied)
    (copied / "plan.json").write_text("{")
    study = read(copied)
    assert [p.where for p in study.problems] == ["fair/plan.json"]
    assert [c.primary for c in study.cells] == [c.primary for c in before.cells]


def test_a_plan_cannot_lead_out_of_the_sweep(copied):
    def lead_out(plan):
        plan["trials"][-1]["key"] = "../../etc"

    edit(copied / "plan.json", lead_out)
    study = read(copied)
    assert "1 of its trials" in next(p.text for p in study.problems if p.kind == "damaged")


def test_a_variant_may_measure_otherwise_but_not_on_other_images(copied):
    sweep = copied
    plan = json.loads((sweep / "plan.json").read_text())
    for variant in ("as_released", "elsewhere"):
        entry = fake_sweep.trial("fair", "finetune", "scratch", 18, 0, variant=variant)
        fake_sweep.write_trial(sweep, entry, dice=fake_sweep.dice_of("scratch", 18, 0) - 0.1)
        plan["trials"].append(entry)
        edit(sweep / "trials" / entry["key"] / "evaluation" / "summary.json",
             lambda s: s.update(protocol="paper"))  # fmt: skip
    evaluated_on_other_images(sweep / "trials" / plan["trials"][-1]["key"])
    (sweep / "plan.json").write_text(json.dumps(plan))
    study = read(sweep)
    assert [v.name for v in study.variants] == ["as_released"]
    assert study.variants[0].test.difference.value == pytest.approx(-0.1)
    assert [p.kind for p in study.problems if "elsewhere" in p.text] == ["images"]


def test_reading_the_test_split_twice_is_reported(copied):
    path = copied / "test_reads.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n" + '{"time": "20')
    study = read(copied)
    assert len(study.test_reads) == 9
    assert all(read.matches and read.split == "test" for read in study.test_reads)
    assert {p.kind for p in study.problems} == {"test", "damaged"}


def test_a_damaged_picture_costs_only_itself(copied):
    before = read(copied)
    shown = next(o for f in before.failures for o in f.overlays)
    shown.path.write_bytes(shown.path.read_bytes()[:60])
    study = read(copied)
    (problem,) = study.problems
    assert problem.kind == "damaged" and problem.where.endswith(f"evaluation/{shown.path.name}")
    assert shown.path not in {o.path for f in study.failures for o in f.overlays}
    assert [c.primary for c in study.cells] == [c.primary for c in before.cells]
    pictures = [o.path for f in study.failures for o in f.overlays]
    assert pictures and set(pictures) <= {source.path for source in study.sources.values()}


@pytest.mark.parametrize(
    ("name", "entry", "odd", "left"),
    [
        ("result.json", "versions", [1], 1),
        ("result.json", "checkpoint", "x", 1),
        ("result.json", "evaluation", "/etc", 1),
        ("trial.json", "chosen", [1], 2),
        ("trial.json", "config", 5, 2),
        ("evaluation/summary.json", "dataset", {"fingerprint": [1]}, 1),
        ("evaluation/summary.json", "checkpoint", {"digest": 5}, 1),
    ],
)
def test_entries_of_an_odd_type_are_damage_not_the_end(copied, name, entry, odd, left):
    edit(trial_of(copied, RUN) / name, lambda content: content.update({entry: odd}))
    study = read(copied)
    assert study.problems[0].kind in ("damaged", "data") and runs(study) == left
    assert RUN in study.problems[0].text or trial_of(copied, RUN).name in study.problems[0].where


@pytest.mark.parametrize("entry", ["data", "config", "versions"])
def test_a_sweep_of_an_odd_type_is_named(copied, built, entry):
    edit(copied / "sweep.json", lambda content: content.update({entry: [1]}))
    study = read(copied, built.paper)
    assert [sweep.label for sweep in study.sweeps] == ["paper"]
    assert [(p.kind, p.where) for p in study.problems][:1] == [("damaged", "fair/sweep.json")]


# -------------------------------------------------------------------------------- nothing left


def test_nothing_to_report_is_one_line(copied, tmp_path):
    with pytest.raises(UserError, match="absent does not exist"):
        read(tmp_path / "absent")
    with pytest.raises(UserError, match="twice"):
        read(copied, copied)
    with pytest.raises(UserError, match="empty"):
        read()
    for path in copied.glob("trials/*/result.json"):
        path.unlink()
    with pytest.raises(UserError, match="no result that can be reported.*run the sweep again"):
        read(copied)
    (copied / "sweep.json").write_text('{"version": 1')
    with pytest.raises(UserError, match="sweep.json.*half-written") as caught:
        read(copied)
    assert "\n" not in str(caught.value)


def test_one_bad_sweep_does_not_hide_another(copied, built):
    (copied / "sweep.json").unlink()
    study = read(copied, built.paper)
    assert [sweep.label for sweep in study.sweeps] == ["paper"]
    assert study.problems[0].where == "fair/sweep.json"


def test_a_sweep_that_does_not_exist_does_not_hide_another(copied, tmp_path):
    study = read(tmp_path / "absent", copied)
    assert [sweep.label for sweep in study.sweeps] == ["fair"]
    assert [(p.kind, p.where) for p in study.problems] == [("missing", "absent")]


def test_nothing_left_names_the_commonest_reason(copied):
    edit(copied / "plan.json", lambda plan: plan["trials"].insert(0, {"key": 1}))
    for path in copied.glob("trials/*/result.json"):
        failed(path.parent)
    with pytest.raises(UserError, match="out of memory .8 more like it. .and one other"):
        read(copied)


def test_sweeps_of_one_name_are_told_apart(small, copied):
    study = read(small, copied)
    labels = [sweep.label for sweep in study.sweeps]
    assert len(set(labels)) == 2 and all(label.endswith("fair") for label in labels)


# ------------------------------------------------------------------------------ how to repeat it


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        ("python -m cmunet_jax.main --config configs/sweep.py --workdir runs/a", "runs/a"),
        ("python -m cmunet_jax.main --config configs/sweep.py --workdir=runs/a", "runs/a"),
        ("python -m cmunet_jax.main --config configs/sweep.py", "runs/sweep"),
        ("python -m cmunet_jax.main --workdir 'runs/two words'", "'runs/two words'"),
    ],
)
def test_the_report_reads_what_the_sweep_command_writes(copied, command, folder):
    def record(content: dict[str, Any]) -> None:
        content["command"], content["versions"]["source"] = command, "git 0123"

    edit(copied / "sweep.json", record)
    found = read(copied).reproduction
    assert found.commands[-2] == command
    assert found.commands[-1].endswith(f"--config configs/report.py --config.sweep={folder}")
    assert found.versions["source"] == "git 0123"


def test_without_a_command_the_stored_config_is_named(copied):
    *_, sweep, report = read(copied).reproduction.commands
    assert sweep.startswith("# fair: no command was recorded") and f"{copied}/sweep.json" in sweep
    assert report.endswith(f"--config.sweep={copied}")


def test_a_sweep_in_a_bucket_is_copied_first(copied):
    command = "python -m cmunet_jax.main --workdir gs://bucket/a"
    edit(copied / "sweep.json", lambda content: content.update(command=command))
    *_, copy, report = read(copied).reproduction.commands
    assert copy == f"# copy gs://bucket/a to {copied}"
    assert report.endswith(f"--config.sweep={copied}")


# ---------------------------------------------------------------------------------- invariance


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.randoms(use_true_random=False))
def test_the_order_of_files_and_rows_does_not_matter(small, tmp_path, random):
    before = read(small)
    sweep = tmp_path / f"{random.getrandbits(60):x}" / "fair"
    shutil.copytree(small, sweep)
    edit(sweep / "plan.json", lambda plan: random.shuffle(plan["trials"]))
    for path in sweep.glob("trials/*/evaluation/cases.csv"):
        head, *rows = path.read_text().splitlines()
        random.shuffle(rows)
        path.write_text("\n".join([head, *rows]) + "\n")
    after = read(sweep)
    assert [c.primary for c in after.cells] == [c.primary for c in before.cells]
    assert after.differences == before.differences
    assert after.drops == before.drops
    assert [f.answer for f in after.findings] == [f.answer for f in before.findings]
    for ours, theirs in zip(after.cells, before.cells):
        np.testing.assert_array_equal(ours.per_image.values, theirs.per_image.values)
    assert list(after.provenance) == list(before.provenance)
