"""Numbers of a study agree with plain loops over its files and with the effects put in."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from cmunet_jax.evaluation import repeated
from cmunet_jax.report import study_tables
from cmunet_jax.report.study import METHODS, Number, Study, published, read_study
from tests.report import fake_sweep
from tests.report.fake_sweep import DRAWS, dice_of


def column(trial_name: str, sweep: Path, name: str) -> dict[str, float]:
    """Image -> value, read from the file without our code."""
    folder = sweep / "trials" / fake_sweep.key_of(sweep.name, trial_name)
    with (folder / "evaluation" / "cases.csv").open(newline="") as file:
        return {r["id"]: float(r[name]) for r in csv.DictReader(file) if r[name] != ""}


def runs_of(sweep: Path, method: str, labels: int, name: str = "dice") -> list[dict[str, float]]:
    return [column(f"{method}/{labels} labels/draw {d}/seed 0", sweep, name) for d in DRAWS]


# --------------------------------------------------------------------------------------- cells


@pytest.mark.parametrize("metric", ["dice", "hd95", "ce", "brier"])
def test_a_cell_is_the_mean_over_runs_and_images(study, built, metric):
    rows = runs_of(built.fair, "mae", 100, metric)
    cell = study.cell("fair", "mae", 100)
    assert cell.metrics[metric].value == pytest.approx(np.mean([list(r.values()) for r in rows]))
    each = [np.mean(list(row.values())) for row in rows]
    assert [run.means[metric] for run in cell.runs] == pytest.approx(each)
    assert cell.spread[metric] == pytest.approx(np.std(each, ddof=1))
    assert cell.metrics[metric].low < cell.metrics[metric].value < cell.metrics[metric].high


def replicates(tables, patients, statistic, *, count=4000):
    """The stated bootstrap in plain loops: patients resampled, run means pushed by Student's t."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        images = np.concatenate(
            [np.flatnonzero(patients == p) for p in rng.integers(0, 12, size=12)]
        )
        runs = np.array([table[:, images].mean(axis=1) for table in tables])
        normal, chi = rng.normal(size=3), rng.chisquare(2)
        apart = (runs - runs.mean(axis=1, keepdims=True)) @ normal / np.sqrt(3 * 2)
        found.append(statistic(runs.mean(axis=1) + apart * np.sqrt(2 / chi)))
    return np.array(found)


def test_bands_agree_with_plain_loops(study, built):
    rows = runs_of(built.fair, "cmunet", 18)
    ids = sorted(rows[0])
    values = np.array([[row[i] for i in ids] for row in rows])
    patients = np.array([int(i[-3:]) % fake_sweep.PATIENTS for i in ids])
    means = replicates([values], patients, lambda runs: runs[0])
    band = study.cell("fair", "cmunet", 18).primary
    expected = np.quantile(means, [0.025, 0.975])
    assert [band.low, band.high] == pytest.approx(expected, abs=0.1 * np.ptp(expected))


def test_images_without_a_calibre_do_not_count(study, built):
    rows = runs_of(built.fair, "scratch", 500, "sensitivity_thin")
    assert len(rows[0]) < fake_sweep.IMAGES
    cell = study.cell("fair", "scratch", 500)
    assert cell.calibre["thin"].value == pytest.approx(np.mean([list(r.values()) for r in rows]))
    assert cell.calibre["thin"].value < cell.calibre["mid"].value < cell.calibre["thick"].value
    assert not any(name.startswith("sensitivity") for name in cell.metrics)


def test_reliability_bins_of_runs_are_counted_together(study):
    cell = study.cell("fair", "scratch", 18)
    summaries = [fake_sweep.fake_evaluation.evaluation(dice_of("scratch", 18, d), patients=12)
                 for d in DRAWS]  # fmt: skip
    tables = [s.summary["calibration"] for s in summaries]
    assert cell.calibration.ece.value == pytest.approx(np.mean([t["ece"] for t in tables]))
    third = [t["bins"][3] for t in tables]
    merged = cell.calibration.bins[3]
    counts = [row["count"] for row in third]
    assert merged.count == sum(counts)
    assert merged.fraction_positive == pytest.approx(
        np.average([row["fraction_positive"] for row in third], weights=counts)
    )


# -------------------------------------------------------------------------------- comparisons


def comparison(study, method, labels, metric="dice"):
    key = ("fair", method, labels, metric)
    rows = study.differences
    return next(d.test for d in rows if (d.sweep, d.method, d.labels, d.metric) == key)


def test_a_difference_is_paired_and_tested_as_stated(study, built):
    ours, theirs = (runs_of(built.fair, m, 18) for m in ("mae", "scratch"))
    ids = sorted(ours[0])
    table = np.array([[a[i] - b[i] for i in ids] for a, b in zip(ours, theirs)])
    found = comparison(study, "mae", 18, "dice")
    assert found.difference.value == pytest.approx(table.mean())
    per_image = table.mean(axis=0)
    assert found.p_images == pytest.approx(scipy.stats.wilcoxon(per_image).pvalue)
    patients = np.array([int(i[-3:]) % 12 for i in ids])
    per_patient = [per_image[patients == p].mean() for p in range(12)]
    assert found.p_patients == pytest.approx(scipy.stats.wilcoxon(per_patient).pvalue)
    assert (found.wins, found.losses) == ((per_image > 0).sum(), (per_image < 0).sum())
    assert (found.n_images, found.n_patients, found.n_runs) == (40, 12, 3)


def test_holm_runs_over_methods_and_label_counts_of_one_metric(study):
    family = [d.test for d in study.differences if (d.sweep, d.metric) == ("fair", "iou")]
    assert len(family) == 15 and all(test.family == 15 for test in family)
    np.testing.assert_allclose(
        [t.p_patients_holm for t in family], repeated.holm([t.p_patients for t in family])
    )
    assert all(t.p_images_holm >= t.p_images for t in family)


def test_the_effects_that_were_put_in_are_found(study):
    found = {(d.method, d.labels): d.test for d in study.differences
             if (d.sweep, d.metric) == ("fair", "dice")}  # fmt: skip
    assert found["cmunet", 18].verdict == "better"
    assert found["cmunet", 18].difference.value == pytest.approx(0.08, abs=0.01)
    assert found["spark", 18].verdict == "worse"
    assert found["genesis", 18].verdict == found["genesis", 500].verdict == "unclear"
    for test in found.values():
        low, high = test.difference.low, test.difference.high
        assert test.verdict == "unclear" or (low > 0) == (test.verdict == "better")
        assert test.verdict != "better" or low > 0
        assert test.verdict != "worse" or high < 0


def test_lower_is_better_for_distances(study):
    found = comparison(study, "cmunet", 18, "hd95")
    assert found.difference.high < 0 and found.verdict == "better" and found.wins > found.losses


def test_leaders_are_better_than_every_other_method(study):
    assert study.leaders["fair", 18, "dice"] == "cmunet"
    assert study.leaders["fair", 18, "hd95"] == "cmunet"
    assert ("fair", 500, "dice") not in study.leaders  # CM-UNet and MAE are too close


def test_the_relative_drop_and_its_interval(study, built):
    most, least = (
        np.array([[row[i] for i in sorted(row)] for row in runs_of(built.fair, "scratch", n)])
        for n in (500, 18)
    )
    drop = next(d for d in study.drops if (d.sweep, d.method) == ("fair", "scratch"))
    assert (drop.most, drop.least) == (500, 18) and math.isnan(drop.saved.value)
    assert drop.drop.value == pytest.approx(1 - least.mean() / most.mean())
    ratios = replicates([most, least], np.arange(40) % 12, lambda means: 1 - means[1] / means[0])
    expected = np.quantile(ratios, [0.025, 0.975])
    assert [drop.drop.low, drop.drop.high] == pytest.approx(expected, abs=0.12 * np.ptp(expected))


def test_a_method_that_loses_less_has_saved_the_rest(study):
    drops = {d.method: d for d in study.drops if d.sweep == "fair"}
    saved = drops["cmunet"].saved
    assert saved.value == pytest.approx(drops["scratch"].drop.value - drops["cmunet"].drop.value)
    assert 0 < saved.low < saved.value < saved.high
    assert drops["spark"].saved.high < 0


# ------------------------------------------------------------------------------------ variants


def test_variants_are_compared_with_their_own_base(study):
    found = {(v.method, v.name): v for v in study.variants}
    assert len(found) == 7  # 'row_target' is of CM-UNet only
    for (_, name), variant in found.items():
        shift = fake_sweep.VARIANTS[name]
        assert variant.test.difference.value == pytest.approx(shift, abs=1e-9)
        assert variant.base.value - variant.varied.value == pytest.approx(-shift, abs=1e-9)
        assert variant.test.family == 7 and variant.sweep == "defects"
    assert found["scratch", "epochs"].changed == ("train_for: 1200 steps -> 128 epochs",)
    assert found["cmunet", "row_target"].test.verdict == "unclear"


def test_a_sweep_of_variants_alone_borrows_the_base(built, tmp_path):
    sweep = fake_sweep.build_defects(tmp_path)
    bare = read_study([built.fair, sweep], resamples=50)
    plan = (sweep / "plan.json").read_text()
    kept = [t for t in json.loads(plan)["trials"] if t["variant"] or t["kind"] == "pretrain"]
    (sweep / "plan.json").write_text(json.dumps({"version": 1, "trials": kept}))
    alone = read_study([built.fair, sweep], resamples=50)
    assert not [cell for cell in alone.cells if cell.sweep == "defects"]
    assert [v.test.difference.value for v in alone.variants] == pytest.approx(
        [v.test.difference.value for v in bare.variants]
    )
    base = alone.variants[0].base
    assert all(name.startswith("fair/") for name in alone.provenance[base.key])


# ---------------------------------------------------------------------------- everything else


def test_searches_say_what_was_chosen(study):
    rows = [s for s in study.searches if s.method == "moco"]
    assert [(s.learning_rate, s.trials, s.chosen) for s in rows] == [
        (1e-4, 3, False),
        (1e-3, 3, True),
    ]
    assert rows[1].value.value == pytest.approx(0.56) and rows[1].metric == "fold/dice"


def test_costs_are_sums(study):
    cost = next(
        c for c in study.costs if (c.sweep, c.kind, c.method) == ("fair", "finetune", "spark")
    )
    assert (cost.trials, cost.steps, cost.seconds) == (8, 8 * 1200, 8 * 600.0)
    assert math.isnan(cost.energy_joules) and cost.devices == "1 x cpu (cpu)"


def test_failures_are_the_worst_images_of_all_methods(study, built):
    rows = [f for f in study.failures if (f.sweep, f.labels) == ("fair", 18)]
    mean = np.mean([dice_of(m, 18, d) for m in METHODS for d in DRAWS], axis=0)
    worst = np.argsort(mean)[: len(rows)]
    assert [f.id for f in rows] == [f"image{at:03d}" for at in worst]
    assert rows[0].mean.value == pytest.approx(mean[worst[0]])
    assert set(rows[0].dice) == set(METHODS)
    assert any(o.path.is_file() and o.id == f.id for f in rows for o in f.overlays)


def test_the_papers_table_stands_beside_the_nearest_label_counts(study):
    paper = next(p for p in study.papers if p.sweep == "fair")
    assert [row.labels for row in paper.rows] == [500, 0, 0, 100, 18]
    assert paper.rows[-1].paper["cmunet"] == pytest.approx(0.627)
    assert paper.drop.paper["scratch"] == pytest.approx(1 - 0.376 / 0.708, abs=5e-4)
    for method, lost in paper.drop.paper.items():
        first, last = paper.rows[0].paper[method], paper.rows[-1].paper[method]
        assert lost == pytest.approx(1 - last / first, abs=0.002)
    assert "2507.17779" in paper.source and "authors' own logs" in paper.note
    assert "Another data set" in paper.warning


# --------------------------------------------------------------------------------- all labels


@pytest.fixture(scope="module")
def with_all(tmp_path_factory) -> Study:
    """18 and 100 labels and all (0), in an order that is not theirs."""
    sweep = fake_sweep.build_fair(
        tmp_path_factory.mktemp("all"),
        methods=("scratch", "cmunet"),
        labels=(18, 100, 0),
        draws=(0, 1),
        search=False,
        failed="",
    )
    return read_study([sweep], resamples=50)


def test_all_labels_come_last_everywhere(with_all):
    assert with_all.labels("fair") == (18, 100, 0) and with_all.everything("fair") == 500
    assert [n for n, _ in with_all.curve("fair", "cmunet")] == [18, 100, 0]
    assert [c.labels for c in with_all.cells if c.method == "cmunet"] == [18, 100, 0]
    found = {table.name: table for table in study_tables.tables_of(with_all)}
    assert found["dice-fair"].header[1:4] == ("18 labels", "100 labels", "all labels")
    counts = [row[1].value for row in found["differences-fair"].rows]
    assert counts == ["18 labels", "100 labels", "all labels"]
    drop = next(d for d in with_all.drops if d.method == "scratch")
    assert (drop.most, drop.least) == (0, 18)
    (paper,) = with_all.papers
    assert [row.labels for row in paper.rows] == [500, 0, 0, 100, 18]
    assert paper.rows[0].ours["cmunet"] == with_all.cell("fair", "cmunet", 0).primary
    assert paper.drop.ours["cmunet"].key == "fair/cmunet/0-18/drop" and not paper.unmatched


def test_a_study_at_other_label_counts_says_so(with_all):
    cells = [c for c in with_all.cells if c.labels == 18]
    cells = [dataclasses.replace(c, labels=40) for c in cells]
    table = published.beside(with_all.sweeps[0], cells, ())
    assert "None of our label counts (40)" in table.unmatched
    assert not any(row.ours for row in table.rows)


# ---------------------------------------------------------------------------------- provenance


def numbers_in(value: object) -> list[Number]:
    if isinstance(value, Number):
        return [value]
    if dataclasses.is_dataclass(value):
        return [n for f in dataclasses.fields(value) for n in numbers_in(getattr(value, f.name))]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [n for item in value for n in numbers_in(item)] if isinstance(value, tuple) else []


def test_every_number_leads_to_files_that_are_as_they_were(study: Study):
    numbers = numbers_in(study)
    known = [n for n in numbers if math.isfinite(n.value)]
    assert len(known) > 700
    assert all(study.provenance[n.key] for n in known)
    for source in list(study.sources.values())[::20]:
        assert hashlib.sha256(source.path.read_bytes()).hexdigest() == source.digest
    cell = study.cell("fair", "cmunet", 18)
    assert cell is not None
    names = study.provenance[cell.primary.key]
    assert sum(name.endswith("cases.csv") for name in names) == 3
    assert all(run.key in " ".join(names) for run in cell.runs)
    for finding in study.findings:
        assert finding.numbers and set(finding.numbers) <= set(study.provenance)
    for cost in study.costs:
        assert cost.key in study.provenance
