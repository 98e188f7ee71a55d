"""Hostile and damaged files: refused by name, in one line, without a call, an import or memory."""

import os
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from cmunet_jax.interop import importing, inert, pickles, torch_files
from tests.conftest import ROOT
from tests.interop.torch_writer import (
    Call,
    Global,
    Object,
    Outside,
    Storages,
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


def tensor_file(tmp_path, **changes):
    storages = Storages()
    content = pickled({"w": storages.tensor(np.arange(6.0, dtype="f4").reshape(2, 3), **changes)})
    return write_zip(tmp_path / "a.pth", {}, pickle_bytes=content, kept=storages.kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": 1}, "reaches beyond its storage"),
        ({"offset": -1}, "no proper number"),
        ({"offset": 1.5}, "no proper number"),
        ({"offset": True}, "no proper number"),
        ({"shape": (2, 4)}, "reaches beyond its storage"),
        ({"shape": (-2, 3)}, "no proper number"),
        ({"shape": (1 << 40, 1 << 40), "strides": (0, 0)}, "reaches beyond its storage"),
        ({"strides": (4, 1)}, "reaches beyond its storage"),
        ({"strides": (1,)}, "do not agree"),
        ({"strides": (1 << 61, 1)}, "reaches beyond its storage"),
        ({"shape": (1,) * 40, "strides": (1,) * 40}, "do not agree"),
        ({"shape": [2, 3]}, "no shape"),
        ({"size": 7}, "of 28 bytes has 24 bytes"),
        ({"size": 1 << 61}, "has 24 bytes"),
        ({"size": 1 << 70}, "no proper number"),
        ({"size": "6"}, "no proper number"),
        ({"kind": "DoubleStorage"}, "of 48 bytes has 24 bytes"),
        ({"kind": "QInt8Storage"}, "torch.QInt8Storage"),
        ({"kind": "load"}, "torch.load"),
    ],
)
def test_a_tensor_lies_within_its_storage(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        importing.read(tensor_file(tmp_path, **changes))


@pytest.mark.parametrize(
    "pid",
    [
        None, "storage", ("storage",), ("module", 1, 2, 3), ("storage", 1, "0", "cpu", 6),
        ("storage", Global("torch", "FloatStorage"), "../byteorder", "cpu", 1),
        ("storage", Global("torch", "FloatStorage"), 0, "cpu", 6),
        ("storage", Global("torch", "FloatStorage"), "7", "cpu", 6),
        ("storage", Global("model", "FloatStorage"), "0", "cpu", 6),
        ("storage", Global("torch", "FloatStorage"), "0", "cpu", 6, ("0", 5, 2)),
        ("storage", Global("torch", "FloatStorage"), "0", "cpu", 6, "view"),
    ],
)  # fmt: skip
def test_a_malformed_persistent_id_is_refused(tmp_path, pid):
    kept = {"0": np.zeros(6, "f4")}
    for write in (write_zip, write_legacy):
        path = write(tmp_path / "a.pth", {}, pickle_bytes=pickled(Outside(pid)), kept=kept)
        with pytest.raises(UserError, match=r"a\.pth is not imported"):
            importing.read(path)


def test_views_of_one_storage_are_read(tmp_path):
    storages = Storages()
    whole = np.arange(12.0, dtype="f4")
    made = {
        "columns": storages.tensor(whole, key="0", shape=(3, 4), strides=(1, 3)),
        "middle": storages.tensor(whole, key="0", offset=5, shape=(2,), strides=(2,)),
        "scalar": storages.tensor(whole, key="0", offset=11, shape=(), strides=()),
        "empty": storages.tensor(whole, key="0", shape=(0, 3), strides=(3, 1)),
        "true": storages.tensor(np.array([True, False])),
    }
    path = write_legacy(tmp_path / "a", {}, pickle_bytes=pickled(made), kept=storages.kept)
    with torch_files.open_weights(path) as file:
        found = {name: file.array(tensor) for name, tensor in file.content.items()}
    np.testing.assert_array_equal(found["columns"], whole.reshape(4, 3).T)
    np.testing.assert_array_equal(found["middle"], [5, 7])
    assert found["scalar"] == 11 and found["empty"].shape == (0, 3)
    np.testing.assert_array_equal(found["true"], [True, False])


def module(**state):
    parts = {"_parameters": {}, "_buffers": {}, "_modules": {}}
    return Object(Global("model", "UNet"), {**parts, **state})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Object(Global("model", "UNet"), {}), "model.UNet. that is no module"),
        (Object(Global("model", "UNet"), 3), "model.UNet. that is no module"),
        (module(_modules={"a": 3}), "int. that is no module"),
        (module(_modules=[]), "no module"),
        (Object(Global("torch.nn", "BatchNorm2d"), module(eps=1e-3).state), "eps 0.001, ours"),
    ],
)
def test_an_object_that_is_no_module_is_named(tmp_path, content, message):
    path = write_zip(tmp_path / "a.pth", {}, pickle_bytes=pickled(content))
    with pytest.raises(UserError, match=message):
        importing.read(path)


def test_a_module_that_holds_itself_ends(tmp_path):
    inner = opcodes({"_parameters": {}, "_buffers": {}})[:-1]
    data = b"\x80\x02cmodel\nUNet\n)\x81q\x09" + inner + opcodes("_modules")
    data += b"}(" + opcodes("a") + b"h\x09" + opcodes("b") + b"h\x09uub."
    path = write_zip(tmp_path / "a.pth", {}, pickle_bytes=data)
    with pytest.raises(UserError, match="nested without end"):
        importing.read(path)


def good(folder):
    return write_zip(folder / "good.pth", {"w": np.zeros(3, "f4")})


def repack(folder, change):
    """The good file with another set of members: {name: bytes} -> {name: bytes}."""
    with zipfile.ZipFile(good(folder)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    path = folder / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in change(members).items():
            archive.writestr(name, content)
    return path


def without(*names):
    return lambda members: {k: v for k, v in members.items() if k not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("archive/data.pkl"), "not one of PyTorch"),
        (without("archive/data/0"), "of 12 bytes is missing"),
        (lambda m: m | {"archive/byteorder": b"middle"}, "neither little nor big"),
        (lambda m: m | {"archive/code/x.py": b""}, "TorchScript"),
        (lambda m: m | {"archive/constants.pkl": b""}, "TorchScript"),
        (lambda m: m | {"b/data.pkl": b"N."}, "not one of PyTorch"),
    ],
)
def test_a_zip_of_another_kind_is_told(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        importing.read(repack(tmp_path, change))


def test_a_damaged_directory_is_told(tmp_path):
    path = good(tmp_path)
    data = path.read_bytes()
    head, names = data[: data.index(b"PK\x01\x02")], data[data.index(b"PK\x01\x02") :]
    # zipfile raises UnicodeDecodeError: flagged as UTF-8, which the name is not.
    names = bytearray(names.replace(b"archive/data.pkl", b"archive/data.\xe4kl"))
    struct.pack_into("<H", names, 8, 0x800)
    path.write_bytes(head + names)
    with pytest.raises(UserError, match="is damaged .*utf-8"):
        importing.read(path)


def test_a_zip_bomb_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled({}))
        archive.writestr("archive/data/0", bytes(50_000_000))
    with pytest.raises(UserError, match="compressed"):
        importing.read(path)


def test_overlapping_members_are_refused(tmp_path):
    path = good(tmp_path)
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    struct.pack_into("<II", data, directory + 20, 1 << 30, 1 << 30)  # sizes of the first member
    path.write_bytes(data)
    with pytest.raises(UserError, match="overlap or announce"):
        importing.read(path)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_a_cut_file_is_told_at_every_length(tmp_path, write):
    path = write(tmp_path / "a.pth", {"w": np.arange(30, dtype="f4")})
    whole = path.read_bytes()
    for keep in (*range(0, len(whole), 23), len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(UserError, match=r"a\.pth"):
            importing.read(path)


def test_a_flipped_bit_in_a_storage_is_found(tmp_path):
    path = write_zip(tmp_path / "a.pth", {"w": np.full(30, 7.0, "f4")})
    data = path.read_bytes()
    at = data.index(np.full(30, 7.0, "f4").tobytes())
    path.write_bytes(data[:at] + b"\xff" + data[at + 1 :])
    with (
        pytest.raises(UserError, match="damaged .Bad CRC"),
        torch_files.open_weights(path) as file,
    ):
        file.array(file.content["w"])


OTHERS = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 124279079\n",
            "Git LFS pointer, the placeholder of a file of 124,279,079 bytes.*git lfs pull"),
    "lfs without size": (b"version https://git-lfs.github.com/spec/v1\nsize\n", "git lfs pull"),
    "page": (b"\n <!DOCTYPE html><html>", "web page"),
    "xml": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
    "empty": (b"", "is empty"),
    "gzip": (b"\x1f\x8b\x08", "gzip"),
    "keras": (b"\x89HDF\r\n\x1a\n", "Keras"),
    "numpy": (b"\x93NUMPY", "NumPy"),
    "tar": (b"x" * 257 + b"ustar\x0000", "tar archive"),
    "text": (b"hello", "no file of weights"),
    "safetensors of length 0": (bytes(8) + b"{", "safetensors"),
    "other pickle": (pickle.dumps({"a": 1}), "not one of PyTorch"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_weights_file_is_recognised(tmp_path, name):
    content, message = OTHERS[name]
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        importing.read(path)
    assert str(path) in str(caught.value)


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
