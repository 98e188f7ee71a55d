"""Masks travel as DICOM Segmentations that refer to the frames they were made from."""

import dataclasses

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread, uid

from cmunet_jax.imaging import dicom, seg
from cmunet_jax.imaging.case import UnreadableCase
from tests.imaging import xa
from tfds_angio.errors import UserError

FRAMES = xa.run(5, bits=12)


def masks(*indices):
    draw = np.random.default_rng(7)
    return {index: draw.random(FRAMES.shape[1:]) < 0.3 for index in indices}


def source(folder, frames=FRAMES, **options):
    return dicom.open_dicom(xa.write(folder, frames, bits=12, **options))


def written(folder, case, planes, **options):
    path = folder / "out" / "seg.dcm"
    seg.write(path, source=case, masks=planes, algorithm_version="1.2 abc", **options)
    return path


@pytest.mark.parametrize("indices", [(0,), (2,), (0, 1, 4), (4, 0, 3), tuple(range(5))])
def test_masks_come_back_by_the_frames_of_the_source(tmp_path, indices):
    planes = masks(*indices)
    path = written(tmp_path, source(tmp_path), planes)
    made = hd.seg.segread(path)
    got = made.get_pixels_by_source_frame(
        source_sop_instance_uid=xa.INSTANCE, source_frame_numbers=[i + 1 for i in planes]
    )
    np.testing.assert_array_equal(got[..., 0], np.stack(list(planes.values())))
    plain = dcmread(path).pixel_array.reshape(-1, *FRAMES.shape[1:])
    np.testing.assert_array_equal(plain, np.stack([planes[i] for i in sorted(planes)]))


def test_empty_masks_are_kept(tmp_path):
    planes = {index: np.zeros(FRAMES.shape[1:], bool) for index in (1, 3)}
    data = dcmread(written(tmp_path, source(tmp_path), planes))
    assert data.NumberOfFrames == 2 and not data.pixel_array.any()


def test_what_is_said_of_the_segment_and_the_source(tmp_path):
    data = dcmread(written(tmp_path, source(tmp_path), masks(1, 2)))
    assert data.SOPClassUID == uid.SegmentationStorage and data.Modality == "SEG"
    assert data.SegmentationType == "BINARY" and data.file_meta.TransferSyntaxUID.is_little_endian
    (segment,) = data.SegmentSequence
    code = segment.SegmentedPropertyTypeCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("41801008", "SCT")
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "91723000"
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmVersion == "1.2 abc"
    (series,) = data.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == xa.SERIES
    (instance,) = series.ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == xa.INSTANCE
    assert instance.ReferencedSOPClassUID == uid.XRayAngiographicImageStorage
    for index, group in zip((1, 2), data.PerFrameFunctionalGroupsSequence, strict=True):
        derived = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert derived.ReferencedSOPInstanceUID == xa.INSTANCE
        assert derived.ReferencedFrameNumber == index + 1
    # Each pointer of the dimensions has a value in every frame, and no two frames the same.
    values = [tuple(group.FrameContentSequence[0].DimensionIndexValues)
              for group in data.PerFrameFunctionalGroupsSequence]  # fmt: skip
    assert values == [(1, 1), (1, 2)] and len(data.DimensionIndexSequence) == 2


def test_the_patient_and_study_travel_and_nothing_private_does(tmp_path):
    case = source(tmp_path)
    path = written(tmp_path, case, masks(0))
    data, original = dcmread(path), dcmread(case.path)
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyDate",
                    "AccessionNumber", "StudyID", "ReferringPhysicianName"):  # fmt: skip
        assert data[keyword].value == original[keyword].value, keyword
    assert data.StudyInstanceUID == xa.STUDY
    assert data.SeriesInstanceUID not in (xa.SERIES, "") and data.SOPInstanceUID != xa.INSTANCE
    content = path.read_bytes()
    assert xa.SECRET.encode() not in content
    assert not any(element.tag.is_private or 0x6000 <= element.tag.group < 0x6100
                   for element in data)  # fmt: skip


def test_two_writes_are_two_series(tmp_path):
    case = source(tmp_path)
    first = dcmread(written(tmp_path, case, masks(0)))
    second = dcmread(written(tmp_path, case, masks(0)))
    assert first.SeriesInstanceUID != second.SeriesInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID


@pytest.mark.parametrize("name", ["Müller^Jürgen", "Петров^Иван", "山田^太郎"])
def test_names_in_other_scripts(tmp_path, name):
    case = source(tmp_path, elements={"SpecificCharacterSet": "ISO_IR 192", "PatientName": name})
    assert str(dcmread(written(tmp_path, case, masks(0))).PatientName) == name


def test_probabilities_are_a_second_segmentation_of_the_series(tmp_path):
    planes = masks(1, 3)
    draw = np.random.default_rng(1)
    chances = {index: draw.random(FRAMES.shape[1:], np.float32) for index in planes}
    path = written(tmp_path, source(tmp_path), planes, probabilities=chances)
    other = path.with_name("seg_probability.dcm")
    data = dcmread(other)
    assert data.SegmentationType == "FRACTIONAL"
    assert data.SegmentationFractionalType == "PROBABILITY" and data.MaximumFractionalValue == 255
    assert data.SeriesInstanceUID == dcmread(path).SeriesInstanceUID and data.InstanceNumber == 2
    made = hd.seg.segread(other)
    got = made.get_pixels_by_source_frame(xa.INSTANCE, source_frame_numbers=[2, 4])[..., 0]
    assert np.abs(got - np.stack([chances[1], chances[3]])).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize(
    "kind", [uid.XRayAngiographicImageStorage, uid.SecondaryCaptureImageStorage]
)
def test_no_place_in_the_patient_is_made_up(tmp_path, kind, frames):
    if kind == uid.SecondaryCaptureImageStorage and frames > 1:
        return
    elements = {"SOPClassUID": kind, "PixelSpacing": [0.2, 0.3]}
    case = source(tmp_path, FRAMES[:frames], elements=elements)
    data = dcmread(written(tmp_path, case, masks(0)))
    groups = (data.SharedFunctionalGroupsSequence[0], data.PerFrameFunctionalGroupsSequence[0])
    for keyword in ("PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence"):
        assert not any(keyword in group for group in groups)


FRAME_OF_REFERENCE = f"{xa.ROOT}.9"


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("frame_of_reference", [None, FRAME_OF_REFERENCE])
@pytest.mark.parametrize("kind", dicom.READABLE)
def test_every_kind_of_source_with_and_without_a_frame_of_reference(
    tmp_path, kind, frame_of_reference, frames
):
    if kind == uid.SecondaryCaptureImageStorage and frames > 1:
        return
    shared = Dataset()
    elements = {"SOPClassUID": kind, "FrameOfReferenceUID": frame_of_reference,
                "SharedFunctionalGroupsSequence": [shared]}  # fmt: skip
    case = source(tmp_path, FRAMES[:frames], elements=elements)
    plane = masks(0)
    path = written(tmp_path, case, plane)
    data = dcmread(path)
    assert data.get("FrameOfReferenceUID") == frame_of_reference
    derived = data.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
    assert derived.SourceImageSequence[0].ReferencedSOPClassUID == kind
    np.testing.assert_array_equal(data.pixel_array.reshape(FRAMES.shape[1:]), plane[0])
    assert hd.seg.segread(path).number_of_segments == 1


@pytest.mark.parametrize("options", [
    {"zipped": True}, {"syntax": uid.DeflatedExplicitVRLittleEndian},
    {"syntax": uid.ExplicitVRBigEndian}, {"syntax": uid.ImplicitVRLittleEndian},
    {"syntax": uid.JPEGLSLossless}, {"preamble": False}, {"planted": False},
])  # fmt: skip
def test_every_form_of_file_can_be_referred_to(tmp_path, options):
    planes = masks(0, 2)
    made = dcmread(written(tmp_path, source(tmp_path, **options), planes))
    np.testing.assert_array_equal(made.pixel_array, np.stack([planes[0], planes[2]]))


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("value", [None, "no.uid", ""])
@pytest.mark.filterwarnings("ignore:Invalid value")
def test_a_source_that_cannot_be_referred_to_is_refused(tmp_path, keyword, value):
    path = xa.write(tmp_path, FRAMES, bits=12)
    data = dcmread(path)
    if value is None:
        del data[keyword]
    else:
        setattr(data, keyword, value)
    data.save_as(path)
    with pytest.raises(UnreadableCase, match=f"^it has no valid {keyword}, by which to refer"):
        written(tmp_path, dicom.open_dicom(path), masks(0))
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Invalid value", "ignore:The value length", "ignore:The PN")
def test_values_against_the_standard_do_not_stand_in_the_way(tmp_path):
    path = xa.write(tmp_path, FRAMES, bits=12)
    data = dcmread(path)
    data.PatientBirthDate, data.StudyDate, data.StudyTime = "3.2.1951", "2024-05-17", "8:15 Uhr"
    data.PatientSex, data.PatientID, data.AccessionNumber = "weiblich", "P" * 80, "A" * 40
    data.StudyID, data.PatientAge, data.PatientName = "S" * 30, "seventy", "N" * 100
    data.save_as(path)
    made = dcmread(written(tmp_path, dicom.open_dicom(path), masks(0)))
    assert made.PatientID == "P" * 80 and made.StudyInstanceUID == xa.STUDY
    assert made.PatientBirthDate == "" and made.PatientSex == ""


def test_other_sources_and_frames_are_refused(tmp_path):
    case = source(tmp_path)
    for planes in ({}, {5: masks(0)[0]}, {-1: masks(0)[0]}, {0: np.zeros((3, 3), bool)}):
        with pytest.raises(ValueError, match="frame"):
            written(tmp_path, case, planes)
    with pytest.raises(UnreadableCase, match="no DICOM"):
        written(tmp_path, dataclasses.replace(case, kind="image"), masks(0))


def test_the_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    case = source(tmp_path)
    path = written(tmp_path, case, masks(0))
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left"):
        patch.setattr("pydicom.dataset.Dataset.save_as", full)
        written(tmp_path, case, masks(1))
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["seg.dcm"]
    assert path.stat().st_mode & 0o777 == 0o644
