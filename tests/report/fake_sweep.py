"""Sweep directories as the sweep stage leaves them, with invented numbers of known effects.

    study = build(tmp_path)     # writes fair/, paper/ and defects/; a second or two
    read_study([study.fair, study.paper, study.defects])

`fair` holds six methods × {18, 100, 500} labels × 3 draws on 40 images of 12 patients, their
pre-training and a search of learning rates; one trial has failed. `paper` holds scratch and
CM-UNet once, `defects` the same two with one thing changed at a time. CM-UNet gains 0.08 Dice at
18 labels and 0.01 at 500, MAE a little less, SparK loses a little, Genesis does nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmunet_jax.evaluation import results
from cmunet_jax.stages import record
from tests.report import fake_evaluation, runs

METHODS = ("scratch", "mae", "genesis", "moco", "spark", "cmunet")
LABELS, DRAWS = (18, 100, 500), (0, 1, 2)
IMAGES, PATIENTS = 40, 12
RATES = (1e-4, 1e-3)
DATA = {"name": "angio_synthetic/small", "fingerprint": "f" * 64}
FAILED = "spark/100 labels/draw 2/seed 0"
# Dice from scratch, and what a method adds at the fewest and at the most labels.
BASE = {18: 0.60, 100: 0.70, 500: 0.74}
GAIN = {
    "scratch": (0.0, 0.0),
    "mae": (0.05, 0.005),
    "genesis": (0.0, 0.0),
    "moco": (0.02, 0.01),
    "spark": (-0.03, -0.01),
    "cmunet": (0.08, 0.01),
}
VARIANTS = {"hard_dice": -0.02, "epochs": -0.15, "select_on_test": 0.01, "row_target": 0.0}
CHANGED: Mapping[str, dict[str, Any]] = {
    "hard_dice": {"objective": {"name": "scratch", "preset": "fixed", "soft_dice": False}},
    "epochs": {"train_for": "128 epochs"},
    "select_on_test": {"eval_split": "test"},
    "row_target": {"target": "row"},
}


@dataclass(frozen=True)
class Built:
    """Where the three sweeps are."""

    fair: Path
    paper: Path
    defects: Path

    @property
    def all(self) -> list[Path]:
        return [self.fair, self.paper, self.defects]


def key_of(*parts: object) -> str:
    """16 hex digits, as the sweep stage names trials."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:16]


def trial(
    sweep: str,
    kind: str,
    method: str,
    labels: int | None = None,
    draw: int | None = None,
    *,
    learning_rate: float | None = None,
    variant: str = "",
    fold: int | None = None,
    depends: Iterable[str] = (),
) -> dict[str, Any]:
    """An entry of plan.json."""
    parts = [method, variant, kind if kind != "finetune" else ""]
    parts += [f"{labels} labels" if labels is not None else ""]
    parts += [f"draw {draw}" if draw is not None else ""]
    parts += [f"rate {learning_rate:g}" if kind == "search" else ""]
    parts += [f"fold {fold}" if fold is not None else "", "seed 0"]
    name = "/".join(filter(None, parts))
    return {
        "key": key_of(sweep, name),
        "name": name,
        "kind": kind,
        "method": method,
        "labels": labels,
        "draw": draw,
        "seed": 0,
        "learning_rate": learning_rate,
        "variant": variant,
        "fold": fold,
        "depends": list(depends),
    }


# ------------------------------------------------------------------------------------- writing


def dice_of(method: str, labels: int, draw: int, *, shift: float = 0.0) -> np.ndarray:
    """Dice of each image: hard images are hard for all, draws and methods differ a little."""
    labels = labels or 500  # 0 stands for all
    hard = np.random.default_rng(3).normal(0, 0.05, PATIENTS)[np.arange(IMAGES) % PATIENTS]
    hard += np.random.default_rng(4).normal(0, 0.06, IMAGES)
    least, most = GAIN[method]
    share = (np.log(labels) - np.log(18)) / (np.log(500) - np.log(18))
    luck = np.random.default_rng([5, labels, draw]).normal(0, 0.01)
    luck += np.random.default_rng([6, METHODS.index(method), labels, draw]).normal(0, 0.004)
    noise = np.random.default_rng([7, METHODS.index(method), labels, draw]).normal(0, 0.015, IMAGES)
    base = float(np.interp(np.log(labels), np.log(list(BASE)), list(BASE.values())))
    gain = least + share * (most - least)
    return np.clip(base + gain + shift + hard + luck + noise, 0.02, 0.98)


def write_result(folder: Path, entry: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """result.json of a trial that is done, or of one that failed."""
    steps = {"pretrain": 1500, "search": 300}.get(entry["kind"], 1200)
    content: dict[str, Any] = {
        "version": 1,
        "key": entry["key"],
        "status": "done",
        "error": None,
        "seconds": 0.5 * steps,
        "steps": steps,
        "attempts": 1,
        "data": DATA,
        "versions": runs.VERSIONS,
        "energy_joules": None,
        "selection": None,
        "evaluation": "evaluation" if entry["kind"] == "finetune" else None,
        "checkpoint": {
            "path": "run/checkpoints",
            "digest": hashlib.sha256(entry["key"].encode()).hexdigest(),
            "step": steps,
        },
        "finished": "2026-01-01T00:00:00+00:00",
    } | changes
    record.write_json(folder / "result.json", content)
    return content


def write_trial(
    sweep: Path,
    entry: Mapping[str, Any],
    *,
    dice: np.ndarray | None = None,
    selection: float | None = None,
    overlay: bytes | None = None,
    config: Mapping[str, Any] | None = None,
    chosen: Mapping[str, Any] | None = None,
    split: str = "test",
    facts: Mapping[str, Any] | None = None,
) -> None:
    """A finished trial: trial.json, run/, evaluation/ and result.json."""
    folder = sweep / "trials" / entry["key"]
    rate = entry["learning_rate"] or 1e-3
    resolved = runs.CONFIG | {
        "stage": "pretrain" if entry["kind"] == "pretrain" else "finetune",
        "labels": entry["labels"] or 0,
        "draw": entry["draw"] or 0,
        "data": {"name": DATA["name"], "split": "train", "dir": "data"},
        "train_for": "1200 steps",
        "optim": {"name": "adamw", "learning_rate": rate},
    }
    if entry["kind"] == "pretrain":
        resolved["objective"] = {"name": entry["method"], "preset": "fixed"}
    resolved |= dict(config or {})
    record.write_json(
        folder / "trial.json",
        {
            **entry,
            "config": resolved,
            "chosen": chosen or {"learning_rate": rate, "from": []},
        },
    )
    scalars = (
        runs.pretraining_scalars()
        if entry["kind"] == "pretrain"
        else runs.finetuning_scalars(float(dice.mean()) if dice is not None else 0.6, steps=1200)
    )
    runs.write_training(folder / "run", scalars=scalars, **resolved)
    changes: dict[str, Any] = {}
    if selection is not None:
        changes["selection"] = {"split": "fold", "metric": "dice", "value": selection}
    if dice is not None:
        digest = hashlib.sha256(entry["key"].encode()).hexdigest()
        found = fake_evaluation.evaluation(dice, patients=PATIENTS)
        runs.write_evaluation(
            folder / "evaluation", found, dataset=DATA, split=split, protocol="fixed",
            resolution="native",
        )  # fmt: skip
        summary = json.loads((folder / "evaluation" / "summary.json").read_text())
        summary["checkpoint"] |= {"digest": digest, "path": "run/checkpoints"}
        summary |= {"selected_on": "", "splits": splits_facts("built")} | dict(facts or {})
        record.write_json(folder / "evaluation" / "summary.json", summary)
        if overlay:
            for rank in results.PICTURES:
                (folder / "evaluation" / f"overlay_{rank}.png").write_bytes(overlay)
        line = {
            "time": "2026-01-01T00:00:00+00:00",
            "key": entry["key"],
            "trial": entry["name"],
            "split": split,
            "digest": digest,
            "purpose": "final evaluation",
            "read": 1,
        }
        with (sweep / "test_reads.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    write_result(folder, entry, **changes)


def splits_facts(rule: str, patients: int = 0, note: str = "") -> dict[str, Any]:
    """The entry `splits` of summary.json."""
    seen = {"images": 0, "patients": patients, "note": note}
    return {"rule": rule, "sizes": {"test": IMAGES}, "seen_in_training": seen}


def write_sweep(
    sweep: Path, plan: Sequence[Mapping[str, Any]], *, protocol: str, title: str
) -> None:
    """sweep.json and plan.json."""
    record.write_json(
        sweep / "sweep.json",
        {
            "version": 1,
            "title": title,
            "protocol": protocol,
            "scale": "A small network and few steps: invented numbers for tests.",
            "config": {
                "stage": "sweep",
                "protocol": protocol,
                "methods": sorted({entry["method"] for entry in plan}),
                "labels": sorted({entry["labels"] for entry in plan if entry["labels"]}),
            },
            "data": DATA | {"splits": {"train": 500, "val": 40, "test": IMAGES}},
            "versions": runs.VERSIONS,
            "created": "2026-01-01T00:00:00+00:00",
        },
    )
    record.write_json(sweep / "plan.json", {"version": 1, "trials": list(plan)})


# ------------------------------------------------------------------------------------- sweeps


def build_fair(
    root: Path,
    *,
    methods: Sequence[str] = METHODS,
    labels: Sequence[int] = LABELS,
    draws: Sequence[int] = DRAWS,
    search: bool = True,
    failed: str = FAILED,
) -> Path:
    """Writes fair/ and returns it."""
    sweep, overlay = root / "fair", fake_evaluation.overlay()
    plan: list[dict[str, Any]] = []
    for method in methods:
        before = []
        if method != "scratch":
            entry = trial("fair", "pretrain", method)
            plan.append(entry)
            write_trial(sweep, entry)
            before = [entry["key"]]
        searches = _write_search(sweep, method, before) if search else []
        plan += searches
        depends = before + [entry["key"] for entry in searches]
        chosen = {"learning_rate": 1e-3, "from": [entry["key"] for entry in searches]}
        for count in labels:
            for draw in draws:
                entry = trial("fair", "finetune", method, count, draw, depends=depends)
                plan.append(entry)
                if entry["name"] == failed:
                    changes = {"status": "failed", "evaluation": None, "checkpoint": None}
                    record.write_json(sweep / "trials" / entry["key"] / "trial.json", entry)
                    folder = sweep / "trials" / entry["key"]
                    write_result(folder, entry, error="loss is not finite at step 40", **changes)
                    continue
                picture = overlay if draw == 0 else None
                start = {"init_from": f"trials/{before[0]}/run"} if before else {}
                dice = dice_of(method, count, draw)
                write_trial(
                    sweep, entry, dice=dice, overlay=picture, config=start, chosen=chosen
                )  # fmt: skip
    write_sweep(sweep, plan, protocol="fair", title="Six methods at equal budget")
    return sweep


def _write_search(sweep: Path, method: str, before: Sequence[str]) -> list[dict[str, Any]]:
    """Two learning rates × three folds at the fewest labels; the larger is better."""
    entries = []
    for rate in RATES:
        for fold in range(3):
            entry = trial(
                "fair", "search", method, 18, 0, learning_rate=rate, fold=fold, depends=before
            )
            write_trial(sweep, entry, selection=0.5 + 0.05 * (rate == 1e-3) + 0.01 * fold)
            entries.append(entry)
    return entries


PAPER_FACTS = {
    "selected_on": "test/dice",
    "splits": splits_facts("paper", 5, "splits 'paper' divide by image"),
}


def build_paper(root: Path) -> Path:
    """Writes paper/: scratch and CM-UNet once; from scratch collapses at 18 labels."""
    sweep = root / "paper"
    plan = []
    for method in ("scratch", "cmunet"):
        before = []
        if method != "scratch":
            plan.append(trial("paper", "pretrain", method))
            write_trial(sweep, plan[-1])
            before = [plan[-1]["key"]]
        for count in (18, 500):
            entry = trial("paper", "finetune", method, count, 0, depends=before)
            shift = -0.22 if (method, count) == ("scratch", 18) else -0.03
            dice = dice_of(method, count, 0, shift=shift)
            write_trial(sweep, entry, dice=dice, facts=PAPER_FACTS)
            plan.append(entry)
    write_sweep(sweep, plan, protocol="paper", title="As released")
    return sweep


def build_defects(root: Path, *, draws: Sequence[int] = DRAWS) -> Path:
    """Writes defects/: scratch and CM-UNet at 18 labels, one thing changed at a time."""
    sweep = root / "defects"
    plan = []
    for method in ("scratch", "cmunet"):
        before = []
        if method != "scratch":
            plan.append(trial("defects", "pretrain", method))
            write_trial(sweep, plan[-1])
            before = [plan[-1]["key"]]
        for variant in ("", *VARIANTS):
            if variant == "row_target" and method == "scratch":
                continue
            for draw in draws:
                entry = trial(
                    "defects", "finetune", method, 18, draw, variant=variant, depends=before
                )
                dice = dice_of(method, 18, draw, shift=VARIANTS.get(variant, 0.0))
                write_trial(sweep, entry, dice=dice, config=CHANGED.get(variant))
                plan.append(entry)
    write_sweep(sweep, plan, protocol="fair", title="One defect at a time")
    return sweep


def build(root: Path) -> Built:
    """Writes all three sweeps below `root`."""
    return Built(build_fair(root), build_paper(root), build_defects(root))
