"""Checks a quantitative analysis before the page draws it: known keys, finite numbers, bounds."""

from __future__ import annotations

import json
import math
from typing import Any

from cmunet_jax.viewer.catalogue import sendable
from cmunet_jax.viewer.confined import Unreadable

MAX_BYTES = 2**25
_MAX_SEGMENTS, _MAX_POINTS = 2000, 100_000
_LINES = ("position", "diameter", "reference")
_CONTOURS = ("mask", "probability")
_NUMBERS = (
    "length_px",
    "length_mm",
    "minimal_diameter_px",
    "minimal_diameter_mm",
    "reference_at_minimum_px",
    "percent_diameter_stenosis",
)


def parse(data: bytes) -> dict[str, Any]:
    """The content of a qca JSON, format 1, reduced to what the page uses.

    Raises:
      Unreadable: no such JSON, or a value of it is no finite number.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _no_analysis(error) from None
    return reduced(content)


def reduced(content: Any) -> dict[str, Any]:
    """The same of content that is parsed already.

    Raises:
      Unreadable: as `parse`.
    """
    try:
        if content["format"] != 1:
            raise Unreadable(
                f"a diameter analysis of format {content['format']!r}; 1 is understood"
            )
        spacing = content["spacing_mm"]
        segments = content["segments"]
        if len(segments) > _MAX_SEGMENTS:
            raise Unreadable(f"a diameter analysis of {len(segments)} segments")
        spacing = None if spacing is None else [_number(v) for v in spacing][:2]
        contour = content.get("contour")
        return {
            "spacing_mm": spacing,
            # Files of before there were two have none.
            "contour": contour if contour in _CONTOURS else None,
            "length_px": _optional(content["length_px"]),
            "length_mm": _optional(content["length_mm"]),
            "bifurcations": [_point(p) for p in content["bifurcations"][:_MAX_POINTS]],
            "segments": [_segment(segment, spacing) for segment in segments if segment["points"]],
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise _no_analysis(error) from None


def _no_analysis(error: Exception) -> Unreadable:
    return Unreadable(f"no diameter analysis ({type(error).__name__}: {error})"[:200])


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("a value is no finite number")
    return value


def _optional(value: Any) -> float | None:
    return None if value is None else _number(value)


def _point(value: Any) -> list[float]:
    row, column = value
    return [_number(row), _number(column)]


def _line(segment: Any, key: str, count: int) -> list[float | None]:
    """Numbers along a segment; null, or an empty list, where nothing was measured."""
    values = segment.get(key) or [None] * count
    if len(values) != count:
        raise ValueError("lists of unequal length")
    return [_optional(v) for v in values]


def _segment(segment: Any, spacing: list[float] | None) -> dict[str, Any]:
    points = [_point(p) for p in segment["points"][: _MAX_POINTS + 1]]
    if len(points) > _MAX_POINTS:
        raise ValueError("a segment of too many points")
    lines = {f"{key}_px": _line(segment, f"{key}_px", len(points)) for key in _LINES}
    if spacing is not None:
        # Where the file has no millimetres of its own: exact for the square pixels of detectors.
        mean = sum(spacing) / len(spacing)
        for key in _LINES:
            scaled = [None if v is None else v * mean for v in lines[f"{key}_px"]]
            exact = _line(segment, f"{key}_mm", len(points))
            lines[f"{key}_mm"] = scaled if all(v is None for v in exact) else exact
    places = {key: segment.get(key) for key in ("minimal_at", "stenosis_at")}
    for at in places.values():
        if at is not None and not (isinstance(at, int) and 0 <= at < len(points)):
            raise ValueError("a place is outside its segment")
    why = segment["why_no_stenosis"]
    return {
        "id": int(_number(segment["id"])),
        "points": points,
        **lines,
        **places,
        **{key: _optional(segment[key]) for key in _NUMBERS},
        "why_no_stenosis": None if why is None else sendable(str(why)[:300]),
    }
