"""Hostile and damaged pickles: refused by name, in one line, without a call or an import."""

import os
import pickle
import pickletools
import struct
import subprocess
import sys

import numpy as np
import pytest

from cmunet_jax.interop import importing, inert, pickles
from tests.conftest import ROOT
from tests.interop.torch_writer import (
    Call,
    Global,
    Object,
    opcodes,
    pickled,
    write_legacy,
    write_zip,
)
from tfds_angio.errors import UserError

PROTOCOL4 = b"\x80\x04"


def refuse(pid):
    raise inert.Refused("outside")


def load(data):
    import io

    return pickles.load(io.BytesIO(data), refuse)


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


class Evil:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


def calls(module, name, *arguments):
    return pickled({"state_dict": Call(Global(module, name), *arguments)})


OPEN = b"cbuiltins\nopen\n"
HOSTILE = {
    # what is in the file: the name that the message has
    "os.system": (calls("os", "system", "touch canary"), "os.system"),
    "posix.system": (calls("posix", "system", "touch canary"), "posix.system"),
    "nt.system": (calls("nt", "system", "touch canary"), "nt.system"),
    "subprocess": (calls("subprocess", "Popen", ["touch", "canary"]), "subprocess.Popen"),
    "eval": (calls("builtins", "eval", "open('canary', 'w')"), "builtins.eval"),
    "exec": (calls("__builtin__", "exec", "open('canary', 'w')"), "__builtin__.exec"),
    "getattr": (calls("builtins", "getattr", {}, "clear"), "builtins.getattr"),
    "import": (calls("builtins", "__import__", "os"), "builtins.__import__"),
    "open": (calls("builtins", "open", "canary", "w"), "builtins.open"),
    "partial": (calls("functools", "partial", Global("os", "system"), "x"), "functools.partial"),
    "attrgetter": (calls("operator", "attrgetter", "system"), "operator.attrgetter"),
    "methodcaller": (calls("operator", "methodcaller", "system"), "operator.methodcaller"),
    "runpy": (calls("runpy", "_run_code", "x"), "runpy._run_code"),
    "pydoc.locate": (calls("pydoc", "locate", "os.system"), "pydoc.locate"),
    "copyreg": (calls("copyreg", "_reconstructor", Global("a", "B"), None), "copyreg._recon"),
    "copy_reg": (calls("copy_reg", "__newobj__", Global("a", "B")), "copy_reg.__newobj__"),
    "torch.load": (calls("torch", "load", "http://x"), "torch.load"),
    "torch.hub": (calls("torch.hub", "load", "x"), "torch.hub.load"),
    "nested load": (calls("torch.storage", "_load_from_bytes", b"x"), "torch.storage._load_from"),
    "numpy loads": (calls("numpy", "load", "x"), "numpy.load"),
    "numpy.testing": (calls("numpy.testing._private.utils", "runstring", "x"), "runstring"),
    "stranger's function": (calls("joblib", "load", "x"), "joblib.load"),
    "class with arguments": (pickled({"a": 1})[:-1] + b"cmodel\nUNet\n(X\x01\0\0\0at\x81.",
                             "model.UNet from arguments"),
    "a text is called": (pickled("os.system")[:-1] + b"(tR.", "calls a str"),
    "a stand-in is called": (opcodes(Object(Global("a", "B"), {})) + b"(tR.", "calls a Opaque"),
    "reduce of __reduce__": (pickle.dumps(Evil(os.system, "touch canary"), 2), "system"),
    "protocol 0": (pickle.dumps(Evil(os.system, "touch canary"), 0), "system"),
    "protocol 4": (pickle.dumps(Evil(os.system, "touch canary"), 4), "system"),
    "dotted name": (PROTOCOL4 + text("os") + text("path.os.system") + b"\x93.", "path.os.system"),
    "dotted class": (PROTOCOL4 + text("model") + text("UNet.forward") + b"\x93.", "UNet.forward"),
    "name with line feed": (PROTOCOL4 + text("os\nsystem") + text("x") + b"\x93.", "os"),
    "empty name": (PROTOCOL4 + text("") + text("") + b"\x93.", "no class"),
    "global of numbers": (PROTOCOL4 + b"K\x01K\x02\x93.", "no name"),
    "INST": (b"(S'touch canary'\nios\nsystem\n.", "INST to make os.system"),
    "OBJ": (b"(cmodel\nUNet\nS'x'\no.", "OBJ to make model.UNet"),
    "NEWOBJ_EX": (PROTOCOL4 + b"cmodel\nUNet\n)}\x92.", "NEWOBJ_EX to make model.UNet"),
    "EXT1": (b"\x80\x02\x82\x05.", "EXT1 to make number 5 of the copyreg registry"),
    "EXT2": (b"\x80\x02\x83\x05\x00.", "EXT2"),
    "EXT4": (b"\x80\x02\x84\x05\x00\x00\x00.", "EXT4"),
    "PERSID": (b"Pos.system\n.", "PERSID"),
    "DUP": (b"K\x012t.", "DUP"),
    "BYTEARRAY8": (b"\x80\x05\x96" + struct.pack("<Q", 1) + b"x.", "BYTEARRAY8"),
    "NEXT_BUFFER": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "BUILD of a list": (b"]}b.", "a state to a list"),
    "BUILD of a name": (b"cmodel\nUNet\n}b.", "a state to a Name"),
    "subclass of dict": (pickled({"a": Call(Global("collections", "UserDict"), {})}), "UserDict"),
    "setattr of a module": (pickled(Global("sys", "modules")), "sys.modules"),
    "numpy objects": (
        pickled(Call(Global("numpy", "dtype"), "O8", False, True)), "dtype 'O8'"),
    "numpy records": (
        opcodes(Call(Global("numpy", "dtype"), "i4", False, True))
        + opcodes((3, "<", None, ("a",), {"a": 1}, -1, -1, 0)) + b"b.", "records"),
    "numpy array of objects": (
        opcodes(Call(Global("numpy.core.multiarray", "_reconstruct"), Global("numpy", "ndarray"),
                     (0,), b"b"))
        + opcodes((1, (1,), Call(Global("numpy", "dtype"), "i8", False, True), False, [1])) + b"b.",
        "array of Python objects"),
    "numpy array of another size": (
        opcodes(Call(Global("numpy.core.multiarray", "_reconstruct"), Global("numpy", "ndarray"),
                     (0,), b"b"))
        + opcodes((1, (1 << 40,), Call(Global("numpy", "dtype"), "i8", False, True), False, b"x"))
        + b"b.", "another size than its data"),
    "numpy subclass": (
        pickled(Call(Global("numpy.core.multiarray", "_reconstruct"), Global("model", "Array"),
                     (0,), b"b")), "another kind"),
    "deep tuples as key": (b"}N" + b"\x85" * 30_000 + b"Ns.", "key of type tuple"),
    "huge number as key": (b"}\x8a\xff" + b"\x7f" * 255 + b"Ns.", "key of type int"),
    "list in a set": (b"\x8f(]\x90.", "key of type list"),
    "underflow": (b"\x80\x02R.", "stack"),
    "mark without end": (b"(.", "stack"),
    "left over": (b"NN.", "left over"),
    "memo unknown": (b"h\x07.", "does not have"),
    "truncated": (pickled({"a": "b" * 50})[:30], "not complete"),
    "unknown opcode": (b"\xff.", "damaged"),
    "long announced": (b"\x8e" + struct.pack("<Q", 1 << 60) + b"x.", "not complete"),
    "negative long": (b"\x8b\xff\xff\xff\xff.", "not complete"),
    "bad number": (b"I12x\n.", "not complete"),
    "too many digits": (b"L" + b"9" * 9999 + b"L\n.", "not complete"),
    "copies": (b"](" + b"N" * 100_000 + b"eq\x00ccollections\ndeque\nq\x010"
               + b"h\x01h\x00\x85R0" * 50 + b"N.", "copy more than"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_by_name(name, tmp_path, monkeypatch):
    data, message = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(inert.Refused) as caught:
        load(data)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    for write in (write_zip, write_legacy):
        path = write(tmp_path / "evil.pth", {}, pickle_bytes=data)
        with pytest.raises(UserError, match=r"evil\.pth is not imported: "):
            importing.read(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.pth"]


def test_every_opcode_is_either_data_or_refused():
    known = set(pickles._OPCODES) | {"STOP"}
    others = {op.name for op in pickletools.opcodes} - known
    assert others == {"INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "DUP",
                      "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"}  # fmt: skip
    assert known <= {op.name for op in pickletools.opcodes}


def test_only_known_names_of_python_numpy_and_pytorch_pass():
    for module, attribute in (
        ("model", "UNet"), ("__main__", "UNet"), ("torch.nn.modules.conv", "Conv2d"),
        ("torch", "FloatStorage"), ("collections", "OrderedDict"), ("argparse", "Namespace"),
    ):  # fmt: skip
        assert str(inert.name(module, attribute)) == f"{module}.{attribute}"
    for module in (*sys.builtin_module_names, "os", "torch", "torch.jit", "numpy", "ctypes"):
        with pytest.raises(inert.Refused, match=module.split(".")[0]):
            inert.name(module, "anything")


def test_a_memo_of_any_number_costs_nothing():
    assert load(b"Nr" + b"\xff" * 4 + b"0j" + b"\xff" * 4 + b".") is None


def test_deep_nesting_is_only_long():
    made = load(b"]" * 60_000 + b"a" * 59_999 + b".")
    assert isinstance(made, list)


def test_plain_data_is_read_as_pickle_reads_it():
    value = {
        "a": [1, -2, 2**70, 1.5, True, None, "é", b"\x00\xff"],
        "b": ({1, 2}, frozenset("x"), (), [[]], {}),
        3: {"nested": ({"k": ["v"]},)},
    }
    for protocol in range(5):
        data = pickle.dumps(value, protocol)
        if protocol < 2:  # sets are made by copy_reg there, which is refused
            data = pickle.dumps({k: v for k, v in value.items() if k != "b"}, protocol)
        assert load(data) == pickle.loads(data)


def test_numbers_of_numpy_are_read():
    for value in (np.float64(1.5), np.int32(-3), np.bool_(True)):
        assert load(pickle.dumps(value, 2)) == value
    array = np.arange(6, dtype=">i2").reshape(2, 3)
    for made in (array, np.asfortranarray(array), np.zeros((0, 3)), np.float32([0.5])):
        np.testing.assert_array_equal(load(pickle.dumps(made, 2)).value, made)


def test_nothing_of_the_reader_imports_pickle_or_torch(tmp_path):
    path = write_zip(tmp_path / "evil.pth", {}, pickle_bytes=HOSTILE["os.system"][0])
    program = (
        "import sys\n"
        "def hook(event, values):\n"
        "    if event in ('pickle.find_class', 'os.system', 'subprocess.Popen', 'exec.code'):\n"
        "        raise SystemExit(event)\n"
        "import pathlib\n"
        "from cmunet_jax.interop import importing\n"
        "from tfds_angio.errors import UserError\n"
        "sys.addaudithook(hook)\n"
        "try:\n"
        f"    importing.read(pathlib.Path({str(path)!r}))\n"
        "except UserError as error:\n"
        "    print(error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "it refers to os.system, which does not belong to weights" in done.stdout
