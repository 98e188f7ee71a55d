"""What every input is to the rest: a case with one or many grey frames, read one at a time."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KINDS = ("image", "array", "dicom")


class UnreadableCase(Exception):
    """An input that cannot be used; the message is the reason, without names from inside it."""


@dataclass(frozen=True)
class Spacing:
    """How large a pixel is.

    Attributes:
      rows_mm: distance between the centres of neighbouring rows, > 0.
      columns_mm: distance between the centres of neighbouring columns, > 0.
      source: 'pixel spacing' (calibrated, in the plane of the patient), 'imager pixel spacing' (in
        the plane of the detector: vessels look larger by the magnification, unless corrected),
        'imager pixel spacing, corrected' (divided by it) or 'config' (what the user said).
    """

    rows_mm: float
    columns_mm: float
    source: str


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
      id: what its outputs are called: letters, digits, '-', '_' and '.'. That of a DICOM is made
        from a digest of the file, since file names often carry the patient's name.
      path: of the file. It stays on this machine: no output repeats that of a DICOM.
      kind: one of KINDS.
      sha256: hex, of the file's bytes.
      frames: how many there are, > 0.
      height: H in pixels.
      width: W in pixels.
      spacing: None where the file does not say.
      burned_in: whether the file says that its pixels hold annotations, which may name a patient.
      read: frame index in 0..frames-1 -> grey [H, W], uint8, uint16 or float32, where vessels
        filled with contrast are darker than what surrounds them. Only that frame is decoded.
      notes: what was done to the pixels that a user would not expect.
    """

    id: str
    path: pathlib.Path
    kind: str
    sha256: str
    frames: int
    height: int
    width: int
    spacing: Spacing | None
    burned_in: bool
    read: Callable[[int], NDArray[np.generic]]
    notes: tuple[str, ...] = ()
