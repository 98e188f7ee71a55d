"""What a DICOM's header says of its pixels, checked before any of them is looked for."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom import uid
from pydicom.dataset import Dataset

from cmunet_jax.imaging import codestream
from cmunet_jax.imaging.case import UnreadableCase

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
MOST_PIXELS = 2**26  # of a frame: 8192 x 8192, four times the largest detector's
NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
# Which decoder, and which processes its codestreams may be of. Of several decoders for a syntax,
# the one that is fuzzed and mended most.
_JPEG_2000 = ("pylibjpeg", (codestream.JPEG_2000,))
_JPEG_LS = ("pyjpegls", (codestream.JPEG_LS,))
_JPEG = ("pillow", (codestream.BASELINE, codestream.EXTENDED, codestream.PROGRESSIVE))
_LOSSLESS = ("gdcm", (codestream.LOSSLESS,))
COMPRESSED: dict[str, tuple[str, tuple[int, ...]]] = {
    uid.RLELossless: ("pydicom", ()),
    uid.JPEGBaseline8Bit: _JPEG,
    uid.JPEGExtended12Bit: _JPEG,
    uid.JPEGLossless: _LOSSLESS,
    uid.JPEGLosslessSV1: _LOSSLESS,
    uid.JPEGLSLossless: _JPEG_LS,
    uid.JPEGLSNearLossless: _JPEG_LS,
    uid.JPEG2000Lossless: _JPEG_2000,
    uid.JPEG2000: _JPEG_2000,
    uid.HTJ2KLossless: _JPEG_2000,
    uid.HTJ2KLosslessRPCL: _JPEG_2000,
    uid.HTJ2K: _JPEG_2000,
}


@dataclass(frozen=True)
class Format:
    """The Image Pixel module (PS3.3 C.7.6.3), checked.

    Attributes:
      syntax: transfer syntax UID, one of NATIVE or COMPRESSED.
      frames: how many there are, > 0.
      rows: H, > 0.
      columns: W, > 0.
      samples: 1 (grey) or 3 (colour).
      planar: 0, or 1 where native colours are stored plane by plane.
      photometric: one of GREY or COLOUR.
      allocated: bits, 8 or 16.
      stored: bits, 2..allocated.
      high_bit: the highest of the stored ones, stored-1..allocated-1.
      signed: whether the stored bits are a two's complement.
    """

    syntax: str
    frames: int
    rows: int
    columns: int
    samples: int
    planar: int
    photometric: str
    allocated: int
    stored: int
    high_bit: int
    signed: bool

    @property
    def frame_bytes(self) -> int:
        """Bytes of an uncompressed frame."""
        size = self.rows * self.columns * self.samples * self.allocated // 8
        halved = self.photometric == "YBR_FULL_422" and self.syntax in NATIVE
        return size * 2 // 3 if halved else size


def number(header: Dataset, keyword: str) -> int | None:
    """Value of a header element as an integer; None where there is none, or it is not one."""
    try:
        return int(str(header.get(keyword)))
    except (ValueError, TypeError, OverflowError):
        return None


def describe(header: Dataset, syntax: str) -> Format:
    """Checks the Image Pixel module of a header.

    Raises:
      UnreadableCase: what it describes is no grey or colour frame, or absurdly large.
    """
    rows, columns = number(header, "Rows"), number(header, "Columns")
    if not rows or not columns or min(rows, columns) < 0:
        raise UnreadableCase(f"its frames have {rows or 0} rows and {columns or 0} columns")
    if rows * columns > MOST_PIXELS:
        raise UnreadableCase(f"its frames are absurdly large ({columns}x{rows})")
    frames = 1 if header.get("NumberOfFrames") is None else number(header, "NumberOfFrames")
    if frames is None or frames < 1:
        raise UnreadableCase("it has no valid number of frames")
    photometric = str(header.get("PhotometricInterpretation") or "").strip()
    samples = number(header, "SamplesPerPixel") or (1 if photometric in GREY else 3)
    if photometric not in (GREY if samples == 1 else COLOUR if samples == 3 else ()):
        raise UnreadableCase("its pixels are neither grey (MONOCHROME1 or 2) nor RGB nor YBR")
    allocated = number(header, "BitsAllocated") or 0
    stored = number(header, "BitsStored") or allocated
    high_bit = number(header, "HighBit")
    high_bit = stored - 1 if high_bit is None else high_bit
    if allocated not in (8, 16) or not 2 <= stored <= allocated:
        raise UnreadableCase(
            f"its pixels have {stored} bits in {allocated}; from 2 to 16 in 8 or 16 can be read"
        )
    if not stored - 1 <= high_bit < allocated:
        raise UnreadableCase("its header contradicts itself about the bits of a pixel")
    signed = number(header, "PixelRepresentation") == 1
    if samples == 3 and signed:
        raise UnreadableCase("its colours have a sign")
    return Format(
        syntax=syntax, frames=frames, rows=rows, columns=columns, samples=samples,
        planar=1 if number(header, "PlanarConfiguration") == 1 else 0, photometric=photometric,
        allocated=allocated, stored=stored, high_bit=high_bit, signed=signed,
    )  # fmt: skip
