"""Rows as one table for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from cmunet_jax.benchmark.cost import Ceilings
from cmunet_jax.benchmark.rows import Row

COLUMNS = (
    "what", "median", "quartiles", "min–max", "n", "images/s", "memory", "GFLOP/s", "GB/s",
    "roofline",
)  # fmt: skip


_UNITS = {"s": (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)), "%": (("%", 0.01),), "×": (("×", 1.0),)}


def amount(*values: float, unit: str) -> str:
    """'1.23 s', '45.6 ms', or with two values '1.23–4.56 s': one scale, that of the largest."""
    name, scale = next(((n, s) for n, s in _UNITS[unit] if max(values) >= s), _UNITS[unit][-1])
    return "–".join(_digits(value / scale) for value in values) + f" {name}"


def _digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.{1 if abs(value) >= 10 else 2}f}"


def bytes_of(value: float) -> str:
    """'1.5 GB', '23 MB' (powers of 1000)."""
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def cells(row: Row, ceilings: Ceilings) -> list[str]:
    """The row under `COLUMNS`; what does not apply is left empty."""
    found = row.spread
    if found is None:
        return [row.what, "failed"]
    rates = row.derived(ceilings)

    def rate(name: str, scale: float, digits: int) -> str:
        return f"{rates[name] / scale:,.{digits}f}" if name in rates else ""

    memory = row.memory
    return [
        row.what,
        amount(found.median, unit=row.unit),
        amount(found.q1, found.q3, unit=row.unit),
        amount(found.low, found.high, unit=row.unit),
        str(found.n),
        rate("images_per_second", 1, 1),
        f"{bytes_of(memory[0])} {memory[1]}" if memory else "",
        rate("flops_per_second", 1e9, 1),
        rate("bytes_per_second", 1e9, 2),
        f"{100 * rates['roofline_fraction']:.0f} %" if "roofline_fraction" in rates else "",
    ]


def show(rows: Iterable[Row], ceilings: Ceilings, *, title: str, notes: Iterable[str]) -> None:
    """Prints the table, then failures and notes a line each, which no column has room for."""
    table = Table(title=title)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "what" else "right", no_wrap=True)
    rows, previous = list(rows), None
    for row in rows:
        if previous not in (None, row.case):
            table.add_section()
        previous = row.case
        table.add_row(*cells(row, ceilings))
    # As wide as its content: a cut number is none, and a pipe has no width of its own.
    wide = Console(width=1000)
    needed = Measurement.get(wide, wide.options, table).maximum
    console = Console(width=max(Console().width, needed))
    console.print(table)
    for row in rows:
        if row.error:
            console.print(f"failed: {row.what}: {row.error}", markup=False, highlight=False)
    for line in [*notes, *dict.fromkeys(f"{row.what}: {row.note}" for row in rows if row.note)]:
        console.print(line, markup=False, highlight=False)
