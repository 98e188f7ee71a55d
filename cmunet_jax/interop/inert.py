"""What a pickle may become here: data, and stand-ins that can do nothing.

Nothing is imported and no class of a file is ever made. A name such as `model.UNet` stays a `Name`;
the few functions that PyTorch's files call are ours (`CALLS`), written from the documentation of
the format, and only check and note down their arguments.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

MAX_AXES = 32
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Modules of Python 2 that sys.stdlib_module_names does not know.
_PYTHON2 = {
    "__builtin__",
    "__builtins__",
    "cPickle",
    "copy_reg",
    "commands",
    "exceptions",
    "popen2",
}
_KNOWN_ROOTS = frozenset(
    {*sys.stdlib_module_names, *sys.builtin_module_names, *_PYTHON2, "torch", "numpy"}
)


class Refused(Exception):
    """A file is damaged, or asks for something that only code could do; the message says what."""


@dataclasses.dataclass(frozen=True)
class Name:
    """What a pickle calls by module and name; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Opaque:
    """Stands for an object of a class that is not known: its state, inert.

    Attributes:
      kind: the class.
      state: what its __setstate__ or __dict__ would have got; None before that.
      mapping, sequence: what was put into it, where the class is a kind of dict or list.
    """

    __slots__ = ("kind", "mapping", "sequence", "state")

    def __init__(self, kind: Name):
        self.kind = kind
        self.state: Any = None
        self.mapping: dict[Any, Any] = {}
        self.sequence: list[Any] = []


@dataclasses.dataclass(frozen=True)
class Storage:
    """A row of numbers in the file.

    Attributes:
      key: its name in the file.
      dtype: of a number.
      size: how many numbers.
      root: how many numbers the stored row has, of which this is `start` and on (old files share).
      start: in numbers.
    """

    key: str
    dtype: np.dtype
    size: int
    root: int
    start: int = 0


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides in numbers, checked to lie within it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class NumpyDtype:
    """A NumPy dtype; its byte order comes after it."""

    __slots__ = ("value",)

    def __init__(self, value: np.dtype):
        self.value = value


class NumpyArray:
    """A NumPy array, empty until its content comes."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = np.zeros(0)


_STORAGES = MappingProxyType(
    {
        "DoubleStorage": np.dtype("f8"),
        "FloatStorage": np.dtype("f4"),
        "HalfStorage": np.dtype("f2"),
        "BFloat16Storage": np.dtype(jnp.bfloat16),
        "LongStorage": np.dtype("i8"),
        "IntStorage": np.dtype("i4"),
        "ShortStorage": np.dtype("i2"),
        "CharStorage": np.dtype("i1"),
        "ByteStorage": np.dtype("u1"),
        "BoolStorage": np.dtype("?"),
    }
)
_TORCH_VALUES = frozenset(
    "float float16 float32 float64 half double bfloat16 int8 int16 int32 int64 uint8 long bool "
    "strided channels_last contiguous_format preserve_format Tensor Size".split()
)
# Whose classes may stand in the object graph of a whole module.
_TORCH_CLASSES = ("torch.nn", "torch.optim")


def name(module: str, attribute: str) -> Name:
    """A name, if it is one that weights may mention.

    Classes of unknown packages pass (a whole module consists of them): they are never imported.
    Of Python, NumPy and PyTorch only what belongs to weights passes.

    Raises:
      Refused: with the name.
    """
    parts = module.split(".")
    if not all(_IDENTIFIER.fullmatch(part) for part in (*parts, attribute)):
        raise Refused(
            f"it refers to {ascii(module)[:80]} {ascii(attribute)[:80]}, which is no class"
        )
    made = Name(module, attribute)
    if parts[0] not in _KNOWN_ROOTS or str(made) in CALLS or str(made) in _VALUES:
        return made
    if module == "torch" and (attribute in _STORAGES or attribute in _TORCH_VALUES):
        return made
    if module in _TORCH_CLASSES or module.startswith(tuple(f"{m}." for m in _TORCH_CLASSES)):
        return made
    raise Refused(f"it refers to {made}, which does not belong to weights")


def key(value: Any) -> Any:
    """A key of a dict or member of a set, if its hash costs nothing out of proportion.

    Hashing deep tuples overflows the stack, and chosen numbers can be made to collide.

    Raises:
      Refused: for anything but texts, small integers, names, and short tuples of them.
    """
    parts = value if type(value) is tuple else (value,)
    if len(parts) > 8 or not all(_is_plain(part) for part in parts):
        raise Refused(f"a dict or set in it has a key of type {type(value).__name__}")
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, int):
        return value.bit_length() < 64
    return value is None or isinstance(value, str | bytes | Name)


def storage(pid: Any) -> Storage:
    """The storage that a persistent id describes: ('storage', type, key, place, size[, view]).

    Raises:
      Refused: if it describes none.
    """
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise Refused("it refers to something outside itself that is no storage")
    kind, label, place, size, *view = pid[1:]
    if not isinstance(kind, Name) or kind.name not in _STORAGES or kind.module != "torch":
        found = str(kind) if isinstance(kind, Name) else type(kind).__name__
        raise Refused(f"a storage in it is a {found}, which is not supported")
    if not (isinstance(label, str) and isinstance(place, str) and label.isascii() and label):
        raise Refused("a storage in it has no proper name")
    dtype, size = _STORAGES[kind.name], _size(size)
    if not view or view[0] is None:
        return Storage(label, dtype, size, size)
    if not isinstance(view[0], tuple) or len(view[0]) != 3:
        raise Refused(f"storage {label!r:.40} is a view of nothing")
    start, part = _size(view[0][1]), _size(view[0][2])
    if start + part > size:
        raise Refused(f"storage {label!r:.40} is a view beyond its end")
    return Storage(label, dtype, part, size, start)


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise Refused("a size or an offset in it is no proper number")
    return value


def _tensor(stored: Any, offset: Any, shape: Any, strides: Any, *unused: Any) -> Tensor:
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2."""
    if not isinstance(stored, Storage) or len(unused) > 3:
        raise Refused("a tensor in it has no storage")
    if not (isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise Refused("a tensor in it has no shape")
    if len(shape) != len(strides) or len(shape) > MAX_AXES:
        raise Refused("a tensor in it has a shape and strides that do not agree")
    offset, sizes, steps = _size(offset), tuple(map(_size, shape)), tuple(map(_size, strides))
    count = math.prod(sizes)
    last = offset + sum((n - 1) * s for n, s in zip(sizes, steps, strict=True)) if count else 0
    # A stride of zero would make a small storage any size.
    if count > stored.size or last >= max(stored.size, 1):
        raise Refused(f"a tensor in it reaches beyond its storage ({ascii(stored.key)[:40]})")
    return Tensor(stored, offset, sizes, steps)


def _parameter(data: Any, *unused: Any) -> Tensor:
    """torch._utils._rebuild_parameter."""
    if not isinstance(data, Tensor) or len(unused) > 3:
        raise Refused("a parameter in it is no tensor")
    return data


def _pairs(items: Any = ()) -> dict[Any, Any]:
    """collections.OrderedDict and Counter."""
    if isinstance(items, dict):
        return dict(items)
    return {key(k): value for k, value in _list(items)}


def _default_dict(factory: Any = None) -> dict[Any, Any]:
    """collections.defaultdict, without what would make its defaults."""
    if not isinstance(factory, Name | None):
        raise Refused("a defaultdict in it has no name for what makes its defaults")
    return {}


def _list(items: Any = (), *unused: Any) -> list[Any]:
    if not isinstance(items, list | tuple):
        raise Refused("a container in it is made of what is no list")
    return list(items)


def _set(items: Any = ()) -> set[Any]:
    return {key(item) for item in _list(items)}


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """_codecs.encode, by which bytes are written in old pickles."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("bytes in it have an unknown encoding")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    """Empty bytes in old pickles; with arguments it is refused."""
    return b""


def _numpy_dtype(code: Any, *unused: Any) -> NumpyDtype:
    """numpy.dtype: numbers and truth values only, no objects and no records."""
    if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?([biuf][1248]|b1|\?)", code):
        raise Refused(f"it holds NumPy data of dtype {ascii(code)[:40]}: only numbers can be read")
    return NumpyDtype(np.dtype(code))


def _numpy_scalar(dtype: Any, data: Any = b"") -> Any:
    if not isinstance(dtype, NumpyDtype) or not isinstance(data, bytes):
        raise Refused("a NumPy number in it is damaged")
    return np.frombuffer(data, dtype.value, 1)[0].item()


def _numpy_array(kind: Any, *unused: Any) -> NumpyArray:
    if kind != Name("numpy", "ndarray"):
        raise Refused("a NumPy array in it is of another kind")
    return NumpyArray()


def fill(target: NumpyDtype | NumpyArray, state: Any) -> None:
    """Gives a dtype its byte order, or an array its content.

    Raises:
      Refused: if the state is none of numbers.
    """
    if not isinstance(state, tuple):
        raise Refused("NumPy data in it is damaged")
    if isinstance(target, NumpyDtype):
        if len(state) < 5 or state[1] not in ("<", ">", "|", "=") or any(state[2:5]):
            raise Refused("it holds NumPy data of records: only numbers can be read")
        target.value = target.value.newbyteorder(state[1])
        return
    if len(state) != 5:
        raise Refused("a NumPy array in it is damaged")
    _, shape, dtype, fortran, data = state
    if not (isinstance(dtype, NumpyDtype) and isinstance(data, bytes) and isinstance(shape, tuple)):
        raise Refused("it holds a NumPy array of Python objects: only numbers can be read")
    sizes = tuple(map(_size, shape))
    if len(sizes) > MAX_AXES or math.prod(sizes) * dtype.value.itemsize != len(data):
        raise Refused("a NumPy array in it has another size than its data")
    flat = np.frombuffer(data, dtype.value)
    target.value = flat.reshape(sizes, order="F" if fortran is True else "C")


def _note(*unused: Any) -> None:
    """Something that weights do not depend on: a device, an old backend."""


def _path(*parts: Any) -> str:
    """pathlib.Path, as text."""
    return "/".join(part[:200] for part in parts[:100] if isinstance(part, str))


def _size_tuple(items: Any = ()) -> tuple[Any, ...]:
    return tuple(_list(items))


CALLS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch.Size": _size_tuple,
        "torch.device": _note,
        "torch.nn.backends.thnn._get_thnn_function_backend": _note,
        "collections.OrderedDict": _pairs,
        "collections.Counter": _pairs,
        "collections.defaultdict": _default_dict,
        "collections.deque": _list,
        **{f"{m}.{c}": _set for m in ("builtins", "__builtin__") for c in ("set", "frozenset")},
        **{f"{module}.bytes": _no_bytes for module in ("builtins", "__builtin__")},
        "_codecs.encode": _encode,
        "numpy.dtype": _numpy_dtype,
        "numpy.core.multiarray._reconstruct": _numpy_array,
        "numpy._core.multiarray._reconstruct": _numpy_array,
        "numpy.core.multiarray.scalar": _numpy_scalar,
        "numpy._core.multiarray.scalar": _numpy_scalar,
        **{
            f"{module}.{kind}Path": _path
            for module in ("pathlib", "pathlib._local")  # the latter of Python 3.13
            for kind in ("Posix", "PurePosix", "Windows", "PureWindows")
        },
    }
)
"""The only functions that are ever called, under the names that pickles have for them."""
# Classes of Python and NumPy that may be mentioned, and made empty.
_VALUES = frozenset(
    [
        "numpy.ndarray",
        "argparse.Namespace",
        *(
            f"{m}.{c}"
            for m in ("builtins", "__builtin__")
            for c in ("int", "float", "str", "bool", "list", "dict", "tuple", "object")
        ),
    ]
)
