"""The bytes of a DICOM, whatever it is packed in: plain, gzipped, or of the deflated syntax.

What is packed is unpacked into an anonymous temporary file, with bounds, and only while it is
needed: a folder of thousands of packed runs costs the space of one.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import pathlib
import stat
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from cmunet_jax.imaging.case import UnreadableCase

GZIP = b"\x1f\x8b"
PREAMBLE = 128
PREFIX = b"DICM"
# The length of native pixel data has 32 bits, so no honest packed file holds more than this and
# a header; and noise of a detector never packs as well as this ratio, which a bomb has to exceed.
LARGEST = 2**32 + 2**28
RATIO, RATIO_FROM = 200, 2**28
_BLOCK = 2**20


class File:
    """An open file, closed when nothing refers to it any more: threads may share it.

    Attributes:
      number: of the file, for the system.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        weakref.finalize(self, os.close, number)


class Window:
    """A file as pydicom reads it, which asks for as many bytes as a header says there are.

    Its position is its own, so that several threads can read one file.

    Attributes:
      size: of the file in bytes. No read reserves memory for more than what is there.
      short: whether more was asked for than there is: the file ends within an element.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        self._at = 0
        self.size = os.fstat(file.number).st_size
        self.short = False

    def read(self, count: int = -1) -> bytes:
        """Up to `count` bytes; all that are left for a negative `count`."""
        left = max(self.size - self._at, 0)
        wanted = left if count < 0 else min(count, left)
        data = os.pread(self._file.number, wanted, self._at)
        self._at += len(data)
        # Readers find the end of a file by asking for the 8 bytes of an element that is not there.
        self.short |= 0 < len(data) < count or (count > 8 and not data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of a file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(base + offset, 0)
        self.short |= self._at > self.size
        return self._at

    def tell(self) -> int:
        """As of a file."""
        return self._at


def read_meta(window: Window) -> Dataset:
    """The file meta information; leaves `window` at the first byte after it.

    Preamble and meta information may be missing, as in files from before 1993 and from some tools.
    """
    window.seek(0)
    if window.read(PREAMBLE + 4)[PREAMBLE:] != PREFIX:
        window.seek(0)
    return read_dataset(
        window,  # type: ignore[arg-type]  # it has what pydicom uses of a file
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag.group != 2,
    )


class Unpacked:
    """A DICOM on disk, of which `open` gives the bytes from the data set on.

    Args:
      path: of the file.
      opener: opens it for reading, and returns the descriptor; the path is opened by default.

    Raises:
      UnreadableCase: there is none, or it is no file.
    """

    def __init__(self, path: pathlib.Path, opener: Callable[[], int] | None = None) -> None:
        self.path = path
        self._opener = opener
        self._stamp = _stamp(path)
        self._copy: _Content | None = None

    def descriptor(self) -> int:
        """The packed file, opened for reading.

        Raises:
          UnreadableCase: it cannot be opened, or is no longer what it was.
        """
        with reasons():
            number = self._opener() if self._opener else os.open(self.path, os.O_RDONLY)
            try:
                self._same(number)
            except UnreadableCase:
                os.close(number)
                raise
        return number

    def _same(self, file: pathlib.Path | int) -> None:
        if _stamp(file) != self._stamp:
            raise UnreadableCase("the file changed while it was being used")

    @contextlib.contextmanager
    def open(self) -> Iterator[tuple[Window, Dataset]]:
        """Gives (the bytes, at the start of the data set; the file meta information).

        A packed file stays unpacked until `release`. Several threads may be within.

        Raises:
          UnreadableCase: the file cannot be read or unpacked, or is no longer what it was.
        """
        with reasons():
            self._same(self.path)
            content = self._copy or self._unpack()
            window = Window(content.file)
            window.seek(content.start)
            yield window, content.meta

    def release(self) -> None:
        """Frees the space of an unpacked copy; the next `open` makes it again."""
        self._copy = None

    def _unpack(self) -> _Content:
        file = File(self.descriptor())
        zipped = Window(file).read(2) == GZIP
        if zipped:
            with (
                os.fdopen(self.descriptor(), "rb") as packed,
                gzip.GzipFile(fileobj=packed) as stream,
            ):
                file = _copy(stream, self._stamp[1])
        window = Window(file)
        if not window.size:
            raise UnreadableCase("empty file")
        meta = read_meta(window)
        start = window.tell()
        deflated = meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
        if deflated:
            file, start = _copy(_Inflated(window), window.size), 0
        content = _Content(file, meta, start)
        if zipped or deflated:
            self._copy = content
        return content


@dataclass(frozen=True)
class _Content:
    file: File
    meta: Dataset
    start: int


class _Inflated:
    """What a raw deflate stream holds, read as a file."""

    def __init__(self, packed: Window) -> None:
        self._packed = packed
        self._stream = zlib.decompressobj(-zlib.MAX_WBITS)

    def read(self, count: int) -> bytes:
        while not self._stream.eof:
            packed = self._stream.unconsumed_tail or self._packed.read(_BLOCK)
            data = self._stream.decompress(packed, count)
            if data or not packed:
                if not data:
                    raise EOFError
                return data
        return b""


def _copy(stream: gzip.GzipFile | _Inflated, packed_size: int) -> File:
    """All of `stream` in a file without a name."""
    written = 0
    with tempfile.TemporaryFile() as target:
        while block := stream.read(_BLOCK):
            written += len(block)
            if written > LARGEST or (written > RATIO_FROM and written > RATIO * packed_size):
                raise UnreadableCase("it unpacks to an absurd size")
            target.write(block)
        target.flush()
        return File(os.dup(target.fileno()))


def _stamp(file: pathlib.Path | int) -> tuple[int, int, int]:
    with reasons():
        found = os.stat(file)
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for whoever writes into it
        raise UnreadableCase("it is not a file")
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def reasons() -> Iterator[None]:
    """Turns what can go wrong within into UnreadableCase.

    The reasons are ours: the text of an exception may quote a value or the path, and either may
    name the patient.
    """
    try:
        yield
    except UnreadableCase:
        raise
    except EOFError:
        raise UnreadableCase("truncated: its compressed content ends too early") from None
    except (gzip.BadGzipFile, zlib.error):
        raise UnreadableCase("its compressed content is corrupt") from None
    except RecursionError:
        raise UnreadableCase("its sequences are nested absurdly deep") from None
    except MemoryError:
        raise UnreadableCase("too large for the memory, or corrupt") from None
    except OSError as error:
        if error.errno is None:  # pydicom's own, of elements and items that make no sense
            raise UnreadableCase("truncated or corrupt") from None
        raise UnreadableCase(f"cannot be read ({os.strerror(error.errno)})") from None
    except Exception as error:  # pydicom and the decoders fail in many ways on nonsense
        raise UnreadableCase(f"corrupt: it cannot be parsed ({type(error).__name__})") from None
