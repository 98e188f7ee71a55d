"""Reads predict runs into a catalogue, as if somebody hostile had written them.

A run may come from anywhere, so nothing in predictions.json is believed: files are opened through
`confined`, sizes are bounded, and a case that is not as it should be is shown with the reason.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cmunet_jax.predict import record
from cmunet_jax.viewer import analysis, catalogue, confined, layers
from cmunet_jax.viewer.catalogue import Case, Catalogue, Frame, ProbabilityMap
from tfds_angio.errors import UserError

_MAX_BYTES = 2**26
_MAX_CASES, _MAX_FRAMES = 100_000, 10_000
_DECODERS: Mapping[str, Callable[[bytes, tuple[int, int]], NDArray[np.uint8]]] = {
    "frame": layers.frame,
    "mask": layers.mask,
    "probability": layers.probability,
}
Number = TypeVar("Number", np.uint8, np.float32)


@dataclass(frozen=True)
class _Source:
    """Where frames come from: the folder of a run, its place 'a' or 'b', its threshold if known."""

    root: pathlib.Path
    which: str
    threshold: float | None


@dataclass(frozen=True)
class Run:
    """A predict run: its folder, its cases and what else its page shows."""

    cases: tuple[Case, ...]
    digests: tuple[str, ...]
    name: str
    failed: tuple[tuple[str, str], ...]


def read(root: pathlib.Path, key: str, which: str) -> Run:
    """Reads a run.

    Args:
      root: its folder.
      key: of the config, for messages.
      which: 'a' or 'b', the place of its checkpoint in the comparison.

    Raises:
      UserError: if it is no predict run, or its document cannot be understood.
    """
    try:
        if (root / record.FILE).stat().st_size > _MAX_BYTES:
            raise UserError(f"{root / record.FILE} is larger than {_MAX_BYTES >> 20} MiB")
        document = record.read(root)
        if not isinstance(document["cases"], list):
            raise UserError(f"{root / record.FILE} is damaged: it has no list of cases")
    except (UserError, RecursionError) as error:
        raise UserError(f"config.{key}: {error}") from None
    except OSError as error:
        raise UserError(
            f"config.{key}: {root / record.FILE}: {error.strerror}. "
            "Give the folder of a run of configs/predict.py."
        ) from None
    rows = document["cases"][:_MAX_CASES]
    # A link that the user names is followed once, here.
    source = _Source(root.resolve(), which, _threshold(document["options"]))
    digests = tuple(_text(c.get("digest"), 64) for c in _dicts(document.get("checkpoints")))
    return Run(
        cases=_distinct(_case(source, row, number) for number, row in enumerate(rows)),
        digests=digests,
        name=_name(_dicts(document.get("checkpoints")), root),
        failed=tuple(
            (_text(row.get("input")), _text(row.get("reason")))
            for row in _dicts(document.get("failed"))
        ),
    )


def _name(checkpoints: list[dict[str, Any]], root: pathlib.Path) -> str:
    """What the page calls the checkpoint: the folder of the run, its step and its digest."""
    folder = catalogue.sendable(root.resolve().name)
    if not checkpoints:
        return folder
    first = checkpoints[0]
    more = f" and {len(checkpoints) - 1} more" if len(checkpoints) > 1 else ""
    step, digest = first.get("step"), _text(first.get("digest"), 64)[:8]
    return f"{folder}: step {step if isinstance(step, int) else '?'}, {digest}{more}"


def _text(value: Any, limit: int = 300) -> str:
    return catalogue.sendable(value[:limit]) if isinstance(value, str) else ""


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _distinct(cases: Any) -> tuple[Case, ...]:
    """Takes the frames away whose label would have the name of another's."""
    seen: set[str] = set()
    kept = []
    for case in cases:
        frames = [f for f in case.frames if f.name.lower() not in seen]
        seen.update(f.name.lower() for f in frames)
        if len(frames) < len(case.frames):
            problem = case.problem or "frames left out: their names are those of another case"
            case = replace(case, frames=tuple(frames), problem=problem)
        kept.append(case)
    return tuple(kept)


def _case(source: _Source, row: Any, number: int) -> Case:
    label = f"case {number + 1}"
    try:
        label = _text(row["id"], 120) or label
        height, width = row["height"], row["width"]
        for side in (height, width):
            if isinstance(side, bool) or not isinstance(side, int):
                raise ValueError("its size is no whole number")
        if not (0 < height <= layers.MAX_SIDE and 0 < width <= layers.MAX_SIDE):
            raise ValueError(f"its size is {height} × {width}")
        if height * width > layers.MAX_PIXELS:
            raise ValueError(f"{height} × {width} pixels are more than can be shown")
        shape = (height, width)
        frames = [_frame(source, entry, shape) for entry in row["frames"][:_MAX_FRAMES]]
        said = row.get("notes")
        notes = [_text(n) for n in said if isinstance(n, str)] if isinstance(said, list) else []
        source_frames = row["source_frames"] if isinstance(row["source_frames"], int) else 0
        spacing = _spacing(row.get("spacing"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
        return Case(label, "", 0, 0, (), 0, problem=f"not understood: {reason}"[:300])
    frames.sort(key=lambda frame: frame.index)
    broken = [frame.problem for frame in frames if frame.problem]
    return Case(
        id=label,
        sha256=_text(row.get("sha256"), 64),
        height=height,
        width=width,
        frames=tuple(frames),
        source_frames=source_frames,
        notes=tuple(notes[:50]),
        problem=f"{len(broken)} of {len(frames)} frames: {broken[0]}" if broken else "",
        spacing_mm=spacing,
    )


def _threshold(options: Any) -> float | None:
    """That of a run, above 0 and below 1; None where it is no such number."""
    value = options.get("threshold") if isinstance(options, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        return None
    return float(value)


def _spacing(value: Any) -> tuple[float, float] | None:
    """Millimetres between rows and between columns; None for null."""
    if value is None:
        return None
    sizes = (value["rows_mm"], value["columns_mm"])
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int | float) or not 1e-6 < size < 1e6:
            raise ValueError("its spacing is no size of a pixel")
    return float(sizes[0]), float(sizes[1])


def _frame(source: _Source, row: Any, shape: tuple[int, int]) -> Frame:
    root, which = source.root, source.which
    index = row["index"]
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise ValueError("the index of a frame is no whole number from 0")
    # The frame is withheld where it may show who the patient is; then the mask has the name.
    path = row["frame"] if row["frame"] is not None else row["mask"]
    name = pathlib.PurePosixPath(_text(path, 512)).stem
    if not catalogue.NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} cannot be the name of a file")
    kept: dict[str, catalogue.Layer] = {}
    problem = "" if row["frame"] is not None else "the picture is withheld: it may name the patient"
    for kind, decode in _DECODERS.items():
        if row.get(kind) is None:
            continue
        try:
            confined.locate(root, row[kind])
        except confined.Unreadable as error:
            problem = problem or f"{kind} {error}"
            continue
        place = kind if kind == "frame" else f"{kind}-{which}"
        kept[place] = functools.partial(_layer, root, row[kind], decode, shape)
    analyses: dict[str, Callable[[], dict[str, Any]]] = {}
    if row.get("qca") is not None:
        analyses[which] = functools.partial(_analysis, root, row["qca"])
    maps: dict[str, ProbabilityMap] = {}
    if source.threshold is not None and f"probability-{which}" in kept:
        read = functools.partial(_layer, root, row["probability"], layers.probabilities, shape)
        maps[which] = ProbabilityMap(read, source.threshold)
    return Frame(index, name, kept, analyses, problem, maps)


def _layer(
    root: pathlib.Path,
    name: str,
    decode: Callable[[bytes, tuple[int, int]], NDArray[Number]],
    shape: tuple[int, int],
) -> NDArray[Number]:
    data = confined.read(root, name, limit=layers.MAX_BYTES)
    try:
        return decode(data, shape)
    except confined.Unreadable as error:
        raise confined.Unreadable(f"{name!r}: {error}") from None


def _analysis(root: pathlib.Path, name: str) -> dict[str, Any]:
    return analysis.parse(confined.read(root, name, limit=analysis.MAX_BYTES))


def compare(first: Run, second: Run) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """The cases of `first` with the layers of `second` where it has the same frame, and notes.

    A case is the same where the digest of its source is; frames are paired by their index.
    """
    others = {case.sha256: case for case in second.cases if case.sha256}
    merged, alone = [], 0
    for case in first.cases:
        other = others.get(case.sha256)
        if other is None or (other.height, other.width) != (case.height, case.width):
            alone += 1
            merged.append(case)
            continue
        by_index = {frame.index: frame for frame in other.frames}
        merged.append(replace(case, frames=tuple(_merge(f, by_index) for f in case.frames)))
    known = {case.sha256 for case in first.cases}
    absent = sum(case.sha256 not in known for case in second.cases)
    notes = []
    if alone:
        notes.append(f"{alone} of {len(first.cases)} cases are not in the second run.")
    if absent:
        notes.append(f"{absent} cases are only in the second run, and are not shown.")
    return tuple(merged), tuple(notes)


def _merge(frame: Frame, others: Mapping[int, Frame]) -> Frame:
    other = others.get(frame.index)
    if other is None:
        return frame
    extra = {kind: layer for kind, layer in other.layers.items() if kind.endswith("-b")}
    return replace(
        frame,
        layers={**frame.layers, **extra},
        qca={**frame.qca, **other.qca},
        maps={**frame.maps, **other.maps},
    )


def of_runs(root: pathlib.Path, second: pathlib.Path | None) -> Catalogue:
    """The catalogue of a run, or of two that are compared.

    Raises:
      UserError: as `read`.
    """
    first = read(root, "input", "a")
    checkpoints = {"a": (first.name, first.digests)}
    cases = first.cases
    notes: tuple[str, ...] = ()
    if second is not None:
        other = read(second, "compare", "b")
        cases, notes = compare(first, other)
        checkpoints["b"] = (other.name, other.digests)
    return Catalogue(cases, checkpoints, first.failed, notes)
