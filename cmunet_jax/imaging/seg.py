"""Masks of a DICOM run as a DICOM Segmentation that refers to it.

An angiographic run has no Frame of Reference: its frames are projections without a position in
the patient. A segmentation needs one only where it lacks the Derivation Image functional group
(PS3.3, table A.51-1); with that group "each pixel of the segmentation shall correspond to a pixel
in a referenced image" (A.51.5.1). So every frame of ours names the source's instance and frame.
highdicom writes such objects for one frame only; it makes the first, and what repeats from frame
to frame is appended here.
"""

from __future__ import annotations

import contextlib
import copy
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import highdicom as hd
import numpy as np
import pydicom.config
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.sr.codedict import codes
from pydicom.valuerep import DA, TM

from cmunet_jax import __version__
from cmunet_jax.imaging import dicom
from cmunet_jax.imaging.case import Case, UnreadableCase
from cmunet_jax.imaging.unpacked import Unpacked
from tfds_angio.errors import UserError

LABEL = "Coronary artery"
SERIES_NUMBER = 900  # behind those of the acquisition; a viewer sorts by it
PROBABILITY = "_probability"  # of the file name
MOST_VALUE = 2**20  # bytes of a header element that is kept in memory; none that is copied is large
# Type 2 elements of the patient and study: they may be empty but not absent.
_MAY_BE_EMPTY = (
    "PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime "
    "ReferringPhysicianName"
).split()
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# highdicom would place the frames in space by these, or take the source for a volume.
_NOT_COPIED = (
    "FrameIncrementPointer SharedFunctionalGroupsSequence "
    "PerFrameFunctionalGroupsSequence DimensionIndexSequence ImagePositionPatient "
    "ImageOrientationPatient PixelSpacing"
).split()


def write(
    path: pathlib.Path,
    *,
    source: Case,
    masks: Mapping[int, NDArray[np.bool_]],
    probabilities: Mapping[int, NDArray[np.float32]] | None = None,
    algorithm_version: str,
) -> None:
    """Writes the masks of some frames of a run as a binary DICOM Segmentation.

    Args:
      path: of the file. With probabilities a second one, STEM_probability.dcm, appears beside it.
      source: a case of `open_dicom`; its patient and study are copied from its file.
      masks: frame index -> [H, W], True in an artery. At least one; an empty mask is kept too.
      probabilities: frame index -> [H, W] in 0..1, for a fractional segmentation of the same
        series, in 256 steps; None for none.
      algorithm_version: what made the masks, at most 64 characters.

    Raises:
      UnreadableCase: the source cannot be referred to, with the reason; nothing is written.
      UserError: `path` cannot be written.
      ValueError: a frame that the source lacks, or of another size.
    """
    if source.kind != "dicom":
        raise UnreadableCase("it is no DICOM, and a DICOM segmentation has to refer to one")
    dicom.silence()
    series = uid.generate_uid(prefix=None)
    files: list[tuple[pathlib.Path, Mapping[int, NDArray[Any]], bool]] = [(path, masks, False)]
    if probabilities is not None:
        second = path.with_name(f"{path.stem}{PROBABILITY}{path.suffix}")
        files.append((second, probabilities, True))
    for _, planes, _ in files:
        _check(source, planes)
    header = _read(source)
    for number, (file, planes, fractional) in enumerate(files, 1):
        with _refused(), pydicom.config.disable_value_validation():
            made = _segmentation(header, planes, fractional, series, number, algorithm_version)
        # Type 2C where no Image Orientation says it; highdicom leaves it out.
        made.PatientOrientation = header.get("PatientOrientation") or ""
        # Only for frames with a place in the patient (table A.51-2); the source has the spacing.
        made.SharedFunctionalGroupsSequence[0].pop("PixelMeasuresSequence", None)
        if source.frames > 1:
            _extend(made, planes, fractional)
        _save(file, made)


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise UnreadableCase("too large for the memory") from None
    except Exception as error:  # the text of highdicom's would quote the patient's data
        raise UnreadableCase(
            f"its patient or study data does not fit into a segmentation ({type(error).__name__})"
        ) from None


def _check(source: Case, planes: Mapping[int, NDArray[Any]]) -> None:
    if not planes:
        raise ValueError("a segmentation needs at least one frame")
    for index, plane in planes.items():
        if not 0 <= index < source.frames or plane.shape != (source.height, source.width):
            raise ValueError(f"frame {index} {plane.shape} is none of the source's")


def _read(source: Case) -> Dataset:
    """What a segmentation says of its source, as of an image of one frame."""
    with Unpacked(source.path).open() as (window, meta):
        syntax = dicom.transfer_syntax(window, meta)
        header = read_dataset(
            window,  # type: ignore[arg-type]  # it has what pydicom uses of a file
            is_implicit_VR=syntax == uid.ImplicitVRLittleEndian,
            is_little_endian=syntax != uid.ExplicitVRBigEndian,
            stop_when=lambda tag, vr, length: tag.group >= 0x6000,  # overlays, then the pixels
            defer_size=MOST_VALUE,
        )
        header.remove_private_tags()
        header.setdefault("SOPClassUID", meta.get("MediaStorageSOPClassUID"))
        for keyword in _UIDS:
            if not uid.UID(str(header.get(keyword) or "")).is_valid:
                raise UnreadableCase(f"it has no valid {keyword}, by which to refer to it")
        for keyword in _NOT_COPIED:
            header.pop(keyword, None)
        # What highdicom asks of an image that may have several frames, as of one that has one.
        header.NumberOfFrames = 1
        header.SharedFunctionalGroupsSequence = [Dataset()]
        header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = hd.PixelMeasuresSequence(
            pixel_spacing=(1, 1), slice_thickness=None
        )
        _make_valid(header)
    return header


def _make_valid(header: Dataset) -> None:
    """Empties of the type 2 elements what highdicom would refuse to repeat."""
    for keyword in _MAY_BE_EMPTY:
        if header.get(keyword) is None:
            setattr(header, keyword, "")
    if header.PatientSex not in ("M", "F", "O"):
        header.PatientSex = ""
    for keyword, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            kind(header.get(keyword))
        except (ValueError, TypeError):
            setattr(header, keyword, "")


def _segmentation(
    header: Dataset,
    planes: Mapping[int, NDArray[Any]],
    fractional: bool,
    series: str,
    number: int,
    version: str,
) -> hd.seg.Segmentation:
    """The segmentation of the first frame in `planes`."""
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=LABEL,
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.CoronaryArtery,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="CM-UNet in JAX", family=codes.DCM.ArtificialIntelligence, version=version
        ),
        display_color=hd.color.CIELabColor(50.0, 70.0, 50.0),
    )
    plane = planes[min(planes)]
    kinds = hd.seg.SegmentationTypeValues
    made = hd.seg.Segmentation(
        source_images=[header],
        pixel_array=(plane.astype(np.float32).clip(0, 1) if fractional else plane)[None],
        segmentation_type=kinds.FRACTIONAL if fractional else kinds.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=series,
        series_number=SERIES_NUMBER,
        sop_instance_uid=uid.generate_uid(prefix=None),
        instance_number=number,
        manufacturer="CM-UNet in JAX",
        manufacturer_model_name="CM-UNet",
        software_versions=__version__,
        device_serial_number="0",
        content_label="CORONARIES",
        content_description="Probability of coronary artery" if fractional else LABEL,
        series_description="Coronary arteries, segmented automatically",
        omit_empty_frames=False,
    )
    return made


def _extend(made: Dataset, planes: Mapping[int, NDArray[Any]], fractional: bool) -> None:
    """Turns the segmentation of one frame into that of all, and names the source's frames."""
    first = made.PerFrameFunctionalGroupsSequence[0]
    groups = []
    for position, index in enumerate(sorted(planes), 1):
        group = copy.deepcopy(first)
        content = group.FrameContentSequence[0]
        content.DimensionIndexValues = [1, position]
        content.TemporalPositionIndex = position
        content.FrameLabel = f"frame {index + 1}"
        derived = group.DerivationImageSequence[0].SourceImageSequence[0]
        derived.ReferencedFrameNumber = index + 1
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = groups
    dimension = copy.deepcopy(made.DimensionIndexSequence[0])
    dimension.DimensionIndexPointer = 0x00209128  # Temporal Position Index
    dimension.FunctionalGroupPointer = 0x00209111  # Frame Content Sequence
    dimension.DimensionDescriptionLabel = "Temporal Position Index"
    made.DimensionIndexSequence = [*made.DimensionIndexSequence, dimension]
    made.NumberOfFrames = len(groups)
    ordered = [planes[index] for index in sorted(planes)]
    data = b"".join(_levels(ordered) if fractional else _bits(ordered))
    made.PixelData = data + b"\0" * (len(data) % 2)


def _levels(planes: Sequence[NDArray[Any]]) -> Iterator[bytes]:
    for plane in planes:
        yield np.around(plane.astype(np.float32).clip(0, 1) * 255).astype(np.uint8).tobytes()


def _bits(planes: Sequence[NDArray[Any]]) -> Iterator[bytes]:
    """One bit a pixel; a frame may begin within a byte (PS3.5 8.1.1)."""
    left = np.zeros(0, np.uint8)
    for plane in planes:
        bits = np.concatenate([left, plane.ravel() != 0])
        whole = len(bits) // 8 * 8
        yield np.packbits(bits[:whole], bitorder="little").tobytes()
        left = bits[whole:]
    yield np.packbits(left, bitorder="little").tobytes()


def _save(path: pathlib.Path, made: Dataset) -> None:
    """Writes the file, replaced as a whole or not at all."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file, pydicom.config.disable_value_validation():
            made.save_as(file, enforce_file_format=True)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide the file from colleagues
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): choose another folder or free space."
        ) from None
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
