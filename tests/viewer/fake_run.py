"""A predict run as small as it can be: an image, and a run of five frames, by one checkpoint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 96, 128
SPACING = 0.3  # mm


def vessel(shift: float, width: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points [N, 2] (row, column) of a centreline, and its diameters [N], with a stenosis."""
    t = np.linspace(0, 1, 60)
    rows = 12 + 70 * t
    columns = 30 + shift + 45 * t + 9 * np.sin(5 * t)
    diameters = width * (1 - 0.25 * t) * (1 - 0.55 * np.exp(-(((t - 0.55) / 0.07) ** 2)))
    return np.stack([rows, columns], 1), diameters


def branch(shift: float, width: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A thinner one that leaves it."""
    t = np.linspace(0, 1, 40)
    return np.stack([33 + 42 * t, 44 + shift - 26 * t], 1), np.full(40, 0.55 * width)


def draw(shift: float = 0.0, width: float = 8.0) -> NDArray[np.bool_]:
    """The mask [H, W] of both."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    found = np.zeros((HEIGHT, WIDTH), bool)
    for points, diameters in (vessel(shift, width), branch(shift, width)):
        for (row, column), diameter in zip(points, diameters, strict=True):
            found |= np.hypot(rows - row, columns - column) <= diameter / 2
    return found


def picture(mask: NDArray[np.bool_], seed: int) -> NDArray[np.uint8]:
    """A grey frame: dark vessels on a soft background with some noise."""
    rng = np.random.default_rng(seed)
    rough = cv2.resize(rng.normal(size=(6, 8)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    filled = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8)
    grey = 150 + 22 * rough - 85 * filled + rng.normal(size=mask.shape) * 4
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _segment(number: int, points: Any, diameters: Any) -> dict[str, Any]:
    steps = np.hypot(*np.diff(points, axis=0).T)
    along = np.concatenate([[0], np.cumsum(steps)])
    least = int(np.argmin(diameters))
    reference = np.linspace(diameters[0], diameters[-1], len(diameters))
    stenosis = 100 * (1 - diameters[least] / reference[least])
    return {
        "id": number,
        "points": points.tolist(),
        "position_px": along.tolist(),
        "diameter_px": diameters.tolist(),
        "reference_px": reference.tolist(),
        "length_px": along[-1],
        "length_mm": along[-1] * SPACING,
        "minimal_diameter_px": diameters[least],
        "minimal_diameter_mm": diameters[least] * SPACING,
        "minimal_at": least,
        "reference_at_minimum_px": reference[least],
        "percent_diameter_stenosis": stenosis if number == 1 else None,
        "why_no_stenosis": None if number == 1 else "the segment is too short for a reference",
    }


def analysis(shift: float, width: float) -> dict[str, Any]:
    """What qca would say of it."""
    segments = [_segment(1, *vessel(shift, width)), _segment(2, *branch(shift, width))]
    length = sum(s["length_px"] for s in segments)
    return {
        "format": 1,
        "spacing_mm": [SPACING, SPACING],
        "length_px": length,
        "length_mm": length * SPACING,
        "bifurcations": [[33, 44 + shift]],
        "minimal_diameter_px": segments[0]["minimal_diameter_px"],
        "minimal_diameter_mm": segments[0]["minimal_diameter_mm"],
        "segments": segments,
    }


def _frame(root: Path, name: str, index: int, width: float, *, npz: bool) -> dict[str, Any]:
    truth, found = draw(2 * index), draw(2 * index, width)
    seed = index + (0 if npz else 100)  # no two frames have the same pixels
    sure = cv2.GaussianBlur(found.astype(np.float32), (0, 0), 1.2)
    files: dict[str, Any] = {
        "frame": f"frames/{name}.png",
        "mask": f"masks/{name}.png",
        "probability": f"probabilities/{name}.{'npz' if npz else 'png'}",
        "overlay": None,
        "qca": f"qca/{name}.json",
    }
    for path in filter(None, files.values()):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / files["frame"]), picture(truth, seed))
    cv2.imwrite(str(root / files["mask"]), found.astype(np.uint8) * 255)
    if npz:
        np.savez_compressed(root / files["probability"], probability=sure)
    else:
        wide = np.rint(np.clip(sure, 0, 1) * 65535).astype(np.uint16)
        cv2.imwrite(str(root / files["probability"]), wide)
    (root / files["qca"]).write_text(json.dumps(analysis(2 * index, width)))
    return {"index": index, "artery_pixels": int(found.sum()), **files}


def _case(root: Path, name: str, kind: str, indices: list[int], width: float) -> dict[str, Any]:
    run = kind == "dicom"
    return {
        "id": name,
        "kind": kind,
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "source_frames": 5 if run else 1,
        "height": HEIGHT,
        "width": WIDTH,
        "spacing": {"rows_mm": SPACING, "columns_mm": SPACING, "source": "pixel spacing"},
        "segmentation": None,
        "notes": ["burned-in text was covered"] if run else [],
        "frames": [
            _frame(root, f"{name}_{i:04d}" if run else name, i, width, npz=run) for i in indices
        ],
    }


def build(root: Path, *, width: float = 8.0, digest: str = "a" * 64, failed: bool = True) -> Path:
    """Writes a run whose checkpoint draws vessels `width` pixels wide (truth: 8)."""
    root.mkdir(parents=True)
    document = {
        "format": 1,
        "checkpoints": [
            {"digest": digest, "step": 400, "weights": "ema", "preprocessing": {}, "width": 8}
        ],
        "options": {"threshold": 0.5},
        "versions": {},
        "cases": [
            _case(root, "left-anterior", "image", [0], width),
            _case(root, "dicom-0123456789ab", "dicom", list(range(5)), width),
        ],
        "failed": [{"input": "notes.txt", "reason": "no image"}] if failed else [],
    }
    write(root, document)
    return root


def write(root: Path, document: Any) -> None:
    """(Re)writes predictions.json."""
    (root / "predictions.json").write_text(json.dumps(document))


def read(root: Path) -> Any:
    """Reads it."""
    return json.loads((root / "predictions.json").read_text())


def stored(path: Path) -> Any:
    """The pixels of a file as they are."""
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
