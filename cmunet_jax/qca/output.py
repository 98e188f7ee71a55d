"""An analysis as JSON and as CSV; what was not measured is null, or an empty cell."""

from __future__ import annotations

import csv
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cmunet_jax.qca.result import Analysis, Floats, Segment

FORMAT = 1
_DIGITS = 4
_POINT = ("segment", "position_px", "row", "column", "diameter_px", "reference_px")
_POINT_MM = ("position_mm", "diameter_mm", "reference_mm")
_SUMMARY = (
    "id",
    "length_px",
    "length_mm",
    "minimal_diameter_px",
    "minimal_diameter_mm",
    "minimal_row",
    "minimal_column",
    "reference_at_minimum_px",
    "percent_diameter_stenosis",
    "stenosis_row",
    "stenosis_column",
    "why_no_stenosis",
)


def to_json(analysis: Analysis) -> dict[str, Any]:
    """The analysis in plain lists and numbers, as `json.dumps(..., allow_nan=False)` takes it.

    Returns:
        format: 1.
        contour: "probability" where the contour of the mask was measured between its pixels, as the
            probability says, or "mask" where that of its pixels was.
        spacing_mm: [rows, columns] or null; without it all that ends in _mm is null.
        length_px, length_mm: sum over the segments, each from bifurcation to bifurcation or end.
        bifurcations: [[row, column], …] px.
        minimal_diameter_px, minimal_diameter_mm: the least of the segments whose measured part is
            3 diameters long (`Options.least_length`), or null.
        minimal_segment: id of the segment that has it, or null.
        ignored_components: parts of the mask too short for their width, or too wide, for a vessel.
        segments: `segment_json` of each, the longest first.
    """
    segments = [segment_json(s) for s in analysis.segments]
    least = next((s for s in segments if s["id"] == analysis.minimal), None)
    spaced = analysis.spacing_mm is not None
    return {
        "format": FORMAT,
        "contour": analysis.contour,
        "spacing_mm": list(analysis.spacing_mm) if analysis.spacing_mm else None,
        "length_px": round(sum(s["length_px"] for s in segments), _DIGITS),
        "length_mm": round(sum(s["length_mm"] for s in segments), _DIGITS) if spaced else None,
        "bifurcations": _numbers(analysis.bifurcations),
        "minimal_diameter_px": least["minimal_diameter_px"] if least else None,
        "minimal_diameter_mm": least["minimal_diameter_mm"] if least else None,
        "minimal_segment": analysis.minimal,
        "ignored_components": analysis.ignored,
        "segments": segments,
    }


def segment_json(segment: Segment) -> dict[str, Any]:
    """One segment: the arrays and indices of `Segment`, and what they say at the minimum."""
    at = segment.minimal_at
    return {
        "id": segment.id,
        "points": _numbers(segment.points),
        "position_px": _numbers(segment.position_px),
        "diameter_px": _numbers(segment.diameter_px),
        "reference_px": _numbers(segment.reference_px),
        "position_mm": _numbers(segment.position_mm),
        "diameter_mm": _numbers(segment.diameter_mm),
        "reference_mm": _numbers(segment.reference_mm),
        "length_px": _at(segment.position_px, -1),
        "length_mm": _at(segment.position_mm, -1),
        "minimal_diameter_px": _at(segment.diameter_px, at),
        "minimal_diameter_mm": _at(segment.diameter_mm, at),
        "minimal_at": at,
        "reference_at_minimum_px": _at(segment.reference_px, at),
        "stenosis_at": segment.stenosis_at,
        "percent_diameter_stenosis": _number(segment.percent_diameter_stenosis),
        "why_no_stenosis": segment.why_no_stenosis,
    }


def write_csv(analysis: Analysis, path: str | os.PathLike[str]) -> None:
    """Writes one row a point to `path`, and one row a segment beside it to `*_segments.csv`.

    Args:
        analysis: what to write.
        path: ends in .csv; its folder exists.
    """
    path = pathlib.Path(path)
    _write(path, (*_POINT, *_POINT_MM), _points(analysis))
    _write(path.with_name(f"{path.stem}_segments.csv"), _SUMMARY, _segments(analysis))


def _points(analysis: Analysis) -> Iterator[list[Any]]:
    for s in analysis.segments:
        columns = [s.position_px, *s.points.T, s.diameter_px, s.reference_px]
        columns += [s.position_mm, s.diameter_mm, s.reference_mm]
        cells = [_numbers(c) or [None] * len(s.points) for c in columns]
        yield from ([s.id, *row] for row in zip(*cells))


def _segments(analysis: Analysis) -> Iterator[list[Any]]:
    for s in analysis.segments:
        row = segment_json(s)
        for name, at in (("minimal", s.minimal_at), ("stenosis", s.stenosis_at)):
            place = (None, None) if at is None else row["points"][at]
            row[f"{name}_row"], row[f"{name}_column"] = place
        yield [row[name] for name in _SUMMARY]


def _write(path: pathlib.Path, header: Sequence[str], rows: Iterator[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _at(values: Floats | None, index: int | None) -> float | None:
    return None if values is None or index is None else _number(float(values[index]))


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, _DIGITS)


def _numbers(values: Floats | None) -> Any:
    """Nested lists of rounded numbers with null for NaN; None for None."""
    if values is None:
        return None
    if values.ndim == 2:
        return np.round(values, _DIGITS).tolist()
    return [_number(x) for x in values.tolist()]
