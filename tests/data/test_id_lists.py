"""Files that list images, in the three forms in which they come."""

import json

import pytest

from cmunet_jax.data import id_lists
from tfds_angio.errors import UserError


@pytest.mark.parametrize(
    "text",
    [
        "b\na/1\n",
        "\ufeff# chosen by hand\n\n b \r\na/1",
        json.dumps({"ids": ["b", "a/1"], "draw": 0}),
        json.dumps(["b", "a/1"]),
        'rank,id,why\n1,b,"x, y"\n2,a/1,z\n',
    ],
)
def test_the_order_of_the_file_is_kept(tmp_path, text):
    (tmp_path / "list").write_text(text, encoding="utf-8")
    assert id_lists.read(tmp_path / "list", key="labelled") == ["b", "a/1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config.labelled=.*missing cannot be read \(No such file"),
        (b"", "lists no image"),
        (b"a\nb\na\n", "lists 'a' twice"),
        (b"\xff\xfe\x00\x80", "cannot be read"),
        (b'{"ids": "a"}', "no list of ids"),
        (b'{"ids": [1]}', "no list of ids"),
        (b'{"ids"', "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
    ],
)
def test_what_is_no_list_is_one_line(tmp_path, content, message):
    path = tmp_path / "missing"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        id_lists.read(path, key="labelled")
    assert "\n" not in str(error.value)
