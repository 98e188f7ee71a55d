"""DICOM runs become cases: the grey levels, the spacing, one frame at a time."""

import concurrent.futures
import gzip
import hashlib
import pathlib
import tracemalloc

import numpy as np
import pytest
from pydicom import Dataset, dcmread, encaps, uid

from cmunet_jax.imaging import codestream, dicom, gdcm_process
from cmunet_jax.imaging.case import Spacing, UnreadableCase
from cmunet_jax.imaging.pixel_format import COMPRESSED, NATIVE
from tests.imaging import xa

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def levels(case):
    return np.stack([case.read(index) for index in range(case.frames)])


def opened(folder, frames, **options):
    return dicom.open_dicom(xa.write(folder, frames, **options))


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("name", xa.EXACT)
def test_lossless_syntaxes_give_the_frames_as_they_were(tmp_path, name, bits):
    frames = xa.run(bits=bits)
    case = opened(tmp_path, frames, syntax=xa.EXACT[name], bits=bits)
    assert (case.frames, case.height, case.width, case.kind) == (*frames.shape, "dicom")
    got = levels(case)
    assert got.dtype == (np.uint8 if bits == 8 else np.uint16)
    np.testing.assert_array_equal(got, frames)


@pytest.mark.parametrize("name", xa.LOSSY)
def test_lossy_syntaxes_give_nearly_the_frames(tmp_path, name):
    syntax, bits, tolerance = xa.LOSSY[name]
    frames = xa.run(bits=bits)
    got = levels(opened(tmp_path, frames, syntax=syntax, bits=bits))
    difference = np.abs(got.astype(int) - frames)
    assert difference.max() <= 5 * tolerance and difference.mean() <= tolerance


# Encoded once by imagecodecs 2026.3.6 (OpenJPH, libjpeg-turbo), since nothing here encodes them.
FOREIGN = {
    uid.HTJ2KLossless: "htj2k_{}.j2c",
    uid.HTJ2KLosslessRPCL: "htj2k_{}.j2c",
    uid.HTJ2K: "htj2k_{}.j2c",
    uid.JPEGLossless: "lossless_{}.jpg",  # 12 bits; predictors 1 and 6, GDCM writes 16 and 1
}


@pytest.mark.parametrize("syntax", FOREIGN)
def test_codestreams_of_other_encoders(tmp_path, syntax):
    paths = [FIXTURES / FOREIGN[syntax].format(index) for index in range(2)]
    frames = xa.run(2)
    case = opened(tmp_path, frames, syntax=syntax, bits=12, encoded=[p.read_bytes() for p in paths])
    np.testing.assert_array_equal(levels(case), frames)


def test_every_syntax_that_is_said_to_be_read_is_tested():
    tested = {*xa.EXACT.values(), *(row[0] for row in xa.LOSSY.values())}
    assert tested | set(FOREIGN) == {*NATIVE, *COMPRESSED}


@pytest.mark.parametrize("name", ["explicit", "big endian", "rle", "jpeg lossless", "jpeg-ls",
                                  "jpeg 2000 lossless"])  # fmt: skip
def test_signed_values_keep_their_order(tmp_path, name):
    frames = (xa.run(bits=12).astype(np.int16) - 2048).astype(np.int16)
    got = levels(opened(tmp_path, frames, syntax=xa.EXACT[name], bits=12))
    np.testing.assert_array_equal(got, frames.astype(int) + 2048)


@pytest.mark.parametrize("name", ["implicit", "explicit", "big endian", "rle", "jpeg lossless sv1"])
def test_bits_that_are_not_stored_are_masked_off(tmp_path, name):
    frames = xa.run(bits=12)
    overlay = (np.indices(frames.shape).sum(0) % 3 == 0).astype(np.uint16) << 15
    case = opened(tmp_path, frames | overlay | 0x1000, syntax=xa.EXACT[name], bits=12)
    np.testing.assert_array_equal(levels(case), frames)


def test_bits_below_the_stored_ones_are_shifted_out(tmp_path):
    frames = xa.run(bits=12)
    case = opened(tmp_path, (frames << 4) | 0b1010, bits=12, elements={"HighBit": 15})
    np.testing.assert_array_equal(levels(case), frames)


@pytest.mark.parametrize("name", ["explicit", "jpeg-ls"])
def test_monochrome1_is_inverted(tmp_path, name):
    frames = xa.run(bits=12)
    case = opened(tmp_path, frames, bits=12, syntax=xa.EXACT[name],
                  elements={"PhotometricInterpretation": "MONOCHROME1"})  # fmt: skip
    np.testing.assert_array_equal(levels(case), 4095 - frames)


def test_equal_colours_are_grey_and_others_luminance(tmp_path):
    grey = xa.run(bits=8)
    case = opened(tmp_path, np.repeat(grey[..., None], 3, axis=3))
    np.testing.assert_array_equal(levels(case), grey)
    colours = np.stack([grey, grey // 2, grey // 3], axis=-1)
    expected = np.rint(colours @ np.array([0.299, 0.587, 0.114]))
    for syntax in (uid.ExplicitVRLittleEndian, uid.RLELossless):
        np.testing.assert_array_equal(levels(opened(tmp_path, colours, syntax=syntax)), expected)
    jpeg = levels(opened(tmp_path, colours, syntax=uid.JPEGBaseline8Bit,
                         elements={"PhotometricInterpretation": "YBR_FULL"}))  # fmt: skip
    assert np.abs(jpeg.astype(int) - expected).max() <= 16


def test_colours_stored_plane_by_plane(tmp_path):
    grey = xa.run(bits=8)
    colours = np.stack([grey, grey // 2, grey // 3], axis=-1)
    path = xa.write(tmp_path, colours, elements={"PlanarConfiguration": 1})
    data = dcmread(path)
    data.PixelData = colours.transpose(0, 3, 1, 2).tobytes() + b"\0" * (colours.size % 2)
    data.save_as(path)
    expected = np.rint(colours @ np.array([0.299, 0.587, 0.114]))
    np.testing.assert_array_equal(levels(dicom.open_dicom(path)), expected)


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
def test_without_preamble_and_meta_information(tmp_path, syntax):
    frames = xa.run(bits=12)
    path = xa.write(tmp_path, frames, bits=12, syntax=syntax, preamble=False, name="noname")
    assert path.read_bytes()[128:132] != b"DICM" and dicom.is_dicom(path)
    np.testing.assert_array_equal(levels(dicom.open_dicom(path)), frames)


def test_one_frame_without_a_number_of_frames(tmp_path):
    frames = xa.run(1, bits=12)
    case = opened(tmp_path, frames, bits=12, elements={"NumberOfFrames": None})
    np.testing.assert_array_equal(levels(case), frames)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGLosslessSV1,
                                    uid.DeflatedExplicitVRLittleEndian])  # fmt: skip
def test_gzipped(tmp_path, syntax):
    frames = xa.run(bits=12)
    path = xa.write(tmp_path, frames, bits=12, syntax=syntax, zipped=True)
    case = dicom.open_dicom(path)
    np.testing.assert_array_equal(levels(case), frames)
    np.testing.assert_array_equal(case.read(1), frames[1])  # again, after the last was read
    assert dicom.open_dicom(path).sha256 == case.sha256


def test_the_id_is_a_digest_of_the_file(tmp_path):
    path = xa.write(tmp_path, xa.run())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    case = dicom.open_dicom(path)
    assert (case.id, case.sha256) == (f"dicom-{digest[:12]}", digest)


@pytest.mark.parametrize("table", ["basic", "none", "wrong", "extended"])
@pytest.mark.parametrize("fragments", [1, 3])
def test_frames_in_fragments_and_tables_of_offsets(tmp_path, table, fragments):
    if table == "extended" and fragments == 3:
        return  # PS3.3 C.7.6.3.1.8 allows one fragment a frame there
    frames = xa.run(3, bits=12)
    path = xa.write(tmp_path, frames, bits=12, syntax=uid.JPEGLSLossless)
    data = dcmread(path)
    encoded = list(encaps.generate_frames(data.PixelData, number_of_frames=3))
    if table == "extended":
        made = encaps.encapsulate_extended(encoded)
        data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = made
    else:
        value = encaps.encapsulate(encoded, fragments_per_frame=fragments, has_bot=table != "none")
        if table == "wrong":
            value = value[:8] + b"\x07\0\0\0" + value[12:]
        data.PixelData = value
    data.save_as(path)
    np.testing.assert_array_equal(levels(dicom.open_dicom(path)), frames)


SINGLE_FRAME_CODECS = {
    name: (syntax, 8 if "baseline" in name else 12)
    for name, syntax in ({k: v for k, v in xa.EXACT.items() if "jpeg" in k}
                         | {k: v[0] for k, v in xa.LOSSY.items()}).items()
}  # fmt: skip


@pytest.mark.parametrize("cut", ["with its end marker", "without"])
@pytest.mark.parametrize("name", SINGLE_FRAME_CODECS)
def test_a_frame_is_decoded_when_it_is_read_and_no_other(tmp_path, name, cut):
    if "2000" in name and cut != "without":
        return  # its packets may end anywhere: what is missing is detail, as in a lossy image
    syntax, bits = SINGLE_FRAME_CODECS[name]
    path = xa.write(tmp_path, xa.run(3, bits=bits), bits=bits, syntax=syntax)
    frames = levels(dicom.open_dicom(path))
    data = dcmread(path)
    encoded = list(encaps.generate_frames(data.PixelData, number_of_frames=3))
    encoded[1] = encoded[1][: len(encoded[1]) * 2 // 3]
    encoded[1] += b"\xff\xd9" if cut == "with its end marker" else b""
    data.PixelData = encaps.encapsulate(encoded)
    data.save_as(path)
    case = dicom.open_dicom(path)
    np.testing.assert_array_equal(case.read(2), frames[2])
    with pytest.raises(UnreadableCase, match="decoded|ends"):
        case.read(1)
    np.testing.assert_array_equal(case.read(0), frames[0])
    with pytest.raises(IndexError):
        case.read(3)


def test_memory_is_that_of_a_frame(tmp_path):
    count, side = 120, 512
    path = xa.write(tmp_path, np.zeros((1, side, side), np.uint16), planted=False)
    data = dcmread(path)
    data.NumberOfFrames = count
    data.save_as(path)
    content = path.read_bytes()
    size = side * side * 2
    with open(path, "wb") as file:  # a sparse file: the length in front of the pixels, no pixels
        file.write(content[: -size - 4] + (count * size).to_bytes(4, "little"))
        file.truncate(len(content) - size + count * size)
    tracemalloc.start()
    try:
        case = dicom.open_dicom(path)
        assert case.read(count - 1).shape == (side, side)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * size


def test_threads_may_read_one_case(tmp_path):
    frames = xa.run(12, bits=12)
    for syntax in (uid.ExplicitVRLittleEndian, uid.JPEGLosslessSV1):
        case = opened(tmp_path, frames, bits=12, syntax=syntax, zipped=True)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            got = list(pool.map(case.read, [index % 12 for index in range(48)]))
        np.testing.assert_array_equal(np.stack(got), np.tile(frames, (4, 1, 1)))


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({}, None),
        ({"PixelSpacing": [0.2, 0.3]}, (0.2, 0.3, "pixel spacing")),
        ({"ImagerPixelSpacing": [0.2, 0.3]}, (0.2, 0.3, "imager pixel spacing")),
        (
            {"ImagerPixelSpacing": [0.2, 0.3], "EstimatedRadiographicMagnificationFactor": 1.25},
            (0.16, 0.24, "imager pixel spacing, corrected"),
        ),
        (
            {"PixelSpacing": [0.1, 0.1], "ImagerPixelSpacing": [0.2, 0.3],
             "EstimatedRadiographicMagnificationFactor": 1.25},
            (0.1, 0.1, "pixel spacing"),
        ),
        (
            {"PixelSpacing": [0.2, 0.3], "ImagerPixelSpacing": [0.2, 0.3]},
            (0.2, 0.3, "imager pixel spacing"),
        ),
        (
            {"PixelSpacing": [0.2, 0.3], "ImagerPixelSpacing": [0.2, 0.3],
             "PixelSpacingCalibrationType": "GEOMETRY"},
            (0.2, 0.3, "pixel spacing"),
        ),
        (
            {"ImagerPixelSpacing": [0.2, 0.3], "EstimatedRadiographicMagnificationFactor": 0},
            (0.2, 0.3, "imager pixel spacing"),
        ),
        ({"PixelSpacing": [0, 0.3]}, None),
        ({"PixelSpacing": [0.2]}, None),
        ({"PixelSpacing": [-0.2, 0.2], "ImagerPixelSpacing": [1e9, 1e9]}, None),
    ],
)  # fmt: skip
def test_spacing(tmp_path, elements, expected):
    spacing = opened(tmp_path, xa.run(), elements=elements).spacing
    if expected is None:
        assert spacing is None
    else:
        assert isinstance(spacing, Spacing)
        assert (spacing.rows_mm, spacing.columns_mm) == pytest.approx(expected[:2])
        assert spacing.source == expected[2]


def test_spacing_of_an_enhanced_run(tmp_path):
    properties, shared = Dataset(), Dataset()
    properties.ImagerPixelSpacing = [0.25, 0.25]
    shared.FramePixelDataPropertiesSequence = [properties]
    elements = {
        "SOPClassUID": uid.EnhancedXAImageStorage,
        "SharedFunctionalGroupsSequence": [shared],
    }
    case = opened(tmp_path, xa.run(), elements=elements)
    assert case.spacing == Spacing(0.25, 0.25, "imager pixel spacing")
    calibration = Dataset()
    calibration.ObjectPixelSpacingInCenterOfBeam = [0.18, 0.18]
    shared.ProjectionPixelCalibrationSequence = [calibration]
    case = opened(tmp_path, xa.run(), elements=elements)
    assert case.spacing and case.spacing.rows_mm == pytest.approx(0.18)
    assert case.spacing.source == "pixel spacing"


@pytest.mark.parametrize(("value", "expected"), [("YES", True), ("NO", False), (None, False)])
def test_burned_in_annotations(tmp_path, value, expected):
    case = opened(tmp_path, xa.run(), elements={"BurnedInAnnotation": value})
    assert case.burned_in is expected


def test_what_is_taken_for_a_dicom(tmp_path):
    run = xa.run()
    good = xa.write(tmp_path, run, name="IM0001")
    zipped = xa.write(tmp_path, run, name="IM0002", zipped=True)
    assert dicom.is_dicom(good) and dicom.is_dicom(zipped)
    contents = {
        "a.png": b"\x89PNG\r\n\x1a\n" + b"\0" * 200, "b.txt": b"hello " * 50, "c": b"",
        "d.gz": gzip.compress(b"x" * 500), "e.gz": b"\x1f\x8b\x08broken",
        "f.npy": b"\x93NUMPY" + b"\0" * 200, "DICOMDIR": good.read_bytes(),
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert not dicom.is_dicom(tmp_path / name), name
    (tmp_path / "empty.DCM").write_bytes(b"")
    assert dicom.is_dicom(tmp_path / "empty.DCM")
    assert dicom.is_dicom(tmp_path / "missing.dcm")
    assert not dicom.is_dicom(tmp_path / "missing") and not dicom.is_dicom(tmp_path)


def test_gdcm_comes_back_after_a_frame_that_ended_it(tmp_path):
    frames = xa.run(1, bits=12)
    path = xa.write(tmp_path, frames, bits=12, syntax=uid.JPEGLosslessSV1)
    worker = gdcm_process.Worker()
    good = next(encaps.generate_frames(dcmread(path).PixelData, number_of_frames=1))
    precision = codestream.head(good).precision
    options = dict(lossless=True, rows=37, columns=35, samples=1, precision=precision)
    expected = frames[0].tobytes()
    assert worker.decode(good, **options) == expected
    worker._process.kill()
    with pytest.raises(UnreadableCase):
        worker._process.wait()
        worker._start = lambda process=worker._process: process  # it ends between two frames
        worker.decode(good, **options)
    del worker._start
    assert worker.decode(good, **options) == expected
