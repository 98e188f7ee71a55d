"""Opens files that PyTorch wrote, without PyTorch: what is in them, and their tensors as arrays.

Two formats. Since PyTorch 1.6 a file is a zip of uncompressed members: NAME/data.pkl, one
NAME/data/KEY a storage, NAME/byteorder. Before, it is a row of pickles (a magic number, a version,
the writer's type sizes, the content, the storages' keys) and after them the storages, each behind
its length.
Every size is compared with the size of the file before anything is allocated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import mmap
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cmunet_jax.interop import inert, pickles, safetensors_file
from cmunet_jax.interop.inert import Refused, Storage, Tensor
from tfds_angio.errors import UserError

MAX_PICKLE = 64 * 2**20  # bytes; that of a U-Net has some ten thousand
MAX_MEMBERS = 100_000
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_SAVE_AGAIN = (
    "If you trust where it is from, load it in PyTorch and save its state_dict: "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)
_LFS = b"version https://git-lfs.github.com/spec/"


@dataclasses.dataclass(frozen=True)
class TorchFile:
    """An open file.

    Attributes:
      kind: 'zip', 'legacy' or 'safetensors'.
      content: what was saved; tensors are `inert.Tensor`, or arrays already.
      raw: gives the bytes of a storage's root.
      order: '<' or '>', the byte order of the storages.
      metadata: texts in the header of a safetensors file.
    """

    kind: str
    content: Any
    raw: Callable[[Storage], Any]
    order: str = "<"
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def array(self, tensor: Any) -> np.ndarray:
        """The values of one tensor, in memory of their own.

        Raises:
          Refused: if its storage is damaged.
        """
        if isinstance(tensor, np.ndarray):
            return tensor
        stored = tensor.storage
        width = stored.dtype.itemsize
        if 0 in tensor.shape:
            return np.zeros(tensor.shape, stored.dtype)
        # As integers first: bfloat16 has no byte order in NumPy.
        words = np.frombuffer(self.raw(stored), f"{self.order}u{width}")
        start = stored.start + tensor.offset
        strides = [step * width for step in tensor.strides]
        view = np.lib.stride_tricks.as_strided(
            words[start:], tensor.shape, strides, writeable=False
        )
        words = view.astype(f"=u{width}")  # copies, and swaps the bytes where they must be
        return words != 0 if stored.dtype == np.bool_ else words.view(stored.dtype)


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[TorchFile]:
    """Opens a weights file: PyTorch's zip or legacy format, or safetensors.

    Raises:
      UserError: naming the file, if it cannot be read, is of another kind, is damaged, or holds
        what only code could make; also for what is found while it is open.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            size = file.seek(0, 2)
            _check_kind(path, head, size)
            if head.startswith(b"PK"):
                with _archive(file) as archive:
                    yield _open_zip(archive, size)
            elif _is_safetensors(head, size):
                yield _open_safetensors(path)
            else:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
                    yield _open_legacy(memory, size)
    except Refused as error:
        raise UserError(f"{path} is not imported: {error}. {_SAVE_AGAIN}") from error
    except zipfile.BadZipFile as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is damaged ({reason}). Download it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def _check_kind(path: Path, head: bytes, size: int) -> None:
    """Recognises what people have in place of weights, and says what to do about it."""
    text = head.lstrip()[:200].lower()
    if not size:
        raise UserError(f"{path} is empty. Download it again.")
    if head.startswith(_LFS):
        words = head.decode("ascii", "replace").split()
        told = words[words.index("size") + 1 : words.index("size") + 2] if "size" in words else []
        of = f" of {int(told[0]):,} bytes" if told and told[0].isdecimal() else ""
        raise UserError(
            f"{path} is a Git LFS pointer, the placeholder of a file{of}, and not the file. In its "
            "repository run `git lfs install` and `git lfs pull`, or download it by its web page."
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(
            f"{path} is a web page and not weights: the download got a page about the file, or one "
            "that asks to log in. Download the file itself."
        )
    others = {
        b"\x1f\x8b": "compressed (gzip): unpack it first",
        b"\x89HDF": "an HDF5 file, as of Keras, and not of PyTorch",
        b"7z\xbc\xaf": "a 7z archive: unpack it first",
        b"Rar!": "a RAR archive: unpack it first",
        b"\x93NUMPY": "a NumPy array and not weights",
    }
    for magic, what in others.items():
        if head.startswith(magic):
            raise UserError(f"{path} is {what}.")
    if head[257:262] == b"ustar":
        raise UserError(f"{path} is a tar archive: unpack it, or save it again with a new PyTorch.")
    known = head.startswith((b"PK\3\4", b"\x80")) or _is_safetensors(head, size)
    if not known and not pickles.begins_with_call(head):
        raise UserError(
            f"{path} is no file of weights: it is neither of PyTorch (.pt, .pth, .ckpt) nor "
            "safetensors."
        )


def _is_safetensors(head: bytes, size: int) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _open_safetensors(path: Path) -> TorchFile:
    tensors, metadata = safetensors_file.read_tensors(path)
    return TorchFile("safetensors", tensors, _refuse_outside, metadata=metadata)


@contextlib.contextmanager
def _zip_errors() -> Iterator[None]:
    """What zipfile raises for damage, as its one error for that."""
    try:
        yield
    except (ValueError, RuntimeError, EOFError, OverflowError, struct.error) as error:
        raise zipfile.BadZipFile(str(error)) from error


def _archive(file: BinaryIO) -> zipfile.ZipFile:
    with _zip_errors():
        return zipfile.ZipFile(file)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a member, whose checksum is verified."""
    with _zip_errors():
        return archive.read(name)


def _open_zip(archive: zipfile.ZipFile, size: int) -> TorchFile:
    members = {info.filename: info for info in archive.infolist()[: MAX_MEMBERS + 1]}
    if len(members) > MAX_MEMBERS:
        raise Refused(f"it has more than {MAX_MEMBERS:,} members")
    if any(i.compress_type != zipfile.ZIP_STORED or i.flag_bits & 1 for i in members.values()):
        raise Refused("its members are compressed or encrypted, which PyTorch does not do")
    if sum(info.file_size for info in members.values()) > size:
        raise Refused("its members overlap or announce more bytes than the file has")
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Refused("it is a zip archive, but not one of PyTorch (no data.pkl in it)")
    root = roots[0]
    if f"{root}constants.pkl" in members or any(n.startswith(f"{root}code/") for n in members):
        raise Refused("it is a TorchScript program, which has code in it")
    if members[f"{root}data.pkl"].file_size > MAX_PICKLE:
        raise Refused(f"its data.pkl has more than {MAX_PICKLE >> 20} MiB")

    def outside(pid: Any) -> Any:
        stored = inert.storage(pid)
        info = members.get(f"{root}data/{stored.key}")
        wanted = stored.root * stored.dtype.itemsize
        if info is None or info.file_size != wanted:
            found = "is missing" if info is None else f"has {info.file_size:,} bytes"
            raise Refused(f"its storage {ascii(stored.key):.40} of {wanted:,} bytes {found}")
        return stored

    order = _member(archive, f"{root}byteorder") if f"{root}byteorder" in members else b"little"
    if order not in (b"little", b"big"):
        raise Refused("its byte order is neither little nor big")
    content = pickles.load(io.BytesIO(_member(archive, f"{root}data.pkl")), outside)
    raw = lambda stored: _member(archive, f"{root}data/{stored.key}")  # noqa: E731
    return TorchFile("zip", content, raw, ">" if order == b"big" else "<")


def _open_legacy(memory: mmap.mmap, size: int) -> TorchFile:
    """A file of before PyTorch 1.6; its storages are little-endian on every machine."""
    refuse_all = _refuse_outside
    try:
        magic = pickles.load(memory, refuse_all)
    except Refused as error:
        raise Refused(f"it is a pickle, but not one of PyTorch ({error})") from error
    if type(magic) is not int or magic != _MAGIC:
        raise Refused("it is a pickle, but not one of PyTorch (no magic number)")
    if pickles.load(memory, refuse_all) != _VERSION:
        raise Refused(f"it is not of version {_VERSION} of PyTorch's old format")
    pickles.load(memory, refuse_all)
    declared: dict[str, Storage] = {}

    def outside(pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
            return pid[1]  # the class of a whole module, with its source text, which nobody needs
        stored = inert.storage(pid)
        before = declared.setdefault(stored.key, stored)
        if (before.root, before.dtype) != (stored.root, stored.dtype):
            raise Refused(f"its storage {ascii(stored.key):.40} has two sizes")
        return stored

    content = pickles.load(memory, outside)
    keys = pickles.load(memory, refuse_all)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Refused("its list of storages is damaged")
    places = _places(memory, size, keys, declared)

    def raw(stored: Storage) -> Any:
        if stored.key not in places:
            raise Refused(f"its storage {ascii(stored.key):.40} is missing")
        start = places[stored.key]
        return memory[start : start + stored.root * stored.dtype.itemsize]

    return TorchFile("legacy", content, raw)


def _refuse_outside(pid: Any) -> Any:
    raise Refused("it refers to a storage where none can be")


def _places(
    memory: mmap.mmap, size: int, keys: list[str], declared: Mapping[str, Storage]
) -> dict[str, int]:
    """Where each storage starts: they lie in the order of `keys`, each behind its length."""
    places: dict[str, int] = {}
    position = memory.tell()
    for key in keys:
        stored = declared.get(key)
        if stored is None or key in places or position + 8 > size:
            raise Refused("its list of storages does not fit what it holds")
        (count,) = struct.unpack("<q", memory[position : position + 8])
        end = position + 8 + stored.root * stored.dtype.itemsize
        if count != stored.root or end > size:
            raise Refused(f"its storage {ascii(key):.40} is damaged or not complete")
        places[key] = position + 8
        position = end
    return places


def is_tensor(value: Any) -> bool:
    """Whether a value in the content of a file is a tensor."""
    return isinstance(value, Tensor | np.ndarray)
