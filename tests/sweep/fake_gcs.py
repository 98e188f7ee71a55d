"""A bucket on this machine: as much of Google Cloud Storage's JSON interface as gcsfs uses here.

Objects live in memory and appear whole. What matters is that a write with ifGenerationMatch=0 is
decided here, in one place, for all processes: that is the promise of the real service on which
claims rest. https://cloud.google.com/storage/docs/json_api/v1
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

BUCKET = "hearts"
_OBJECT = re.compile(r"^/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)$")
_MOVE = re.compile(r"^/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)$")
_LIST = re.compile(r"^/storage/v1/b/([^/]+)/o$")
_UPLOAD = re.compile(r"^/upload/storage/v1/b/([^/]+)/o$")


class Bucket:
    """The objects, and what was done to them.

    Attributes:
      objects: name -> content.
      created: names that a conditional write has made, in order.
      refused: how many conditional writes came too late.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[str, bytes] = {}
        self.created: list[str] = []
        self.refused = 0

    def put(self, name: str, content: bytes, *, only_new: bool) -> bool:
        """Stores an object; False if it had to be new and is not."""
        with self.lock:
            if only_new and name in self.objects:
                self.refused += 1
                return False
            if only_new:
                self.created.append(name)
            self.objects[name] = content
            return True

    def about(self, name: str) -> dict[str, Any]:
        """An object's metadata."""
        content = self.objects[name]
        return {
            "kind": "storage#object",
            "bucket": BUCKET,
            "name": name,
            "size": str(len(content)),
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "generation": "1",
            "updated": "2026-01-01T00:00:00Z",
            "timeCreated": "2026-01-01T00:00:00Z",
        }

    def listing(self, prefix: str, delimiter: str) -> dict[str, Any]:
        """Objects under a prefix; with a delimiter what lies deeper becomes a prefix."""
        items, prefixes = [], set()
        with self.lock:
            for name in sorted(self.objects):
                if name.startswith(prefix):
                    rest = name[len(prefix) :]
                    if delimiter and delimiter in rest:
                        prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
                    else:
                        items.append(self.about(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *unused: Any) -> None:
        """Says nothing."""

    def _split(self) -> tuple[str, dict[str, str]]:
        path, _, query = self.path.partition("?")
        return path, dict(urllib.parse.parse_qsl(query))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, content: Any = b"") -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        path, query = self._split()
        if _LIST.match(path):
            found = self.bucket.listing(query.get("prefix", ""), query.get("delimiter", ""))
            return self._answer(200, found)
        match = _OBJECT.match(path)
        name = urllib.parse.unquote(match[2]) if match else ""
        with self.bucket.lock:
            content = self.bucket.objects.get(name)
        if content is None:
            return self._answer(404, {"error": {"code": 404, "message": "Not Found"}})
        if query.get("alt") != "media":
            return self._answer(200, self.bucket.about(name))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            return self._answer(206, content[int(wanted[1]) : int(wanted[2] or len(content)) + 1])
        return self._answer(200, content)

    def do_POST(self) -> None:
        path, query = self._split()
        body = self._body()
        move = _MOVE.match(path)
        if move:
            source, target = (urllib.parse.unquote(move[i]) for i in (2, 3))
            with self.bucket.lock:
                moved = self.bucket.objects.pop(source, None)
            if moved is None:
                return self._answer(404, {"error": {"code": 404, "message": "Not Found"}})
            self.bucket.put(target, moved, only_new=False)
            return self._answer(200, self.bucket.about(target))
        if not _UPLOAD.match(path) or query.get("uploadType") != "multipart":
            return self._answer(501, {"error": {"code": 501, "message": f"not here: {self.path}"}})
        _, about, content = body.split(b"--==0==\n" if b"--==0==\n" in body else b"--==0==", 2)
        name = json.loads(about.partition(b"\n\n")[2])["name"]
        content = content.partition(b"\n\n")[2].removesuffix(b"\n--==0==--")
        if not self.bucket.put(name, content, only_new=query.get("ifGenerationMatch") == "0"):
            return self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        return self._answer(200, self.bucket.about(name))

    def do_DELETE(self) -> None:
        match = _OBJECT.match(self._split()[0])
        with self.bucket.lock:
            gone = self.bucket.objects.pop(urllib.parse.unquote(match[2]), None) if match else None
        self._answer(404 if gone is None else 204)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is part of what is tested."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serve() -> Iterator[tuple[Bucket, dict[str, str]]]:
    """Yields the bucket `hearts` and the environment in which gcsfs finds it."""
    bucket = Bucket()
    handler = type("Handler", (_Handler,), {"bucket": bucket})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    environment = {
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{server.server_address[1]}",
        # What gcsfs asks over gRPC whether a bucket is hierarchical; this one is not.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        # Nobody is asked who we are: without these the machine's own credentials are looked for.
        "FSSPEC_GS_TOKEN": "anon",
        "NO_GCE_CHECK": "true",
    }
    try:
        yield bucket, environment
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
