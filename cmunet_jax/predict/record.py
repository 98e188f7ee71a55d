"""predictions.json: what a run of predict did, for the viewer and for whoever comes later.

All paths in it are relative to its folder. A DICOM is named by a digest of its file: neither its
file name nor anything from inside it is repeated.

    {"format": 1,
     "checkpoints": [{"digest", "step", "weights", "preprocessing": {…}, "width"}],
     "options": {…}, "versions": {…},
     "cases": [{"id", "kind", "sha256", "source_frames", "height", "width",
                "spacing": {"rows_mm", "columns_mm", "source"} | null,
                "segmentation": "segmentations/ID.dcm" | null, "notes": [str],
                "frames": [{"index", "frame" | null, "mask", "probability", "overlay" | null,
                            "artery_pixels", "qca": "qca/NAME.json" | null}]}],
     "failed": [{"input", "reason"}]}

`frame` and `overlay` are null where the picture is withheld because of burned-in annotations.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cmunet_jax.imaging.case import Case
from tfds_angio.errors import UserError

FILE, FORMAT = "predictions.json", 1
FOLDERS = ("frames", "masks", "probabilities", "overlays", "segmentations", "qca")
_KEYS = ("checkpoints", "options", "versions", "cases", "failed")


def case_entry(
    case: Case,
    frames: Sequence[Mapping[str, Any]],
    *,
    segmentation: str | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """The entry of one case; `frames` as in the module's docstring."""
    return {
        "id": case.id,
        "kind": case.kind,
        "sha256": case.sha256,
        "source_frames": case.frames,
        "height": int(case.height),
        "width": int(case.width),
        "spacing": dataclasses.asdict(case.spacing) if case.spacing else None,
        "segmentation": segmentation,
        "notes": list(notes),
        "frames": [dict(frame) for frame in frames],
    }


def write(folder: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes predictions.json into `folder`, at once or not at all.

    Raises:
      OSError: it cannot be written.
    """
    temporary = folder / f".{FILE}.{os.getpid()}"
    text = json.dumps({"format": FORMAT, **content}, indent=1, allow_nan=False) + "\n"
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, folder / FILE)
    finally:
        temporary.unlink(missing_ok=True)


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Reads predictions.json of a run.

    Raises:
      UserError: there is none, it is damaged or of another format.
    """
    path = pathlib.Path(folder) / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no {FILE}: give the folder of a run of configs/predict.py"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): predict again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}: use the release that wrote it")
    if missing := [key for key in _KEYS if key not in content]:
        raise UserError(f"{path} lacks {', '.join(missing)}: predict again")
    return content


def read_mask(path: pathlib.Path) -> NDArray[np.bool_]:
    """A mask PNG as bool [H, W].

    Raises:
      UserError: it cannot be read.
    """
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if found is None:
        raise UserError(f"{path} cannot be read as a PNG")
    return np.asarray(found > 0)


def read_probability(path: pathlib.Path) -> NDArray[np.float32]:
    """A probability map of either kind, float32 [H, W] in 0..1.

    Raises:
      UserError: it cannot be read.
    """
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as archive:
                return np.asarray(archive["probability"], np.float32)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} cannot be read ({error})") from None
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16:
        raise UserError(f"{path} cannot be read as a 16-bit PNG")
    return found.astype(np.float32) / np.float32(65535)
