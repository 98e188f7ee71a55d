"""Reads a pickle as the description of data that it mostly is, without executing it.

`pickletools` of the standard library cuts the bytes into opcodes; this module gives the opcodes of
data their meaning, by a table. Opcodes that make objects are kept to `interop.inert`: a class gives
a stand-in, a function is called only if it is one of ours under a known name. There is no
`pickle.Unpickler`, no import and no attribute access in here.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from cmunet_jax.interop import inert
from cmunet_jax.interop.inert import Name, NumpyArray, NumpyDtype, Opaque, Refused

MAX_OPCODES = 4_000_000
# Bytes that calls may copy, about: a few bytes of a pickle can ask for the copy of a long list.
MAX_COPIED = 1 << 28
_BYTES_PER_ITEM = 64


class Source(Protocol):
    """Bytes that can be read on: a BytesIO, or an mmap of a file."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; fewer only at the end."""

    def readline(self) -> bytes:
        """Up to and with the next line feed."""

    def tell(self) -> int:
        """The position."""


class _Machine:
    """The stack machine of a pickle: a stack in sections (marks), a memo, a way to the outside."""

    def __init__(self, outside: Callable[[Any], Any]):
        self.sections: list[list[Any]] = []
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.outside = outside
        self.copied = 0

    def pop(self) -> Any:
        if not self.stack:
            raise Refused("it takes more from its stack than there is")
        return self.stack.pop()

    @property
    def top(self) -> Any:
        if not self.stack:
            raise Refused("it takes more from its stack than there is")
        return self.stack[-1]

    def section(self) -> list[Any]:
        """The values since the last mark."""
        if not self.sections:
            raise Refused("it takes more from its stack than there is")
        values, self.stack = self.stack, self.sections.pop()
        return values


def load(source: Source, outside: Callable[[Any], Any]) -> Any:
    """Reads one pickle, up to its end; the source is left behind it.

    Args:
      source: its bytes. Texts and numbers of the result are no larger than what was read.
      outside: called with each persistent id, gives what stands for it; may raise Refused.

    Returns:
      Numbers, texts, lists, tuples, dicts, sets, and the classes of `interop.inert`.

    Raises:
      Refused: if it is damaged, too long, or holds anything that only code could make.
    """
    machine = _Machine(outside)
    opcodes = pickletools.genops(source)  # type: ignore[arg-type]
    for count in range(MAX_OPCODES):
        try:
            opcode, argument, _ = next(opcodes)
        except (ValueError, OverflowError, struct.error, StopIteration) as error:
            raise Refused("its pickle is damaged or not complete") from error
        if opcode.name == "STOP":
            value = machine.pop()
            if machine.stack or machine.sections:
                raise Refused(f"its pickle ends with values left over, after {count} opcodes")
            return value
        handle = _OPCODES.get(opcode.name)
        if handle is None:
            raise Refused(_unknown(machine, opcode.name, argument))
        handle(machine, argument)
    raise Refused(f"its pickle has more than {MAX_OPCODES:,} opcodes")


def begins_with_call(head: bytes) -> bool:
    """Whether bytes begin as a pickle that refers to something by name and makes use of it.

    Pickles of protocols 0 and 1 have no first bytes of their own, and many a text begins as one
    does: so it is told only of what would be refused by that name.
    """
    named = False
    try:
        for opcode, argument, _ in pickletools.genops(head):
            if opcode.name in ("GLOBAL", "INST"):
                if not all(map(str.isidentifier, str(argument).replace(" ", ".").split("."))):
                    return False
                named = True
            if named and opcode.name in ("INST", "OBJ", "REDUCE", "STOP"):
                return True
    except (ValueError, OverflowError, struct.error):
        return False  # a text, or cut before it used the name
    return False


def _unknown(machine: _Machine, opcode: str, argument: Any) -> str:
    """Names what an opcode outside the table would have made, where that can be seen."""
    behind = {"NEWOBJ_EX": -3, "OBJ": 0}.get(opcode)
    about = ""
    if behind is not None and len(machine.stack) >= abs(behind) and machine.stack:
        about = str(machine.stack[behind]) if isinstance(machine.stack[behind], Name) else ""
    elif opcode == "INST":
        about = ".".join(str(argument)[:120].split(" ", 1))
    elif opcode.startswith("EXT"):
        about = f"number {argument} of the copyreg registry"
    return f"it uses the opcode {opcode}{f' to make {ascii(about)[1:-1]:.120}' if about else ''}"


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _nothing(machine: _Machine, argument: Any) -> None:
    """Protocol and frame headers have no meaning for the result."""


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: machine.stack.append(value)


def _empty(kind: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: machine.stack.append(kind())


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def handle(machine: _Machine, argument: Any) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(values)))

    return handle


def _mark(machine: _Machine, argument: Any) -> None:
    machine.sections.append(machine.stack)
    machine.stack = []


def _pop(machine: _Machine, argument: Any) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.section()


def _pop_mark(machine: _Machine, argument: Any) -> None:
    machine.section()


def _from_section(make: Callable[[list[Any]], Any]) -> Callable[[_Machine, Any], None]:
    def handle(machine: _Machine, argument: Any) -> None:
        values = machine.section()
        machine.stack.append(make(values))

    return handle


def _dict(values: list[Any]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    _set_items(made, values)
    return made


def _set_items(target: Any, values: list[Any]) -> None:
    if isinstance(target, Opaque):
        target = target.mapping
    if not isinstance(target, dict) or len(values) % 2:
        raise Refused("it sets entries of what is no dict")
    for index in range(0, len(values), 2):
        target[inert.key(values[index])] = values[index + 1]


def _set_item(machine: _Machine, argument: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _set_items(machine.top, [key, value])


def _set_section(machine: _Machine, argument: Any) -> None:
    values = machine.section()
    _set_items(machine.top, values)


def _extend(machine: _Machine, values: list[Any]) -> None:
    target = machine.top.sequence if isinstance(machine.top, Opaque) else machine.top
    if not isinstance(target, list):
        raise Refused("it appends to what is no list")
    target.extend(values)


def _append(machine: _Machine, argument: Any) -> None:
    value = machine.pop()
    _extend(machine, [value])


def _append_section(machine: _Machine, argument: Any) -> None:
    values = machine.section()
    _extend(machine, values)


def _add_section(machine: _Machine, argument: Any) -> None:
    values = machine.section()
    if not isinstance(machine.top, set):
        raise Refused("it adds to what is no set")
    machine.top.update(inert.key(value) for value in values)


def _put(machine: _Machine, argument: Any) -> None:
    # A dict: the number is a name, and costs no memory however large.
    machine.memo[len(machine.memo) if argument is None else int(argument)] = machine.top


def _get(machine: _Machine, argument: Any) -> None:
    if argument not in machine.memo:
        raise Refused("it refers to a value that it does not have")
    machine.stack.append(machine.memo[argument])


def _global(machine: _Machine, argument: Any) -> None:
    module, _, name = str(argument).partition(" ")
    machine.stack.append(inert.name(module, name))


def _stack_global(machine: _Machine, argument: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise Refused("it refers to a class that has no name")
    machine.stack.append(inert.name(module, name))


def _outside(machine: _Machine, argument: Any) -> None:
    machine.stack.append(machine.outside(machine.pop()))


def _reduce(machine: _Machine, argument: Any) -> None:
    """A call: of one of our functions, under its known name, or none."""
    arguments, function = machine.pop(), machine.pop()
    called = inert.CALLS.get(str(function)) if isinstance(function, Name) else None
    if called is None:
        what = str(function) if isinstance(function, Name) else f"a {type(function).__name__}"
        raise Refused(f"it calls {what}, which does not belong to weights")
    if not isinstance(arguments, tuple):
        raise Refused(f"it calls {function} without arguments")
    machine.copied += sum(map(_extent, arguments))
    if machine.copied > MAX_COPIED:
        raise Refused(f"its calls copy more than {MAX_COPIED >> 20} MiB")
    try:
        machine.stack.append(called(*arguments))
    except (TypeError, ValueError) as error:
        raise Refused(f"it calls {function} with arguments that do not fit") from error


def _extent(argument: Any) -> int:
    """About the bytes of a copy of an argument, which shares what is in it."""
    if isinstance(argument, str | bytes):
        return len(argument)
    if isinstance(argument, list | tuple | dict | set):
        return _BYTES_PER_ITEM * len(argument)
    return 0


def _new_object(machine: _Machine, argument: Any) -> None:
    """An object before its state is known; what its class would do with arguments, we cannot."""
    arguments, kind = machine.pop(), machine.pop()
    if not isinstance(kind, Name):
        raise Refused(f"it makes an object of a {type(kind).__name__}")
    if arguments != ():
        raise Refused(f"it makes a {kind} from arguments, which only its code could do")
    if str(kind) in inert.CALLS:
        machine.stack.append(kind)
        machine.stack.append(())
        _reduce(machine, None)
    else:
        machine.stack.append(Opaque(kind))


def _build(machine: _Machine, argument: Any) -> None:
    """The state of an object. Attributes of containers are left out: they hold no weights."""
    state = machine.pop()
    target = machine.top
    if isinstance(target, NumpyDtype | NumpyArray):
        try:
            inert.fill(target, state)
        except ValueError as error:
            raise Refused("a NumPy array in it has an impossible shape") from error
    elif isinstance(target, Opaque):
        target.state = state
    elif not isinstance(target, dict):
        raise Refused(f"it gives a state to a {type(target).__name__}")


_PUSHED = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8"
).split()
_OPCODES: Mapping[str, Callable[[_Machine, Any], None]] = MappingProxyType(
    {
        **dict.fromkeys(_PUSHED, _push),
        **dict.fromkeys(("PROTO", "FRAME"), _nothing),
        "NONE": _constant(None),
        "NEWTRUE": _constant(True),
        "NEWFALSE": _constant(False),
        "EMPTY_TUPLE": _constant(()),
        "EMPTY_LIST": _empty(list),
        "EMPTY_DICT": _empty(dict),
        "EMPTY_SET": _empty(set),
        "TUPLE1": _tuple_of(1),
        "TUPLE2": _tuple_of(2),
        "TUPLE3": _tuple_of(3),
        "MARK": _mark,
        "POP": _pop,
        "POP_MARK": _pop_mark,
        "TUPLE": _from_section(tuple),
        "LIST": _from_section(list),
        "DICT": _from_section(_dict),
        "FROZENSET": _from_section(lambda values: {inert.key(value) for value in values}),
        "SETITEM": _set_item,
        "SETITEMS": _set_section,
        "APPEND": _append,
        "APPENDS": _append_section,
        "ADDITEMS": _add_section,
        **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _put),
        **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
        "GLOBAL": _global,
        "STACK_GLOBAL": _stack_global,
        "BINPERSID": _outside,
        "REDUCE": _reduce,
        "NEWOBJ": _new_object,
        "BUILD": _build,
    }
)
