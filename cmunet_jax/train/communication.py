"""What a compiled step sends between devices: counted from the program, not from intentions."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf"\b({'|'.join(KINDS)})(-start)?\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(
    r"\b(?:body|condition|calls|to_apply|\w*computations?)=\{?((?:%[\w.\-]+,? ?)+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+\w*)\[([\d,]*)\]")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Attributes:
      kind: of `KINDS`.
      arrays: what it carries, ((dtype, shape), ...): of an all-reduce and a reduce-scatter the
        arrays that are summed, of an all-gather what each device has in the end.
      group: how many devices take part.
      times: how often a step runs it (inside the loop over microbatches more than once).
      origin: where it comes from in the traced program.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    group: int
    times: int
    origin: str

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays, once."""
        return nbytes(self.arrays)

    def sent(self, group: int | None = None) -> float:
        """Bytes that each device sends, once, with ring algorithms (Thakur et al., 2005).

        Args:
          group: pretended number of devices; the actual one for None.
        """
        n = group or self.group
        share = (n - 1) / n
        return self.nbytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(
            self.kind, share
        )


def collectives(text: str, *, devices: int) -> list[Collective]:
    """Reads the collectives of an optimised HLO module, one an instruction.

    Args:
      text: `compiled.as_text()`.
      devices: of the mesh, where an instruction does not list its groups.
    """
    lines: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = match[2]
            entry = current if match[1] else entry
        elif current:
            lines.setdefault(current, []).append(line)
    times = _times(lines, entry)
    found: list[Collective] = []
    written: dict[Any, str] = {}
    for name, body in lines.items():
        for line in body:
            match = _COLLECTIVE.search(line)
            if not times[name] or not match or " = " not in line[: match.start()]:
                continue
            one = _read(line, match, times[name], devices)
            # A TPU's asynchronous one is written in each computation that it overlaps, under one
            # channel. Those of a `shard_map` share a channel, too, but lie in one computation.
            channel = _CHANNEL.search(line)
            key = (one, channel[1] if channel else line)
            if written.setdefault(key, name) == name:
                found.append(one)
    return found


def _times(lines: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs a step; a loop of unknown length counts once."""
    calls: dict[str, list[tuple[str, int]]] = {name: [] for name in lines}
    for name, body in lines.items():
        for line in body:
            trips = _TRIPS.search(line)
            for match in _CALLED.finditer(line):
                for called in re.findall(r"%([\w.\-]+)", match[1]):
                    calls[name].append((called, int(trips[1]) if trips else 1))
    times: dict[str, int] = collections.defaultdict(int)
    stack = [(entry, 1)]
    while stack:
        name, count = stack.pop()
        times[name] += count
        stack += [(called, count * trips) for called, trips in calls.get(name, [])]
    return times


def _read(line: str, match: re.Match[str], times: int, devices: int) -> Collective:
    kind, group = match[1], _group(line, devices)
    arrays = arrays_of(line[: match.start()].partition(" = ")[2])
    if match[2] and kind != "all-reduce":  # The type of a start lists operands, then results.
        arrays = arrays[1:2] if kind == "collective-permute" else arrays[len(arrays) // 2 :]
    if kind == "reduce-scatter":  # Of which the type is one part.
        arrays = [(dtype, (group, *shape)) for dtype, shape in arrays]
    origin = _OP_NAME.search(line)
    return Collective(kind, tuple(arrays), group, times, origin[1] if origin else "")


def _group(line: str, devices: int) -> int:
    """How many devices share one instance of an instruction."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'([^']+)'", match[2]))
    return devices


def arrays_of(hlo_type: str) -> list[tuple[str, tuple[int, ...]]]:
    """The arrays in an HLO type, which may be a tuple of them: (dtype, shape) each."""
    return [
        (dtype, tuple(int(n) for n in shape.split(",") if n))
        for dtype, shape in _ARRAY.findall(hlo_type)
    ]


def nbytes(arrays: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    """Bytes of arrays, given as (dtype, shape)."""
    return sum(_width(dtype) * math.prod(shape) for dtype, shape in arrays)


def _width(dtype: str) -> int:
    """Bytes an element."""
    if dtype == "pred":
        return 1
    return max(int(np.ceil(int(re.findall(r"\d+", dtype)[0]) / 8)), 1)


def of_step(compiled: Any, *, devices: int) -> list[Collective]:
    """The collectives of a compiled step (what `jitted.lower(...).compile()` returns)."""
    return collectives(compiled.as_text(), devices=devices)


def totals(found: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """{kind: {'count', 'bytes', 'sent_bytes'}} a step; the last is what each device sends."""
    table: dict[str, dict[str, float]] = {}
    for one in found:
        row = table.setdefault(one.kind, {"count": 0, "bytes": 0, "sent_bytes": 0.0})
        row["count"] += one.times
        row["bytes"] += one.times * one.nbytes
        row["sent_bytes"] += one.times * one.sent()
    return table


def predict(
    found: Iterable[Collective],
    *,
    devices: int,
    bytes_per_second: float,
    seconds_per_hop: float,
) -> float:
    """Seconds a step spends on communication that nothing hides, with each device's images kept.

    So what is gathered by example (the keys of a contrast) grows with the devices; sums do not.

    Args:
      found: counted on any number of devices.
      devices: to predict for.
      bytes_per_second: that a device sends at.
      seconds_per_hop: latency of a message; one takes log2(devices) hops along a tree, which is
        what libraries use for small ones, and a sum takes them twice, there and back.
    """
    seconds = 0.0
    for one in found:
        grown = devices / one.group if _is_batch(one) else 1.0
        hops = math.ceil(math.log2(devices)) * (2 if one.kind == "all-reduce" else 1)
        once = grown * one.sent(devices) / bytes_per_second + hops * seconds_per_hop
        seconds += one.times * once
    return seconds


def _is_batch(one: Collective) -> bool:
    """Whether an all-gather brings rows of examples; weights are gathered by their layout."""
    return one.kind == "all-gather" and "sharding_constraint" not in one.origin


def describe(found: Iterable[Collective]) -> str:
    """One line: '3 all-gather (0.01 MB), 96 all-reduce (125 MB)'."""
    parts = [
        f"{row['count']:,.0f} {kind} ({row['bytes'] / 1e6:,.3g} MB)"
        for kind, row in sorted(totals(found).items())
    ]
    return ", ".join(parts) or "nothing"
