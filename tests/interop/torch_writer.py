"""Writes files in PyTorch's two formats by hand, without PyTorch: what the tests need of them."""

import io
import pickle
import struct
import zipfile

import numpy as np

STORAGES = {"f2": "Half", "f4": "Float", "f8": "Double", "i8": "Long", "u1": "Byte", "b1": "Bool"}
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


class Global:
    """A class or function, by module and name."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Object:
    """An object of a class: its state, as NEWOBJ and BUILD give it."""

    def __init__(self, kind, state):
        self.kind, self.state = kind, state


class Call:
    """A call, as REDUCE makes it."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class Outside:
    """A persistent id."""

    def __init__(self, pid):
        self.pid = pid


def opcodes(value):
    """The opcodes (protocol 2) that leave `value` on the stack."""
    if isinstance(value, Global):
        return b"c" + f"{value.module}\n{value.name}\n".encode()
    if isinstance(value, Object):
        return opcodes(value.kind) + b")\x81" + opcodes(value.state) + b"b"
    if isinstance(value, Call):
        return opcodes(value.function) + opcodes(value.arguments) + b"R"
    if isinstance(value, Outside):
        return opcodes(value.pid) + b"Q"
    if isinstance(value, dict):
        return b"}(" + b"".join(opcodes(k) + opcodes(v) for k, v in value.items()) + b"u"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(opcodes, value)) + b"e"
    plain = pickle.dumps(value, 2)  # PROTO is two bytes, STOP the last
    return plain[2:-1]


def pickled(value):
    """A whole pickle of protocol 2."""
    return b"\x80\x02" + opcodes(value) + b"."


class Storages:
    """Gives arrays as tensors, and keeps their storages."""

    def __init__(self):
        self.kept = {}

    def tensor(self, array, **changes):
        """A tensor of its own storage; `changes` of key, kind, size, offset, shape, strides."""
        array = np.asarray(array)
        key = changes.get("key", str(len(self.kept)))
        self.kept[key] = np.ascontiguousarray(array)
        kind = changes.get("kind", STORAGES[array.dtype.str[1:]] + "Storage")
        storage = Outside(
            ("storage", Global("torch", kind), key, "cpu", changes.get("size", array.size))
        )
        strides = tuple(s // array.itemsize for s in np.ascontiguousarray(array).strides)
        return Call(
            Global("torch._utils", "_rebuild_tensor_v2"),
            storage,
            changes.get("offset", 0),
            changes.get("shape", array.shape),
            changes.get("strides", strides[: array.ndim]),
            False,
            Call(Global("collections", "OrderedDict")),
        )

    def all(self, value):
        """`value` with its arrays as tensors."""
        if isinstance(value, np.ndarray):
            return self.tensor(value)
        if isinstance(value, dict):
            return {key: self.all(inner) for key, inner in value.items()}
        return value


def write_zip(path, content, *, order="little", kept=None, pickle_bytes=None, compress=False):
    """A file of PyTorch 1.6 and later; arrays in `content` become tensors."""
    storages = Storages()
    data = pickled(storages.all(content)) if pickle_bytes is None else pickle_bytes
    kept = storages.kept | (kept or {})
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", order)
        for key, array in kept.items():
            swapped = array.astype(array.dtype.newbyteorder(">" if order == "big" else "<"))
            archive.writestr(f"archive/data/{key}", swapped.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def write_legacy(path, content, *, kept=None, pickle_bytes=None):
    """A file of before PyTorch 1.6."""
    storages = Storages()
    data = pickled(storages.all(content)) if pickle_bytes is None else pickle_bytes
    kept = storages.kept | (kept or {})
    stream = io.BytesIO()
    info = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"int": 4}}
    for part in (pickled(MAGIC), pickled(VERSION), pickled(info), data, pickled(sorted(kept))):
        stream.write(part)
    for key in sorted(kept):
        stream.write(struct.pack("<q", kept[key].size) + kept[key].tobytes())
    path.write_bytes(stream.getvalue())
    return path
