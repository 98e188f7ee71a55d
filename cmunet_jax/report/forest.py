"""Forest plots: differences and their intervals on one scale, in the rows of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cmunet_jax.report.blocks import p_text, shown, shown_difference
from cmunet_jax.report.charts import Look
from cmunet_jax.report.findings import signed
from cmunet_jax.report.sections import Value
from cmunet_jax.report.study import Difference, PairedTest, Study, Variant, fewest_first


@dataclass(frozen=True)
class Forest:
    """Rows of differences on one scale; positions are in percent of the width of the plot."""

    rows: list[ForestRow]
    zero: float
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class ForestRow:
    """One difference.

    Attributes:
      look: of the method.
      labels: label count.
      name: of the variant, or ''.
      changed: config entries of a variant.
      base: mean of what it is compared with; None for comparisons to scratch.
      varied: mean of the variant.
      value: the difference.
      p: Holm-corrected p over images, and over patients, as text.
      test: the comparison.
      left: of the interval, in percent.
      right: of the interval, distance from the right edge in percent.
      dot: of the difference.
    """

    look: Look
    labels: int
    name: str
    changed: tuple[str, ...]
    base: Value | None
    varied: Value | None
    value: Value
    p: tuple[str, str]
    test: PairedTest
    left: float
    right: float
    dot: float


def make(
    study: Study, found: Sequence[Difference | Variant], looks: Mapping[str, Look]
) -> Forest | None:
    """Puts comparisons of the primary metric on one scale; None without any."""
    shown_rows = [row for row in found if math.isfinite(row.test.difference.value)]
    if not shown_rows:
        return None
    # By label count: which method helps with few labels is read down a column. The sort is stable.
    shown_rows.sort(key=lambda row: fewest_first(row.labels))
    numbers = [row.test.difference for row in shown_rows]
    reach = [end for n in numbers for end in (n.low, n.high, n.value) if math.isfinite(end)]
    low, high = min(0.0, *reach), max(0.0, *reach)
    margin = 0.06 * max(high - low, 0.02)
    low, high = low - margin, high + margin

    def at(value: float) -> float:
        return 100 * (value - low) / (high - low)

    rows = [_forest_row(study, row, looks[row.method], at) for row in shown_rows]
    ticks = nice_ticks(low, high)
    step = min((b - a for a, b in zip(ticks, ticks[1:])), default=0.01)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return Forest(rows, at(0.0), [(at(tick), signed(tick, places)) for tick in ticks])


def _forest_row(
    study: Study, row: Difference | Variant, look: Look, at: Callable[[float], float]
) -> ForestRow:
    number = row.test.difference
    low = number.low if number.has_interval else number.value
    high = number.high if number.has_interval else number.value
    variant = row if isinstance(row, Variant) else None
    return ForestRow(
        look,
        row.labels,
        variant.name if variant else "",
        variant.changed if variant else (),
        shown(study, variant.base) if variant else None,
        shown(study, variant.varied) if variant else None,
        shown_difference(study, row.test),
        (p_text(row.test.p_images_holm), p_text(row.test.p_patients_holm)),
        row.test,
        at(low),
        100 - at(high),
        at(number.value),
    )


def nice_ticks(low: float, high: float, most: int = 4) -> list[float]:
    """At most `most` + 1 round numbers within [low, high], zero among them if it lies there."""
    width = max(high - low, 1e-9) / most
    power = 10.0 ** math.floor(math.log10(width))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= width * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]
