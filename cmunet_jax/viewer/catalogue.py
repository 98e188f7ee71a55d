"""What the page can show: cases of frames, each with layers that are read when asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Layer = Callable[[], NDArray[np.uint8]]
KINDS = ("frame", "mask-a", "probability-a", "mask-b", "probability-b", "label")
"""Of layers: the grey frame, what each of two checkpoints says of it, and the user's own mask."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,119}")
"""What a label may be called: one file name on every system, never hidden, never a folder."""


@dataclass(frozen=True)
class ProbabilityMap:
    """What a run says of a frame, before it is a mask.

    Attributes:
      read: function that reads the probability of artery, float32 [H, W]; raises Unreadable.
      threshold: of the run, above 0 and below 1: its mask was made where the probability is above.
    """

    read: Callable[[], NDArray[np.float32]]
    threshold: float


@dataclass(frozen=True)
class Frame:
    """One picture.

    Attributes:
      index: in its run, from 0.
      name: what its label is called, as NAME.
      layers: kind -> function that reads its pixels [H, W]; raises Unreadable.
      qca: 'a' or 'b' -> function that reads the quantitative analysis; raises Unreadable.
      problem: why a file of it is missing, or ''.
      maps: 'a' or 'b' -> what its mask was made from, where that and its threshold are known.
    """

    index: int
    name: str
    layers: Mapping[str, Layer]
    qca: Mapping[str, Callable[[], dict[str, Any]]] = field(default_factory=dict)
    problem: str = ""
    maps: Mapping[str, ProbabilityMap] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One image or run.

    Attributes:
      id: shown in the list.
      sha256: of the source, '' where it is not known.
      height: in pixels; 0 where it is known only when a frame is read.
      width: in pixels, or 0.
      frames: those that can be shown, by index.
      source_frames: how many the source has.
      notes: what predict said of it.
      problem: why it is not shown whole, or ''.
      spacing_mm: between rows and between columns, as predict used it; None where it is not known.
    """

    id: str
    sha256: str
    height: int
    width: int
    frames: tuple[Frame, ...]
    source_frames: int
    notes: tuple[str, ...] = ()
    problem: str = ""
    spacing_mm: tuple[float, float] | None = None


@dataclass(frozen=True)
class Catalogue:
    """All that is served.

    Attributes:
      cases: in the order of the list.
      checkpoints: of each compared run, 'a' and 'b' -> (name, digests).
      failed: inputs that predict could not read -> reason.
      notes: about the whole.
      told: lines for the screen, and only for it: which file is which case.
    """

    cases: tuple[Case, ...]
    checkpoints: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    failed: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    told: tuple[str, ...] = ()


def sendable(text: str) -> str:
    """`text` as it can be sent: JSON, and names of files, may hold halves of characters."""
    return text.encode("utf-8", "replace").decode()


def described(catalogue: Catalogue, saved: Callable[[str], bool]) -> dict[str, Any]:
    """The catalogue as JSON for the page.

    Args:
      catalogue: what is served.
      saved: label name -> whether there is one.
    """
    return {
        "checkpoints": {key: name for key, (name, _) in catalogue.checkpoints.items()},
        "failed": [{"input": name, "reason": reason} for name, reason in catalogue.failed],
        "notes": list(catalogue.notes),
        "cases": [
            {
                "id": case.id,
                "height": case.height,
                "width": case.width,
                "source_frames": case.source_frames,
                "notes": list(case.notes),
                "problem": case.problem,
                "frames": [
                    {
                        "index": frame.index,
                        "name": frame.name,
                        "layers": [*frame.layers],
                        "qca": [*frame.qca],
                        "problem": frame.problem,
                        "saved": saved(frame.name),
                    }
                    for frame in case.frames
                ],
            }
            for case in catalogue.cases
        ],
    }
