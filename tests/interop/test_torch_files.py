"""PyTorch's files: tensors within their storages, archives, whole modules, what is no weights."""

import pickle
import struct
import zipfile

import numpy as np
import pytest

from cmunet_jax.interop import importing, torch_files
from tests.interop.torch_writer import (
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
    "text that begins as a pickle": (b"config\nvalue\n\nmore", "no file of weights"),
    **{
        f"pickle of protocol {protocol}": (
            pickle.dumps({"state": [1.5, "x", eval]}, protocol),
            r"not one of PyTorch \(it refers to (__builtin__|builtins).eval",
        )
        for protocol in range(5)
    },
    "pickle of an instance": (b"(S'id'\nios\nsystem\n.", "opcode INST to make os.system"),
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
