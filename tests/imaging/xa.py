"""Makes X-ray angiographic DICOM runs with headers as real ones have them, for the tests.

`write` fills the modules of the XA image IOD (PS3.3 A.14), encodes in every transfer syntax that
can be read, and plants IDENTIFIERS wherever a patient's name or a date travels in practice.
"""

from __future__ import annotations

import gzip
import io
import pathlib
import tempfile
from typing import Any

import cv2
import gdcm
import numpy as np
import PIL.Image
from pydicom import dcmread, encaps, uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filewriter import dcmwrite

NAME, PATIENT_ID, BIRTH, DAY = "Mustermann^Erika", "PID-98765-QX", "19510203", "20240517"
ACCESSION, PHYSICIAN, INSTITUTION = "ACC-424242", "Doctorov^Ivan", "Klinik am Planted See"
SECRET, COMMENT = "PRIVATE-erika-0815", "comment on Erika M."
# What must be found in no output but the DICOM SEG, which keeps the first ones by design.
IDENTIFIERS = (
    "Mustermann", "Erika", PATIENT_ID, BIRTH, DAY, ACCESSION, "Doctorov", "Planted See", SECRET,
    "08:15", "081500", "SERIAL-7711", "STATION-9",
)  # fmt: skip
ROOT = "1.2.826.0.1.3680043.8.498.7"
STUDY, SERIES, INSTANCE = f"{ROOT}.1", f"{ROOT}.2", f"{ROOT}.3"

EXACT = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "rle": uid.RLELossless,
    "jpeg lossless": uid.JPEGLossless,
    "jpeg lossless sv1": uid.JPEGLosslessSV1,
    "jpeg-ls": uid.JPEGLSLossless,
    "jpeg 2000 lossless": uid.JPEG2000Lossless,
}
# Syntax -> the largest error in grey levels that the encoder's settings here may leave.
LOSSY = {
    "jpeg baseline": (uid.JPEGBaseline8Bit, 8, 8),
    "jpeg extended": (uid.JPEGExtended12Bit, 12, 24),
    "jpeg-ls near": (uid.JPEGLSNearLossless, 12, 2),
    "jpeg 2000": (uid.JPEG2000, 12, 24),
}
_GDCM = {
    uid.JPEGExtended12Bit: gdcm.TransferSyntax.JPEGExtendedProcess2_4,
    uid.JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
    uid.JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
}
_OPTIONS: dict[str, dict[str, Any]] = {
    uid.RLELossless: {"encoding_plugin": "pydicom"},  # GDCM's ends the process at odd widths
    uid.JPEGLSNearLossless: {"jls_error": 2},
    uid.JPEG2000: {"j2k_cr": [4]},
}


def run(count: int = 3, height: int = 37, width: int = 35, bits: int = 12) -> np.ndarray:
    """[T, H, W] of `bits` bits: a dark vessel that moves a pixel a frame, in whole numbers only."""
    row, column = np.mgrid[:height, :width]
    frames = []
    for t in range(count):
        background = 600 + 5 * row + 3 * column + (7 * row + 13 * column + 5 * t) % 17
        distance = np.abs(column - width // 2 - row // 4 + t)
        frames.append(background - 150 * np.clip(3 - distance, 0, 2))
    return (np.stack(frames) * (2**bits - 1) // 1023).astype(np.uint16 if bits > 8 else np.uint8)


def write(
    folder: pathlib.Path,
    frames: np.ndarray,
    *,
    syntax: str = uid.ExplicitVRLittleEndian,
    bits: int | None = None,
    name: str = "Mustermann_Erika_19510203.dcm",
    planted: bool = True,
    preamble: bool = True,
    zipped: bool = False,
    encoded: list[bytes] | None = None,
    elements: dict[str, Any] | None = None,
) -> pathlib.Path:
    """Writes a run.

    Args:
      folder: where to.
      frames: stored values, uint8, uint16, int8 or int16 [T, H, W], or uint8 [T, H, W, 3].
      syntax: transfer syntax UID.
      bits: stored; all by default. The frames may have others set above them.
      name: of the file, planted too.
      planted: whether IDENTIFIERS are in the header, private elements and overlay planes.
      preamble: whether the file begins as PS3.10 says, or with the data set itself.
      zipped: gzip the file and add '.gz' to its name.
      encoded: codestreams of the frames, instead of an encoder.
      elements: keyword -> value of further or changed elements; None takes one away.

    Returns:
      The path.
    """
    header = _header(frames, bits)
    if planted:
        _plant(header)
    for keyword, value in (elements or {}).items():
        if value is None:
            header.pop(keyword, None)
        else:
            setattr(header, keyword, value)
    _encode(header, frames, uid.UID(syntax), encoded)
    buffer = io.BytesIO()
    if preamble:
        dcmwrite(buffer, header, enforce_file_format=True)
    else:
        del header.file_meta.TransferSyntaxUID
        implicit = syntax == uid.ImplicitVRLittleEndian
        plain = Dataset(header)
        dcmwrite(buffer, plain, implicit_vr=implicit, little_endian=True)
    path = folder / (name + ".gz" if zipped else name)
    path.write_bytes(gzip.compress(buffer.getvalue()) if zipped else buffer.getvalue())
    return path


def _header(frames: np.ndarray, bits: int | None) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.XRayAngiographicImageStorage
    meta.MediaStorageSOPInstanceUID = uid.UID(INSTANCE)
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    d = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    d.SpecificCharacterSet = "ISO_IR 100"
    d.ImageType = ["ORIGINAL", "PRIMARY", "SINGLE PLANE"]
    d.SOPClassUID, d.SOPInstanceUID = meta.MediaStorageSOPClassUID, INSTANCE
    d.StudyInstanceUID, d.SeriesInstanceUID = STUDY, SERIES
    d.StudyDate = d.StudyTime = d.AccessionNumber = d.ReferringPhysicianName = ""
    d.PatientName = d.PatientID = d.PatientBirthDate = d.PatientSex = d.StudyID = ""
    d.Modality, d.SeriesNumber, d.InstanceNumber = "XA", 4, 1
    d.Manufacturer, d.PatientOrientation, d.Laterality = "Test", "", ""
    d.KVP, d.ExposureTime, d.XRayTubeCurrent, d.AveragePulseWidth = 75, 7, 700, 7
    d.RadiationSetting, d.RadiationMode, d.PositionerMotion = "GR", "PULSED", "STATIC"
    d.PositionerPrimaryAngle, d.PositionerSecondaryAngle = -30.0, 20.0
    d.ContrastBolusAgent, d.PixelIntensityRelationship = "Iodine", "DISP"
    d.FrameTime, d.CineRate, d.RecommendedDisplayFrameRate = 66.7, 15, 15
    d.FrameIncrementPointer = 0x00181063
    d.NumberOfFrames, d.Rows, d.Columns = frames.shape[:3]
    colour = frames.ndim == 4
    d.SamplesPerPixel, d.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        d.PlanarConfiguration = 0
    d.BitsAllocated = frames.dtype.itemsize * 8
    d.BitsStored = bits or d.BitsAllocated
    d.HighBit = d.BitsStored - 1
    d.PixelRepresentation = int(frames.dtype.kind == "i")
    d.LossyImageCompression, d.BurnedInAnnotation = "00", "NO"
    return d


def _plant(d: Dataset) -> None:
    d.PatientName, d.PatientID, d.PatientBirthDate, d.PatientSex = NAME, PATIENT_ID, BIRTH, "F"
    d.OtherPatientIDs, d.PatientComments, d.ImageComments = PATIENT_ID, COMMENT, COMMENT
    d.StudyDate = d.SeriesDate = d.AcquisitionDate = d.ContentDate = DAY
    d.StudyTime = d.SeriesTime = d.AcquisitionTime = d.ContentTime = "081500"
    d.AccessionNumber, d.StudyID, d.ReferringPhysicianName = ACCESSION, "STUDY-5", PHYSICIAN
    d.StudyDescription, d.SeriesDescription = f"Coro {NAME}", "LCA Erika"
    d.InstitutionName, d.StationName, d.DeviceSerialNumber = INSTITUTION, "STATION-9", "SERIAL-7711"
    d.PerformingPhysicianName = d.OperatorsName = PHYSICIAN
    d.BurnedInAnnotation = "YES"
    block = d.private_block(0x0021, "TESTVENDOR", create=True)
    block.add_new(0x01, "LO", SECRET)
    block.add_new(0x02, "PN", NAME)
    rows, columns = int(d.Rows), int(d.Columns)
    bits = np.zeros((rows, columns), np.uint8)
    cv2.putText(bits, "Erika", (0, rows - 2), cv2.FONT_HERSHEY_PLAIN, 0.5, 1)
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    for group in (0x6000, 0x6002):
        d.add_new((group, 0x0010), "US", rows)
        d.add_new((group, 0x0011), "US", columns)
        d.add_new((group, 0x0022), "LO", NAME)
        d.add_new((group, 0x0040), "CS", "G")
        d.add_new((group, 0x0050), "SS", [1, 1])
        d.add_new((group, 0x0100), "US", 1)
        d.add_new((group, 0x0102), "US", 0)
        d.add_new((group, 0x1500), "LO", NAME)
        d.add_new((group, 0x3000), "OW", packed + b"\0" * (len(packed) % 2))


def _encode(d: Dataset, frames: np.ndarray, syntax: uid.UID, encoded: list[bytes] | None) -> None:
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    word = "OB" if frames.dtype.itemsize == 1 else "OW"
    data = frames.astype(frames.dtype.newbyteorder(order)).tobytes()
    d.add_new(0x7FE00010, word, data + b"\0" * (len(data) % 2))
    if encoded is None and syntax == uid.JPEGBaseline8Bit:
        encoded = [_jpeg(frame) for frame in frames]
    if encoded is not None:
        d.PixelData = encaps.encapsulate(encoded)
        d["PixelData"].VR = "OB"
        d["PixelData"].is_undefined_length = True
        d.file_meta.TransferSyntaxUID = syntax
    elif syntax in _GDCM:
        d.PixelData = _by_gdcm(d, _GDCM[syntax])
        d["PixelData"].VR = "OB"
        d["PixelData"].is_undefined_length = True
        d.file_meta.TransferSyntaxUID = syntax
    elif syntax.is_encapsulated:
        d.compress(syntax, generate_instance_uid=False, **_OPTIONS.get(syntax, {}))
    else:
        d.file_meta.TransferSyntaxUID = syntax


def _jpeg(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(frame).save(buffer, "JPEG", quality=97, subsampling=0)
    return buffer.getvalue()


def _by_gdcm(d: Dataset, target: int) -> bytes:
    """Encapsulated pixel data: GDCM encodes files, of which the pixel data is taken."""
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = f"{folder}/plain.dcm", f"{folder}/packed.dcm"
        dcmwrite(plain, d, enforce_file_format=True)
        reader = gdcm.ImageReader()
        reader.SetFileName(plain)
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(target))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(packed)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return dcmread(packed).PixelData
