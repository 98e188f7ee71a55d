"""Counts the pages of a TIFF by its chain of directories, which libtiff reads on as far as it goes.

OpenCV says of a file whose chain is broken only how many pages come before the break.
"""

from __future__ import annotations

import pathlib
import struct
from typing import BinaryIO

from cmunet_jax.imaging.case import UnreadableCase

MOST_PAGES = 65_535
_ORDERS = {b"II": "<", b"MM": ">"}


def count_pages(path: pathlib.Path) -> int | None:
    """How many pages a classic TIFF or a BigTIFF has; None where it does not begin as one.

    Raises:
      UnreadableCase: the chain leaves the file, runs in a circle or does not end.
      OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        order = _ORDERS.get(start[:2])
        if order is None or len(start) < 8:
            return None
        version = struct.unpack_from(f"{order}H", start, 2)[0]
        if version == 42:  # counts of 2 bytes, entries of 12, offsets of 4
            file.seek(4)
            return _walk(file, f"{order}H", 12, f"{order}I")
        if version == 43:
            return _walk(file, f"{order}Q", 20, f"{order}Q")
    return None


def _walk(file: BinaryIO, count: str, entry: int, offset: str) -> int:
    """Follows the chain whose first offset comes next in the file."""
    at = _number(file, offset, 1)
    seen: set[int] = set()
    while at:
        if at in seen:
            raise UnreadableCase("corrupt (its pages run in a circle)")
        if len(seen) == MOST_PAGES:
            raise UnreadableCase(f"it has more than {MOST_PAGES} pages: split it")
        seen.add(at)
        end = file.seek(0, 2)
        if at >= end:
            raise _truncated(len(seen))
        file.seek(at)
        entries = _number(file, count, len(seen))
        after = at + struct.calcsize(count) + entries * entry
        if after >= end:
            raise _truncated(len(seen))
        file.seek(after)
        at = _number(file, offset, len(seen))
    return len(seen)


def _number(file: BinaryIO, form: str, page: int) -> int:
    data = file.read(struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise _truncated(page)
    return int(struct.unpack(form, data)[0])


def _truncated(page: int) -> UnreadableCase:
    return UnreadableCase(f"truncated (the directory of page {page} lies outside the file)")
