"""Decodes JPEG frames with GDCM; a program, started and spoken to by gdcm_process.py.

GDCM is the decoder of lossless and of 12-bit JPEG that may be shipped, but it ends its process on
some corrupt frames and prints on others, so it gets a process that may be lost. Nothing of ours is
imported here: the start has to be quick.

A request is REQUEST and the codestream, an answer its length and the samples; length 0 is failure.
"""

from __future__ import annotations

import contextlib
import os
import resource
import struct
import sys
import tempfile

import gdcm

REQUEST = struct.Struct("<B4IQ")  # lossless or not, rows, columns, samples, precision, length
ANSWER = struct.Struct("<Q")
MEMORY = 4 * 2**30


def decode(
    data: bytes, *, lossless: bool, rows: int, columns: int, samples: int, precision: int
) -> bytes:
    """The samples of a frame, of 8 or 16 bits, little-endian, colours pixel by pixel."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(data)
    sequence = gdcm.SequenceOfFragments.New()
    sequence.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(sequence.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    meaning, syntax = gdcm.PhotometricInterpretation, gdcm.TransferSyntax
    colour = meaning.RGB if samples == 3 else meaning.MONOCHROME2
    image.SetPhotometricInterpretation(meaning(colour))
    process = syntax.JPEGLosslessProcess14 if lossless else syntax.JPEGExtendedProcess2_4
    image.SetTransferSyntax(syntax(process))
    allocated = 8 if precision <= 8 else 16
    image.SetPixelFormat(gdcm.PixelFormat(samples, allocated, precision, precision - 1, 0))
    return image.GetBuffer().encode("utf-8", "surrogateescape")  # SWIG gives bytes as text


def main() -> None:
    """Answers requests until there are no more."""
    with contextlib.suppress(ValueError, OSError):  # not every system lets a process do so
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "wb")
    with tempfile.TemporaryFile() as said:
        for descriptor in (1, 2):  # what C prints is no answer, and no message to a user
            os.dup2(said.fileno(), descriptor)
        while len(head := sys.stdin.buffer.read(REQUEST.size)) == REQUEST.size:
            lossless, rows, columns, samples, precision, length = REQUEST.unpack(head)
            try:
                frame = decode(
                    sys.stdin.buffer.read(length), lossless=bool(lossless), rows=rows,
                    columns=columns, samples=samples, precision=precision,
                )  # fmt: skip
            except Exception as error:
                frame = b""
                print(type(error).__name__, file=sys.stderr, flush=True)
            if _damaged(said.fileno()):
                frame = b""
            answers.write(ANSWER.pack(len(frame)) + frame)
            answers.flush()


def _damaged(said: int) -> bool:
    """Whether GDCM's libjpeg warned that it made up pixels; it does not return it as an error."""
    text = os.pread(said, 2**16, 0)
    os.ftruncate(said, 0)
    os.lseek(said, 0, os.SEEK_SET)
    return any(b"Corrupt JPEG" in x and b"extraneous bytes" not in x for x in text.splitlines())


if __name__ == "__main__":
    main()
