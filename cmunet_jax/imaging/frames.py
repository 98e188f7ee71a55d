"""Where each frame of a DICOM's pixel data lies, found without reading any."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom import uid

from cmunet_jax.imaging.case import UnreadableCase
from cmunet_jax.imaging.pixel_format import NATIVE, Format
from cmunet_jax.imaging.unpacked import Window

MOST_FRAGMENTS = 2**20
UNDEFINED = 0xFFFFFFFF
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
Pieces = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Frames:
    """The frames of a file.

    Attributes:
      form: what they are like.
      pieces: for each frame the (offset, length) of what it consists of, in order.
      swapped_from: where the 16-bit words begin in which a big-endian file holds 8-bit samples,
        with their bytes exchanged; None where none are.
    """

    form: Format
    pieces: list[Pieces]
    swapped_from: int | None


def locate(window: Window, form: Format, offsets: bytes) -> Frames:
    """Finds every frame without reading any; `window` is at the pixel data element.

    Args:
      window: the file.
      form: what the header says of the frames.
      offsets: value of the Extended Offset Table, or b"".

    Raises:
      UnreadableCase: there is less than the header says.
    """
    native, big = form.syntax in NATIVE, form.syntax == uid.ExplicitVRBigEndian
    head = window.read(8)
    # Some writers leave out the VR under explicit syntaxes, and the other way round.
    explicit = head[4:6] in (b"OB", b"OW")
    length = int.from_bytes(window.read(4) if explicit else head[4:], "big" if big else "little")
    if native == (length == UNDEFINED):
        is_not = "" if native else " not"
        raise UnreadableCase(f"its pixel data is{is_not} compressed, against its transfer syntax")
    if not native:
        return Frames(form, _fragments(window, form, offsets), None)
    start, size = window.tell(), form.frame_bytes
    if start + length > window.size:
        raise UnreadableCase("truncated: the file ends within the pixel data")
    if length < form.frames * size:
        raise UnreadableCase(
            f"its header says {form.frames} frames, but its pixel data holds {length // size}"
        )
    swapped = big and form.allocated == 8 and head[4:6] == b"OW"
    pieces: list[Pieces] = [((start + index * size, size),) for index in range(form.frames)]
    return Frames(form, pieces, start if swapped else None)


def _fragments(window: Window, form: Format, extended: bytes) -> list[Pieces]:
    """Frames of encapsulated pixel data (PS3.5 A.4): a table of offsets, then fragments."""
    items: list[tuple[int, int]] = []
    while len(items) <= MOST_FRAGMENTS:
        head = window.read(8)
        if head[:4] != _ITEM:
            break
        length = int.from_bytes(head[4:], "little")
        items.append((window.tell(), length))
        if window.seek(length, 1) > window.size:
            raise UnreadableCase("truncated: the file ends within the pixel data")
    else:
        raise UnreadableCase("its pixel data consists of absurdly many pieces")
    complete = head[:4] == _END
    table, pieces = (items[0], items[1:]) if items else ((0, 0), [])
    window.seek(table[0])
    basic = window.read(min(table[1], 4 * len(pieces) + 4))
    starts = [at - pieces[0][0] for at, _ in pieces]
    for values in (
        [value for (value,) in struct.iter_unpack("<Q", extended[: len(extended) // 8 * 8])],
        [value for (value,) in struct.iter_unpack("<L", basic[: len(basic) // 4 * 4])],
    ):
        if frames := _by_table(values, starts, pieces, form.frames):
            return frames
    if form.frames == 1 and pieces:
        return [tuple(pieces)]
    if len(pieces) == form.frames or form.syntax == uid.RLELossless:
        found: list[Pieces] = [(piece,) for piece in pieces]
    else:
        found = _by_markers(window, pieces)
    # A run may hold more frames than its header says, which some tools then show; not fewer.
    if len(found) >= form.frames:
        return found[: form.frames]
    if not complete and len(pieces) < form.frames:
        raise UnreadableCase("truncated: the file ends within the pixel data")
    raise UnreadableCase(
        f"its header says {form.frames} frames, but its pixel data holds "
        f"{len(found) or len(pieces)}"
    )


def _by_table(
    values: list[int], starts: list[int], pieces: list[tuple[int, int]], frames: int
) -> list[Pieces]:
    """Frames by their offsets; none where the table does not fit, as some writers' do not."""
    index = {start: number for number, start in enumerate(starts)}
    if (
        not frames <= len(values) <= len(pieces)
        or values[0] != 0
        or any(value not in index for value in values)
    ):
        return []
    if any(a >= b for a, b in zip(values, values[1:])):
        return []
    bounds = [*(index[value] for value in values), len(pieces)]
    return [tuple(pieces[a:b]) for a, b in zip(bounds, bounds[1:])][:frames]


def _by_markers(window: Window, pieces: list[tuple[int, int]]) -> list[Pieces]:
    """Frames that end where a fragment ends with the end-of-image marker of the JPEG family."""
    frames: list[Pieces] = []
    frame: list[tuple[int, int]] = []
    for at, length in pieces:
        frame.append((at, length))
        window.seek(at + max(length - 10, 0))
        if b"\xff\xd9" in window.read(min(length, 10)):
            frames.append(tuple(frame))
            frame = []
    return frames
