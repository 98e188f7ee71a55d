"""Evaluations with invented numbers, arranged as the evaluator does."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from cmunet_jax.evaluation import metrics, results
from tests.report import runs


def evaluation(
    dice: np.ndarray, *, patients: int, ids: Sequence[str] | None = None
) -> results.Evaluation:
    """Rows and a summary whose other metrics follow from Dice, as the evaluator arranges them."""
    rows, terms = [], []
    for at, score in enumerate(dice):
        rng = np.random.default_rng([8, at])
        row: dict[str, Any] = {
            "id": ids[at] if ids else f"image{at:03d}",
            "patient": f"p{at % patients}",
            "centre": "",
        }
        measured = {}
        for number, (name, metric) in enumerate(metrics.TABLE.items()):
            jitter = 0.02 * np.random.default_rng([9, at, number]).normal()
            if name == "dice":
                measured[name] = float(score)
            elif metric.unit:
                scale = {"px": 40.0, "nat": 0.3}.get(metric.unit, 1.0)
                measured[name] = float(scale * max(1 - score + jitter, 0.01))
            else:
                measured[name] = float(np.clip(score + jitter, 0.01, 1))
        row |= {name: measured.get(name, 0.5) for name in metrics.TABLE}
        row |= {"truth_pixels": 1000, "predicted_pixels": 900 + at}
        for place, name in enumerate(("thin", "mid", "thick")):
            row[f"truth_{name}"] = (200, 500, 300)[place] if (at + place) % 7 else 0
        for place, name in enumerate(("thin", "mid", "thick")):
            found = float(np.clip(score - 0.2 + 0.2 * place, 0, 1))
            row[f"sensitivity_{name}"] = found if row[f"truth_{name}"] else ""
        row["brier"] = float(0.1 * (1 - score) + 0.01 * rng.random())
        row["ece"] = float(0.05 * (1 - score) + 0.01 * rng.random())
        row["empty"] = ""
        rows.append(row)
        terms.append(
            {
                name: (measured.get(name, 0.5), 1.0) * (2 if "cldice" in name else 1)
                for name, metric in metrics.TABLE.items()
                if metric.poolable
            }
        )
    summary = results.summarise(
        rows, terms, metrics.TABLE, protocol="fixed", batch_size=8, resamples=200
    )
    edges = np.linspace(0, 1, 11)
    lean = 0.1 * (1 - float(dice.mean()))  # over-confident, the more the worse
    bins = [
        {
            "low": float(low),
            "high": float(low + 0.1),
            "count": int(40_000 * (1 - abs(low - 0.45))),
            "mean_probability": float(low + 0.05),
            "fraction_positive": float(np.clip(low + 0.05 - lean * (low - 0.3), 0, 1)),
        }
        for low in edges[:-1]
    ]
    summary["calibration"] = {
        "bins": bins,
        "ece": float(np.mean([row["ece"] for row in rows])),
        "brier": float(np.mean([row["brier"] for row in rows])),
    }
    summary["calibre"] = {
        "thin": "< 6 px",
        "mid": "6 to 12 px",
        "thick": "> 12 px",
        "rule": "twice the distance of the nearest true centreline pixel to the border",
    }
    return results.Evaluation(rows, summary)


def overlay() -> bytes:
    """A small PNG of three panels."""
    rng = np.random.default_rng(0)
    truth = runs.vessels(rng, 64)
    grey = np.clip(140 + 10 * rng.normal(size=(64, 64)) - 60 * truth, 0, 255).astype(np.uint8)
    panel = np.repeat(grey[..., None], 3, axis=2)
    marked = panel.copy()
    marked[truth] = (230, 159, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([panel, marked, panel], axis=1)).save(buffer, "PNG")
    return buffer.getvalue()
