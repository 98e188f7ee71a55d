"""The paper's own table, to stand beside ours: other images, another scale, another protocol."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from cmunet_jax.report.study.measures import Cell, Drop, Number
from cmunet_jax.report.study.model import PaperRow, PaperTable, Sweep

SOURCE = "arXiv 2507.17779 (CM-UNet, EMBC 2025), table of Dice by label fraction"
NOTE = (
    "Recomputed from the authors' own logs: Dice in percent, the best learning rate of each cell, "
    "one draw and one seed, selected on the test set."
)
WARNING = (
    "Another data set: the paper's numbers are from FAME2, a private multi-centre set of about "
    "1,700 to 1,800 images, ours from {data}. The two halves differ in images, protocol and "
    "scale and must not be compared cell by cell; only how methods rank within a half may be."
)
_ORDER = ("scratch", "mae", "genesis", "moco", "spark", "cmunet")
# Label fraction, about how many images that is of 1,700 to 1,800, and Dice in percent by method.
# The paper names 18 and about 500; the others follow from the size of the set.
TABLE: tuple[tuple[str, int, tuple[float, ...]], ...] = (
    ("30 % (~500)", 500, (70.8, 70.5, 70.9, 71.0, 70.5, 73.8)),
    ("20 % (~350)", 350, (69.4, 70.0, 70.0, 71.0, 69.4, 72.0)),
    ("10 % (~175)", 175, (66.4, 66.9, 67.8, 68.5, 66.5, 70.3)),
    ("5 % (~90)", 90, (63.7, 61.8, 64.1, 64.7, 63.2, 68.4)),
    ("1 % (18)", 18, (37.6, 55.7, 52.5, 55.6, 52.1, 62.7)),
)
DROPS = (46.9, 21.0, 25.9, 21.8, 26.1, 15.0)
# Label counts within this factor of the paper's stand in its row.
_NEAR = 1.25


def beside(sweep: Sweep, cells: Iterable[Cell], drops: Iterable[Drop]) -> PaperTable:
    """The paper's table beside the cells of one sweep."""

    def true(labels: int) -> int:
        return labels or sweep.everything

    own = [cell for cell in cells if cell.sweep == sweep.label]
    counts = {true(cell.labels) for cell in own} - {0}
    rows = []
    for text, about, values in TABLE:
        near = [n for n in counts if _is_near(n, about)]
        labels = min(near, key=lambda n: (abs(math.log(n / about)), n), default=0)
        ours = {cell.method: cell.primary for cell in own if labels and true(cell.labels) == labels}
        rows.append(PaperRow(text, labels, _fractions(values), ours))
    lost: Mapping[str, Number] = {
        d.method: d.drop
        for d in drops
        if d.sweep == sweep.label
        and _is_near(true(d.most), TABLE[0][1])
        and _is_near(true(d.least), TABLE[-1][1])
    }
    drop = PaperRow("relative drop, 30 % to 1 %", 0, _fractions(DROPS), lost)
    unmatched = ""
    if not any(row.ours for row in rows):
        named = ", ".join(map(str, sorted(counts))) or "not known"
        unmatched = (
            f"None of our label counts ({named}) is within a factor of {_NEAR:g} of one of the "
            "paper's, so nothing of ours stands beside its numbers."
        )
    warning = WARNING.format(data=sweep.data.get("name"))
    return PaperTable(sweep.label, tuple(rows), drop, SOURCE, NOTE, warning, unmatched)


def _is_near(labels: int, about: int) -> bool:
    return labels > 0 and max(labels / about, about / labels) <= _NEAR


def _fractions(values: Iterable[float]) -> dict[str, float]:
    return {method: round(value / 100, 4) for method, value in zip(_ORDER, values)}
