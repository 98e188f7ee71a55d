"""A DICOM run of X-ray frames as a case: `open_dicom`.

No element that names a patient, a place or a time is read here, and no text of another library
reaches a message: see docs/dicom.md, which says what is read and what is refused.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import logging
import math
import os
import pathlib
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.valuerep import VR

from cmunet_jax.imaging import decode, frames
from cmunet_jax.imaging.case import Case, Spacing, UnreadableCase
from cmunet_jax.imaging.pixel_format import COMPRESSED, NATIVE, describe
from cmunet_jax.imaging.unpacked import GZIP, PREAMBLE, PREFIX, Unpacked, Window, reasons

SUFFIXES = (".dcm", ".dicom", ".dcm.gz", ".dicom.gz")
# What holds frames of an X-ray run, or a screen's copy of one.
READABLE = (
    uid.XRayAngiographicImageStorage,
    uid.EnhancedXAImageStorage,
    uid.XRayRadiofluoroscopicImageStorage,
    uid.EnhancedXRFImageStorage,
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
)
# Where there is no SOP class, as in files without the meta information of PS3.10.
MODALITIES = ("XA", "RF")
_PIXELS = (0x7FE00010, 0x7FE00008, 0x7FE00009)  # integer, float, double
_KEYWORDS = (
    "SOPClassUID Modality BurnedInAnnotation "
    "Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation PlanarConfiguration "
    "BitsAllocated BitsStored HighBit PixelRepresentation ExtendedOffsetTable "
    "PixelSpacing PixelSpacingCalibrationType ImagerPixelSpacing "
    "EstimatedRadiographicMagnificationFactor SharedFunctionalGroupsSequence"
).split()
_VIDEO = ("MPEG", "HEVC", "JPEG XS", "SMPTE")
LEAST_MM, MOST_MM = 0.001, 10.0


def is_dicom(path: pathlib.Path) -> bool:
    """Whether a file is for `open_dicom`: by its suffix, or else by how it begins, gzipped or not.

    A DICOMDIR, the index of a disc beside the images, is none. Nothing is raised: what cannot be
    read is judged by its suffix.
    """
    if path.name.lower() == "dicomdir" or (path.exists() and not path.is_file()):
        return False
    if path.name.lower().endswith(SUFFIXES):
        return True
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == GZIP
        with gzip.open(path) if zipped else open(path, "rb") as content:
            start = content.read(PREAMBLE + 4)
    except (OSError, EOFError, zlib.error):
        return False
    return start[PREAMBLE:] == PREFIX or _begins_with_element(start)


def _begins_with_element(start: bytes) -> bool:
    """Whether bytes begin as a data set without preamble does: with group 0002 or 0008."""
    if len(start) < 12:
        return False
    explicit = start[4:6].decode("latin-1") in {vr.value for vr in VR}
    group, element, length = struct.unpack("<HHL", start[:8])
    small = element <= 0x18 and length <= 64  # a group length, character set, type or UID
    return (group in (2, 8) and (explicit or small)) or (group in (0x200, 0x800) and explicit)


def open_dicom(path: pathlib.Path, *, opener: Callable[[], int] | None = None) -> Case:
    """Opens a DICOM file of X-ray frames; no frame is decoded until it is read.

    Args:
      path: a file, gzipped or not, with or without preamble.
      opener: as of `Unpacked`.

    Returns:
      The case. Its `id` is made from the digest of the file.

    Raises:
      UnreadableCase: with the reason, which quotes nothing from inside the file but its numbers of
        rows, columns, frames and bits, the registered name of its kind, and its transfer syntax.
    """
    silence()
    source = Unpacked(path, opener)
    with reasons(), os.fdopen(source.descriptor(), "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    with source.open() as (window, meta):
        header, syntax = _read_header(window, meta)
        form = describe(header, syntax)
        offsets = header.get("ExtendedOffsetTable") or b""
        located = frames.locate(window, form, offsets)
        spacing = _spacing(header)
        burned_in = str(header.get("BurnedInAnnotation") or "").strip().upper() == "YES"
    source.release()  # a folder may hold thousands of packed runs
    return Case(
        id=f"dicom-{sha256[:12]}",
        path=path,
        kind="dicom",
        sha256=sha256,
        frames=form.frames,
        height=form.rows,
        width=form.columns,
        spacing=spacing,
        burned_in=burned_in,
        read=functools.partial(_read, source, located),
    )


def _read(source: Unpacked, located: frames.Frames, index: int) -> NDArray[np.generic]:
    count = located.form.frames
    if not 0 <= index < count:
        raise IndexError(f"frame {index} of {count}")
    silence()
    with source.open() as (window, _):
        grey = decode.read(window, located, index)
    if index == count - 1:  # runs are read in order, so that this is mostly the end
        source.release()
    return grey


def silence() -> None:
    """Keeps what pydicom and highdicom warn of off the screen: it may quote a patient's."""
    known = {getattr(module, "pattern", None) for _, _, _, module, _ in warnings.filters}
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).propagate = False
        if name not in known:  # each change of the filters lets other warnings appear once more
            warnings.filterwarnings("ignore", module=name)


def _read_header(window: Window, meta: Dataset) -> tuple[Dataset, str]:
    """The elements of _KEYWORDS, and the transfer syntax; `window` is left at the pixel data."""
    syntax = transfer_syntax(window, meta)
    implicit = syntax == uid.ImplicitVRLittleEndian
    header = read_dataset(
        window,  # type: ignore[arg-type]  # it has what pydicom uses of a file
        is_implicit_VR=implicit,
        is_little_endian=syntax != uid.ExplicitVRBigEndian,
        stop_when=lambda tag, vr, length: tag in _PIXELS,
        specific_tags=[tag for word in _KEYWORDS if (tag := tag_for_keyword(word)) is not None],
    )
    _check_kind(window, meta, header)
    at = window.tell()
    first = window.read(4)
    window.seek(at)
    if len(first) < 4:
        raise UnreadableCase(
            "truncated: the file ends within the header" if window.short else "it has no pixel data"
        )
    order = ">HH" if syntax == uid.ExplicitVRBigEndian else "<HH"
    group, element = struct.unpack(order, first)
    if group << 16 | element != _PIXELS[0]:
        raise UnreadableCase("its pixels are floating-point numbers")
    if syntax not in (*NATIVE, *COMPRESSED):
        raise UnreadableCase(_unsupported(syntax))
    return header, syntax


def _check_kind(window: Window, meta: Dataset, header: Dataset) -> None:
    kind = uid.UID(str(header.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or ""))
    if kind in READABLE or (not kind and header.get("Modality") in MODALITIES):
        return
    if not kind:
        raise UnreadableCase("truncated or no DICOM" if window.short else "no DICOM of an image")
    # Only registered UIDs have a name; that of any other is the number itself.
    name = f"'{kind.name}'" if kind.name != kind and not kind.is_private else "an unknown kind"
    raise UnreadableCase(f"it is of {name}, not an X-ray angiogram")


def transfer_syntax(window: Window, meta: Dataset) -> uid.UID:
    """What the meta information says, else a guess from the first element at `window`."""
    if declared := meta.get("TransferSyntaxUID"):
        return uid.UID(str(declared))
    at = window.tell()
    start = window.read(8)
    window.seek(at)
    if start[4:6].decode("latin-1") not in {vr.value for vr in VR}:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRBigEndian if start[:1] == b"\0" else uid.ExplicitVRLittleEndian


def _unsupported(syntax: uid.UID) -> str:
    name = syntax.name if syntax.name != syntax and not syntax.is_private else ""
    if any(word in name for word in _VIDEO):
        return f"a video inside a DICOM ({name}): export its frames as an uncompressed run"
    if not name:  # text in its place, which may say anything, is not repeated
        name = str(syntax) if syntax.is_valid else "unknown"
    return f"its transfer syntax is not supported ({name}): decompress it first"


def _spacing(header: Dataset) -> Spacing | None:
    """PS3.3 10.7.1.3 for calibrated spacing, C.8.7.3 (X-Ray Acquisition) for the detector's."""
    shared = _item(header, "SharedFunctionalGroupsSequence")
    properties = _item(shared, "FramePixelDataPropertiesSequence")
    imager = _pair(header, "ImagerPixelSpacing") or _pair(properties, "ImagerPixelSpacing")
    pixel = (
        _pair(header, "PixelSpacing")
        or _pair(_item(shared, "PixelMeasuresSequence"), "PixelSpacing")
        or _pair(
            _item(shared, "ProjectionPixelCalibrationSequence"), "ObjectPixelSpacingInCenterOfBeam"
        )
    )
    # Equal values without a calibration mean that the spacing is the detector's, copied.
    if pixel and (pixel != imager or header.get("PixelSpacingCalibrationType")):
        return Spacing(*pixel, source="pixel spacing")
    if not imager:
        return None
    (factor,) = _numbers(header, "EstimatedRadiographicMagnificationFactor") or (math.nan,)
    if not 1 <= factor <= 10:
        return Spacing(*imager, source="imager pixel spacing")
    rows, columns = imager
    return Spacing(rows / factor, columns / factor, source="imager pixel spacing, corrected")


def _item(header: Dataset | None, keyword: str) -> Dataset | None:
    """First item of a sequence; None where there is none."""
    value = header.get(keyword) if header is not None else None
    return value[0] if isinstance(value, Sequence) and len(value) else None


def _numbers(header: Dataset, keyword: str) -> tuple[float, ...]:
    try:
        value = header.get(keyword)
        return tuple(float(x) for x in (value if isinstance(value, Sequence) else [value]))
    except (TypeError, ValueError, OverflowError):
        return ()


def _pair(header: Dataset | None, keyword: str) -> tuple[float, float] | None:
    values = _numbers(header, keyword) if header is not None else ()
    if len(values) != 2 or not all(LEAST_MM <= value <= MOST_MM for value in values):
        return None
    return values
