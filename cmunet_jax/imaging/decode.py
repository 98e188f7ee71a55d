"""One frame of a DICOM's pixel data as grey levels."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import encaps, uid
from pydicom.pixels import get_decoder

from cmunet_jax.imaging import codestream, gdcm_process
from cmunet_jax.imaging.case import UnreadableCase
from cmunet_jax.imaging.frames import Frames
from cmunet_jax.imaging.pixel_format import COMPRESSED, NATIVE, Format
from cmunet_jax.imaging.unpacked import Window
from tfds_angio import images


def read(window: Window, frames: Frames, index: int) -> NDArray[np.generic]:
    """Decodes a frame to the grey levels of its stored values.

    Bits that are not stored (old overlays, garbage) are masked off, signed values are moved so
    that the least becomes 0, MONOCHROME1 is inverted. No lookup table or window of the header is
    applied: see docs/dicom.md.

    Returns:
      [H, W] uint8 or uint16.

    Raises:
      UnreadableCase: the frame is corrupt or of another size than the header says.
    """
    form, pieces = frames.form, frames.pieces[index]
    if form.syntax in NATIVE:
        data = _native(window, *pieces[0], frames.swapped_from)
        return _grey(_as_array(form, data, form.allocated), form, form.stored, form.high_bit)
    # No codec makes a frame much larger than it is uncompressed, so what is longer is no frame.
    if sum(size for _, size in pieces) > 2 * form.frame_bytes + 2**16:
        raise UnreadableCase("a compressed frame is longer than any frame of its size")
    data = b"".join(_at(window, *piece) for piece in pieces)
    if form.syntax == uid.RLELossless:
        array = _as_array(form, encaps.encapsulate([data]), form.allocated)
        return _grey(array, form, form.stored, form.high_bit)
    return _decode(form, data)


def _at(window: Window, offset: int, length: int) -> bytes:
    window.seek(offset)
    data = window.read(length)
    if len(data) != length:
        raise UnreadableCase("truncated: the file ends within the pixel data")
    return data


def _native(window: Window, offset: int, length: int, swapped_from: int | None) -> bytes:
    if swapped_from is None:
        return _at(window, offset, length)
    # A frame of an odd number of bytes begins or ends within a word.
    before = (offset - swapped_from) % 2
    words = np.frombuffer(_at(window, offset - before, (before + length + 1) // 2 * 2), np.uint16)
    return words.byteswap().tobytes()[before : before + length]


def _decode(form: Format, data: bytes) -> NDArray[np.generic]:
    plugin, processes = COMPRESSED[form.syntax]
    head = codestream.head(data)
    if head.process not in processes:
        raise UnreadableCase("a compressed frame is not what its transfer syntax says")
    if (head.height, head.width, head.components) != (form.rows, form.columns, form.samples):
        raise UnreadableCase(
            f"a compressed frame is {head.width}x{head.height} with {head.components} components, "
            f"its header says {form.columns}x{form.rows} with {form.samples}"
        )
    if not 2 <= head.precision <= 16:
        raise UnreadableCase(f"{head.precision} bits a pixel; from 2 to 16 can be read")
    # Padding may follow the marker, but where there is none decoders fill up with grey.
    if b"\xff\xd9" not in data[-64:]:
        raise UnreadableCase("truncated: a compressed frame ends too early")
    # Pillow knows more of colours, but neither 12 bits nor that a frame is damaged.
    if plugin == "gdcm" or (plugin == "pillow" and (form.samples == 1 or head.precision > 8)):
        array = _by_gdcm(form, data, head)
    else:
        array = _as_array(form, encaps.encapsulate([data]), 8 if head.precision <= 8 else 16)
    bits = min(form.stored, head.precision)
    return _grey(array, form, bits, bits - 1)


def _by_gdcm(form: Format, data: bytes, head: codestream.Codestream) -> NDArray[np.generic]:
    """[H, W] or [H, W, 3], uint8 or uint16. pydicom has no other decoder for these."""
    if form.samples == 3 and form.photometric != "RGB":
        raise UnreadableCase("lossless or 12-bit JPEG in colours that are not RGB")
    buffer = gdcm_process.worker(os.getpid()).decode(
        data,
        lossless=head.process == codestream.LOSSLESS,
        rows=form.rows,
        columns=form.columns,
        samples=form.samples,
        precision=head.precision,
    )
    shape = (form.rows, form.columns, 3)[: 3 if form.samples == 3 else 2]
    return np.frombuffer(buffer, "<u1" if head.precision <= 8 else "<u2").reshape(shape)


def _as_array(form: Format, data: bytes, allocated: int) -> NDArray[np.generic]:
    """[H, W] or [H, W, 3] (RGB) of 8 or 16 bits, signed or not, nothing masked."""
    options: dict[str, Any] = {
        "rows": form.rows,
        "columns": form.columns,
        "samples_per_pixel": form.samples,
        "planar_configuration": form.planar,
        "photometric_interpretation": form.photometric,
        "number_of_frames": 1,
        "bits_allocated": allocated,
        "bits_stored": min(form.stored, allocated),
        "pixel_representation": int(form.signed),
        "pixel_keyword": "PixelData",
        "pixel_vr": "OB" if allocated == 8 else "OW",
        "correct_unused_bits": False,  # _grey does, also where they lie below the stored ones
    }
    plugin = COMPRESSED[form.syntax][0] if form.syntax in COMPRESSED else ""
    decoder = get_decoder(form.syntax)
    try:
        array, _ = decoder.as_array(data, index=0, decoding_plugin=plugin, **options)
    except MemoryError:
        raise
    except Exception as error:  # decoders fail in many ways; the text may be long, and is not ours
        raise UnreadableCase(
            f"corrupt: a frame cannot be decoded ({type(error).__name__})"
        ) from None
    return array


def _grey(
    array: NDArray[np.generic], form: Format, bits: int, high_bit: int
) -> NDArray[np.generic]:
    """Grey levels 0..2^bits-1 of stored values, [H, W] uint8 or uint16."""
    if form.samples == 3:
        return images.grey(array)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    values = array.view(f"u{array.dtype.itemsize}") >> (high_bit + 1 - bits)
    most = 2**bits - 1
    values &= most
    if form.signed:
        values ^= 1 << (bits - 1)  # two's complement to the same order without a sign
    if form.photometric == "MONOCHROME1":
        values = most - values
    return values.astype(np.uint8 if bits <= 8 else np.uint16)
