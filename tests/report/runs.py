"""Small result folders, written by the project's own writers, as training and evaluation do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from cmunet_jax.evaluation import metrics, results
from cmunet_jax.stages import record
from cmunet_jax.train.metrics_file import JsonLinesWriter
from cmunet_jax.train.pictures import PictureWriter

VERSIONS = {"jax": "0.10.2", "devices": "1 x cpu (cpu)"}
CONFIG: dict[str, Any] = {
    "stage": "finetune",
    "seed": 0,
    "draw": 0,
    "labels": 18,
    "batch_size": 8,
    "init_from": "",
    "data": {"name": "angio_synthetic/tiny", "split": "train", "dir": "data"},
    "model": {"width": 4},
    "preprocessing": {"name": "fixed", "size": 64},
    "objective": {"name": "scratch", "preset": "fixed"},
}


def write_training(
    folder: Path,
    *,
    scalars: dict[int, dict[str, float]],
    pictures: dict[str, np.ndarray] | None = None,
    **changes: Any,
) -> Path:
    """config.json, metrics.jsonl and pictures of a training run."""
    config = CONFIG | changes
    content = {
        "config": config,
        "versions": VERSIONS,
        "command": "python -m cmunet_jax.main --config configs/finetune.py",
        "data": {"name": config["data"]["name"], "fingerprint": "f" * 64},
    }
    record.write_json(folder / "config.json", content)
    writer = JsonLinesWriter(folder / "metrics.jsonl")
    for step, row in scalars.items():
        writer.write_scalars(step, row)
    writer.close()
    PictureWriter(folder / "pictures").write_images(max(scalars), pictures or {})
    return folder


def finetuning_scalars(final_dice: float, *, steps: int = 100) -> dict[int, dict[str, float]]:
    """A loss that falls and a validation Dice that levels off."""
    marks = np.arange(1, 11) * steps // 10
    return {
        int(step): {
            "train/loss": 1.5 * np.exp(-3 * step / steps) + 0.2,
            "val/dice": final_dice * (1 - np.exp(-9 * step / steps)),
            "learning_rate": 1e-3,
        }
        for step in marks
    }


def pretraining_scalars() -> dict[int, dict[str, float]]:
    """The two terms of CM-UNet and their sum."""
    rows = {}
    for step in range(10, 210, 10):
        rec, con = 0.4 + 0.6 * np.exp(-step / 60), 0.35 * np.exp(-step / 50)
        rows[step] = {
            "train/loss": rec + con,
            "train/loss_reconstruction": rec,
            "train/loss_contrast": con,
        }
    return rows


def vessels(rng: np.random.Generator, side: int) -> np.ndarray:
    """A few smooth curves, bool [side, side]."""
    mask = np.zeros((side, side), bool)
    t = np.linspace(0, 1, 4 * side)
    for _ in range(3):
        (y, x), angle, bend = rng.uniform(0.2, 0.8, 2) * side, rng.uniform(0, 6.3), rng.normal(0, 3)
        heading = angle + bend * t
        rows = (y + 0.8 * np.cumsum(np.sin(heading)) / 4).astype(int)
        columns = (x + 0.8 * np.cumsum(np.cos(heading)) / 4).astype(int)
        for dy in (0, 1, 2):
            for dx in (0, 1, 2):
                inside = (rows + dy < side) & (columns + dx < side) & (rows >= 0) & (columns >= 0)
                mask[rows[inside] + dy, columns[inside] + dx] = True
    return mask


def evaluation(
    quality: np.ndarray, *, patients: int, side: int = 48, table: Any = None
) -> results.Evaluation:
    """Rows and summary of predictions that hit a share `quality[i]` of the pixels of image i.

    A negative share is an empty prediction.
    """
    table = table or metrics.TABLE
    rows, terms, pictures = [], [], []
    for index, share in enumerate(quality):
        rng = np.random.default_rng((7, index))
        truth = vessels(rng, side)
        kept = rng.random((side, side)) < share
        extra = rng.random((side, side)) < 0.02 * (1 - share)
        prediction = (truth & kept | extra) & (share >= 0)
        noise = rng.normal(0, 1, (side, side))
        pair = metrics.Pair(truth, prediction, margin=np.where(prediction, 2.0, -2.0) + 0.1 * noise)
        row: dict[str, Any] = {
            "id": f"image{index:03d}",
            "patient": f"p{index % patients}",
            "centre": "",
        }
        row |= {name: metric.value(pair) for name, metric in table.items()}
        row |= {"truth_pixels": int(truth.sum()), "predicted_pixels": int(prediction.sum())}
        row["empty"] = pair.empty
        rows.append(row)
        terms.append({n: metric.terms(pair) for n, metric in table.items() if metric.poolable})
        image = np.clip(130 + 12 * noise - 60 * truth, 0, 255).astype(np.uint8)
        pictures.append(results.Picture(row, image, truth, prediction))
    summary = {
        "protocol": "fixed",
        "resolution": "native",
        "dataset": {"name": "angio_synthetic/tiny", "fingerprint": "e" * 64},
        "split": "test",
    } | results.summarise(rows, terms, table, protocol="fixed", batch_size=4, resamples=2000)
    order = sorted(range(len(rows)), key=lambda at: (-float(rows[at]["dice"]), rows[at]["id"]))
    kept = {name: pictures[at] for name, at in results.ranked(order).items()}
    return results.Evaluation(rows, summary, kept)


def write_evaluation(
    folder: Path, found: results.Evaluation, *, overlays: bool = False, **changes: Any
) -> Path:
    """summary.json, cases.csv and overlays."""
    found = dataclasses.replace(found, summary=found.summary | changes)
    results.write(
        found,
        folder,
        overlays=overlays,
        provenance={
            "checkpoint": {"path": "x", "step": 100, "digest": "d" * 64, "weights": "ema"},
            "versions": VERSIONS,
        },
    )
    return folder
