"""What cannot be read says why, in one line without a name, and nothing else happens."""

import gzip
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread, encaps, uid

from cmunet_jax.imaging import dicom, unpacked
from cmunet_jax.imaging.case import UnreadableCase
from tests.conftest import ROOT
from tests.imaging import xa


def check_clean(text):
    for identifier in xa.IDENTIFIERS:
        assert identifier.lower() not in text.lower(), identifier
    assert "\n" not in text and len(text) < 200


def reason(path):
    """Why a file cannot be read, when it is opened or when a frame is read."""
    with pytest.raises(UnreadableCase) as caught:
        case = dicom.open_dicom(path)
        for index in range(case.frames):
            case.read(index)
    # What a traceback or a log would show beside the message.
    assert caught.value.__cause__ is None and (
        caught.value.__context__ is None or caught.value.__suppress_context__
    )
    check_clean(str(caught.value))
    return str(caught.value)


def changed(path, **elements):
    """The file with other elements, whatever they are, written without a check."""
    data = dcmread(path)
    for keyword, value in elements.items():
        if value is None:
            del data[keyword]
        else:
            setattr(data, keyword, value)
    data.save_as(path)
    return path


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGLosslessSV1,
                                    uid.DeflatedExplicitVRLittleEndian])  # fmt: skip
def test_truncated_anywhere(tmp_path, syntax, zipped):
    path = xa.write(tmp_path, xa.run(bits=12), bits=12, syntax=syntax, zipped=zipped)
    content = path.read_bytes()
    for share in (0.05, 0.3, 0.5, 0.7, 0.9, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        assert reason(path).startswith("truncated") or share == 0.05


def test_empty_missing_or_a_folder(tmp_path):
    path = tmp_path / f"{xa.NAME}.dcm"
    path.write_bytes(b"")
    assert reason(path) == "empty file"
    path.write_bytes(gzip.compress(b""))
    assert reason(path) == "empty file"
    path.unlink()
    assert reason(path) == "cannot be read (No such file or directory)"
    path.mkdir()
    assert reason(path) == "it is not a file"
    path.rmdir()
    os.mkfifo(path)
    assert reason(path) == "it is not a file" and not dicom.is_dicom(path)


def test_what_is_no_dicom(tmp_path):
    path = tmp_path / "a.dcm"
    for content in (b"hello world, this is text " * 20, b"\x89PNG\r\n\x1a\n" + bytes(300), b"DICM"):
        path.write_bytes(content)
        assert reason(path)
    path.write_bytes(bytes(128) + b"DICM")
    assert reason(path) == "no DICOM of an image"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (uid.BasicTextSRStorage, "'Basic Text SR Storage'"),
        (uid.EncapsulatedPDFStorage, "'Encapsulated PDF Storage'"),
        (uid.CTImageStorage, "'CT Image Storage'"),
        (uid.SegmentationStorage, "'Segmentation Storage'"),
        (uid.MediaStorageDirectoryStorage, "'Media Storage Directory Storage'"),
        ("1.2.840.113619.4.26", "an unknown kind"),
    ],
)
def test_objects_of_other_kinds_are_named(tmp_path, kind, name):
    path = xa.write(tmp_path, xa.run(), elements={"SOPClassUID": kind})
    assert reason(path) == f"it is of {name}, not an X-ray angiogram"
    path = xa.write(tmp_path, xa.run(), elements={"SOPClassUID": kind, "PixelData": None})
    assert name in reason(path)


def test_without_pixel_data(tmp_path):
    path = xa.write(tmp_path, xa.run())
    changed(path, PixelData=None)
    assert reason(path) == "it has no pixel data"
    data = dcmread(path)
    data.FloatPixelData = np.zeros((3, 37, 35), np.float32).tobytes()
    data.save_as(path)
    assert reason(path) == "its pixels are floating-point numbers"


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        (uid.MPEG2MPML, "video"),
        (uid.MPEG4HP41, "video"),
        (uid.HEVCMP51, "video"),
        ("1.2.840.10008.1.2.4.110", "not supported (1.2.840.10008.1.2.4.110)"),  # JPEG XL
        ("1.2.840.113619.5.2", "not supported (1.2.840.113619.5.2)"),
        ("Mustermann", "not supported (unknown)"),
        ("1.2.840.10008.1.2.4.94", "not supported"),
    ],
)  # fmt: skip
def test_transfer_syntaxes_that_cannot_be_decoded_are_named(tmp_path, syntax, words):
    path = xa.write(tmp_path, xa.run(1))
    # pydicom writes no such file.
    content = path.read_bytes()
    old = str(uid.ExplicitVRLittleEndian).encode()
    start = content.index(b"\x02\x00\x10\x00UI")
    new = syntax.encode() + b"\0" * (len(syntax) % 2)
    changed_value = len(new).to_bytes(2, "little") + new
    end = start + 8 + int.from_bytes(content[start + 6 : start + 8], "little")
    assert content[start + 8 : end].rstrip(b"\0") == old
    path.write_bytes(content[: start + 6] + changed_value + content[end:])
    assert words in reason(path)


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"Rows": 0}, "0 rows and 35 columns"),
        ({"Rows": None}, "0 rows"),
        ({"Rows": 65535, "Columns": 65535}, "absurdly large"),
        ({"Rows": 36}, ""),
        ({"Rows": 38}, "says 3 frames, but its pixel data holds 2"),
        ({"NumberOfFrames": 0}, "no valid number of frames"),
        ({"NumberOfFrames": -3}, "no valid number of frames"),
        ({"NumberOfFrames": 2000000000}, "says 2000000000 frames, but its pixel data holds 3"),
        ({"SamplesPerPixel": 3}, "neither grey"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "neither grey"),
        ({"BitsAllocated": 32}, "bits in 32"),
        ({"BitsAllocated": 1}, "bits in 1"),
        ({"BitsStored": 17}, "17 bits in 16"),
        ({"BitsStored": 1}, "1 bits in 16"),
        ({"HighBit": 3}, "contradicts itself"),
    ],
)
def test_headers_that_cannot_be_true(tmp_path, elements, words):
    path = xa.write(tmp_path, xa.run(bits=12), bits=12)
    changed(path, **elements)
    if words:
        assert words in reason(path)
    else:
        assert dicom.open_dicom(path).height == elements["Rows"]


@pytest.mark.parametrize("count", [2, 4, 1000000])
@pytest.mark.parametrize("name", ["rle", "jpeg lossless", "jpeg-ls"])
def test_compressed_runs_with_another_number_of_frames(tmp_path, name, count):
    frames = xa.run(3, bits=12)
    path = xa.write(tmp_path, frames, bits=12, syntax=xa.EXACT[name])
    changed(path, NumberOfFrames=count)
    if count > 3:
        assert f"says {count} frames, but its pixel data holds 3" in reason(path)
    else:  # the header decides
        case = dicom.open_dicom(path)
        np.testing.assert_array_equal([case.read(index) for index in range(2)], frames[:2])


@pytest.mark.parametrize("name", ["jpeg lossless sv1", "jpeg-ls", "jpeg 2000 lossless"])
def test_a_codestream_of_another_size_is_not_decoded(tmp_path, name):
    path = xa.write(tmp_path, xa.run(1, bits=12), bits=12, syntax=xa.EXACT[name])
    changed(path, Rows=64, Columns=64)
    assert "a compressed frame is 35x37 with 1 components, its header says 64x64" in reason(path)


def test_a_codestream_of_another_syntax(tmp_path):
    path = xa.write(tmp_path, xa.run(1, bits=12), bits=12, syntax=uid.JPEGLSLossless)
    data = dcmread(path)
    for syntax in (uid.JPEG2000, uid.JPEGLosslessSV1, uid.JPEGBaseline8Bit, uid.HTJ2K):
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(path)
        assert "not what its transfer syntax says" in reason(path)
    data.file_meta.TransferSyntaxUID = uid.RLELossless
    data.save_as(path)
    assert reason(path).startswith("corrupt: a frame cannot be decoded")


def test_a_compressed_frame_far_longer_than_its_pixels(tmp_path):
    path = xa.write(tmp_path, xa.run(1, bits=12), syntax=uid.RLELossless, bits=12,
                    encoded=[b"\x01" * 100_000])  # fmt: skip
    assert "longer than any frame" in reason(path)


@pytest.mark.parametrize("zipped", [False, True])
def test_what_unpacks_to_an_absurd_size_is_refused(tmp_path, monkeypatch, zipped):
    monkeypatch.setattr(unpacked, "RATIO_FROM", 2**20)
    if zipped:
        path = tmp_path / "bomb.dcm.gz"
        path.write_bytes(gzip.compress(bytes(2**24)))
    else:
        path = xa.write(tmp_path, xa.run(), syntax=uid.DeflatedExplicitVRLittleEndian)
        content = path.read_bytes()
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        start = 132 + 12 + int.from_bytes(content[140:144], "little")
        path.write_bytes(content[:start] + packer.compress(bytes(2**24)) + packer.flush())
    assert reason(path) == "it unpacks to an absurd size"


def test_sequences_nested_absurdly_deep(tmp_path):
    path = xa.write(tmp_path, xa.run())
    content = path.read_bytes()
    at = content.index(b"\x08\x00\x18\x00UI")  # SOP Instance UID of the data set
    at = content.index(b"\x08\x00\x18\x00UI", at)
    item = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(content[:at] + item * 5000)
    assert reason(path) in ("its sequences are nested absurdly deep",
                            "truncated: the file ends within the header",
                            "truncated or no DICOM", "truncated or corrupt")  # fmt: skip


def test_an_element_that_claims_more_than_the_file_reserves_no_memory(tmp_path):
    path = xa.write(tmp_path, xa.run())
    content = path.read_bytes()
    at = content.index(b"\x28\x00\x04\x00CS")
    path.write_bytes(content[:at] + b"\x28\x00\x04\x00UT\0\0\xfe\xff\xff\xff")
    assert reason(path) == "truncated: the file ends within the header"


def test_a_file_that_changes_after_it_was_opened(tmp_path):
    path = xa.write(tmp_path, xa.run())
    case = dicom.open_dicom(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UnreadableCase, match="changed"):
        case.read(0)


@pytest.mark.filterwarnings("ignore:Invalid value")
def test_nothing_reaches_the_screen(tmp_path):
    path = xa.write(tmp_path, xa.run(bits=12), bits=12, syntax=uid.JPEGLosslessSV1)
    data = dcmread(path)
    # Values that pydicom warns of, and quotes; a frame of which GDCM prints; a broken JPEG-LS.
    data.PatientBirthDate = data.StudyDate = "19510203-Mustermann"
    frames = list(encaps.generate_frames(data.PixelData, number_of_frames=3))
    data.PixelData = encaps.encapsulate([frames[0], frames[1][:400] + b"\xff\xd9", frames[2]])
    data.save_as(path)
    other = tmp_path / "other.dcm"
    data.file_meta.TransferSyntaxUID = uid.RLELossless
    data.save_as(other)
    program = f"""
import logging, pathlib, numpy as np
logging.basicConfig(level=logging.DEBUG)
from cmunet_jax.imaging import dicom, seg
from cmunet_jax.imaging.case import UnreadableCase
for path in {[str(path), str(other)]}:
    case = dicom.open_dicom(pathlib.Path(path))
    for index in range(3):
        try:
            case.read(index)
        except UnreadableCase:
            pass
    seg.write(pathlib.Path({str(tmp_path)!r}) / "seg.dcm", source=case, algorithm_version="1",
              masks={{0: np.zeros((case.height, case.width), bool)}})
"""
    done = subprocess.run([sys.executable, "-W", "default", "-c", program], cwd=ROOT,
                          capture_output=True, text=True, timeout=300, check=True)  # fmt: skip
    printed = done.stdout + done.stderr
    for identifier in xa.IDENTIFIERS:
        assert identifier not in printed
    assert "JPEG" not in printed and "pydicom" not in printed


@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.binary(max_size=400), prefix=st.sampled_from(["", "meta", "file"]))
def test_random_bytes_give_a_reason_or_frames(tmp_path, data, prefix):
    if prefix == "meta":
        data = bytes(128) + b"DICM" + data
    elif prefix == "file":
        path = tmp_path / "good.dcm"
        if not path.exists():
            xa.write(tmp_path, xa.run(1, bits=12), bits=12, name="good.dcm", planted=False)
        content = path.read_bytes()
        at = sum(data[:2]) * len(content) // 512
        data = content[:at] + data + content[at + len(data) :]
    path = tmp_path / "x.dcm"
    path.write_bytes(data)
    dicom.is_dicom(path)
    try:
        case = dicom.open_dicom(path)
        assert case.read(0).shape == (case.height, case.width)
    except UnreadableCase as error:
        check_clean(str(error))


def test_a_data_set_inside_a_data_set_is_not_taken_for_the_pixels(tmp_path):
    icon = Dataset()
    icon.Rows = icon.Columns = 2
    icon.PixelData = b"\0\0\0\0"
    icon["PixelData"].VR = "OB"
    frames = xa.run(bits=12)
    path = xa.write(tmp_path, frames, bits=12, elements={"IconImageSequence": [icon]})
    np.testing.assert_array_equal(dicom.open_dicom(path).read(2), frames[2])
