"""What a compressed frame says of itself, before a decoder reserves memory for it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cmunet_jax.imaging.case import UnreadableCase

# Start-of-frame markers (ISO/IEC 10918-1, table B.1; 14495-1 for F7), without DHT, JPG and DAC.
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
_ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a length
BASELINE, EXTENDED, PROGRESSIVE, LOSSLESS, JPEG_LS = 0xC0, 0xC1, 0xC2, 0xC3, 0xF7
JPEG_2000 = 0x51
_J2K_START = b"\xff\x4f\xff\x51"


@dataclass(frozen=True)
class Codestream:
    """The head of a JPEG, JPEG-LS or JPEG 2000 image.

    Attributes:
      process: marker that names the process: BASELINE, …, JPEG_LS or JPEG_2000.
      height: in pixels.
      width: in pixels.
      components: 1 for grey, 3 for colour.
      precision: bits of a sample.
    """

    process: int
    height: int
    width: int
    components: int
    precision: int


def head(data: bytes) -> Codestream:
    """Reads the head of a compressed frame.

    Raises:
      UnreadableCase: it is none of the three, or ends before it says.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        # Some writers wrap the codestream in a JP2 file, against the standard.
        if (at := data.find(_J2K_START, 0, 512)) >= 0:
            return _jpeg_2000(data, at + len(_J2K_START))
    except (struct.error, IndexError):
        raise UnreadableCase("a compressed frame ends within its head") from None
    raise UnreadableCase("a compressed frame is not what its transfer syntax says")


def _jpeg(data: bytes) -> Codestream:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise UnreadableCase("the head of a compressed frame is corrupt")
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes may precede a marker
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in _FRAMES:
            precision, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            return Codestream(marker, height, width, components, precision)
        else:
            at += 2 + max(struct.unpack_from(">H", data, at + 2)[0], 2)


def _jpeg_2000(data: bytes, at: int) -> Codestream:
    """SIZ (ISO/IEC 15444-1, A.5.1), from behind its marker."""
    width, height, left, top = struct.unpack_from(">4I", data, at + 4)
    components, depth = struct.unpack_from(">HB", data, at + 36)
    return Codestream(JPEG_2000, height - top, width - left, components, (depth & 0x7F) + 1)
