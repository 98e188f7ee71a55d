"""Who is answered: the page that was given out, and nobody else, whatever is asked for."""

from __future__ import annotations

import socket

import pytest

from cmunet_jax.viewer import guard, server
from tests.viewer import client
from tests.viewer.client import Viewer
from tests.viewer.fake_run import HEIGHT, WIDTH

SAVE = "/api/label/0/0?from=empty"
MEASURED = "/api/qca/0/0/label"
BODY = bytes(HEIGHT * WIDTH)
PATHS = ("/", "/static/main.js", "/api/cases", "/api/layer/0/0/frame", "/api/qca/0/0/a")


@pytest.mark.parametrize("path", PATHS)
def test_the_page_is_answered_with_strict_headers(standing: Viewer, path: str):
    answer = standing.ask(path)
    assert answer.status == 200
    for name, value in guard.HEADERS.items():
        assert answer.headers[name] == value
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    assert "server" not in answer.headers


@pytest.mark.parametrize("path", [*PATHS, MEASURED, SAVE])
@pytest.mark.parametrize(
    "changed",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:1"},
        {"Host": "127.0.0.1.evil.example:{port}"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost:{port}"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
    ids=lambda changed: "=".join(*changed.items()),
)
def test_a_foreign_page_is_refused(standing: Viewer, path: str, changed: dict[str, str]):
    method, body = ("POST", BODY) if path == SAVE else ("GET", None)
    filled = {name: value.format(port=standing.port) for name, value in changed.items()}
    answer = standing.ask(path, method=method, body=body, **filled)
    assert answer.status == 403 and answer.reason.startswith("refused: a foreign")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not list(standing.labels.rglob("*.png"))


def test_the_other_name_of_this_machine_is_answered(standing: Viewer):
    here = f"localhost:{standing.port}"
    assert standing.ask("/api/cases", Host=here).status == 200
    assert standing.ask("/api/cases", Host=here, Origin=f"http://{here}").status == 200
    # A link in another page may open the page, which holds nothing without the token.
    opened = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert standing.ask("/", **opened).status == 200
    assert standing.ask("/api/cases", **opened).status == 403


@pytest.mark.parametrize("token", [None, "", "wrong", client.TOKEN[:-1], client.TOKEN + "x"])
@pytest.mark.parametrize(
    "path", ["/api/cases", "/api/layer/0/0/frame", "/api/qca/0/0/a", MEASURED, SAVE]
)
def test_without_the_token_there_are_no_data(standing: Viewer, path: str, token: str | None):
    method, body = ("POST", BODY) if path == SAVE else ("GET", None)
    answer = standing.ask(path, method=method, body=body, X_Viewer_Token=token)
    assert answer.status == 403 and "token" in answer.reason
    assert not list(standing.labels.rglob("*.png"))


def test_to_save_takes_the_origin_of_the_page(viewer: Viewer):
    assert viewer.ask(SAVE, method="POST", body=BODY, Origin=None).status == 403
    assert viewer.ask(SAVE, method="POST", body=BODY).status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_do_nothing(standing: Viewer, method: str):
    for path in ("/", "/api/cases", SAVE):
        assert standing.ask(path, method=method).status in (403, 405)
    assert not list(standing.labels.rglob("*.png"))


def test_two_hosts_are_refused(standing: Viewer):
    with socket.create_connection(("127.0.0.1", standing.port)) as raw:
        host = f"Host: 127.0.0.1:{standing.port}\r\n"
        raw.sendall(f"GET / HTTP/1.1\r\n{host}Host: evil.example\r\n\r\n".encode())
        assert raw.recv(64).split()[1] in (b"400", b"403")


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/..%5capp.py",
        "/static//etc/passwd",
        "/static/%00",
        "/..%2f..%2fetc/passwd",
        "/api/layer/0/0/..%2f..%2fpredictions.json",
        "/api/layer/0/0/masks",
        "/api/layer/0/99/frame",
        "/api/layer/99/0/frame",
        "/api/layer/-1/0/frame",
        "/api/layer/99999999999999999999/0/frame",
        "/api/qca/0/0/c",
        "/api/label/0/0",
        "/predictions.json",
        "/docs",
    ],
)
def test_no_address_names_a_file(standing: Viewer, path: str):
    assert standing.ask(path).status in (404, 405)


def test_it_listens_on_the_loopback_only():
    place = server.listen(0)
    try:
        assert place.getsockname()[0] == "127.0.0.1"
    finally:
        place.close()


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 10, "-1", "1.0", "x", "%D9%A1", "0x0", "99"])
@pytest.mark.parametrize("where", ["{}/0", "0/{}"])
def test_a_number_of_nothing_is_not_found(standing: Viewer, number: str, where: str):
    at = where.format(number)
    for path in (f"/api/layer/{at}/frame", f"/api/qca/{at}/a"):
        assert standing.ask(path).status == 404
    saved = standing.ask(f"/api/label/{at}?from=empty", method="POST", body=BODY)
    assert saved.status == 404
