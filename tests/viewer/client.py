"""A viewer that listens in a thread of the test, and requests whose every header is chosen."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmunet_jax.viewer import app, labels, server
from cmunet_jax.viewer.catalogue import Catalogue

TOKEN = "token-of-the-test"


@dataclass
class Answer:
    """What came back."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        return self.json["reason"]


@dataclass(frozen=True)
class Viewer:
    """A running one."""

    port: int
    labels: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/#{TOKEN}"

    def ask(
        self, path: str, *, method: str = "GET", body: bytes | None = None, **changed: str | None
    ) -> Answer:
        """Asks as the page would, with headers `changed` ('_' for '-') or, by None, left out."""
        headers: dict[str, str | None] = {"Host": f"127.0.0.1:{self.port}", "X-Viewer-Token": TOKEN}
        if method == "POST":
            headers["Origin"] = f"http://127.0.0.1:{self.port}"
        headers |= {name.replace("_", "-"): value for name, value in changed.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            if value is not None:
                connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        result = Answer(answer.status, answer.read(), found)
        connection.close()
        return result


@contextmanager
def viewing(catalogue: Catalogue, folder: Path, *, overwrite: bool = False) -> Iterator[Viewer]:
    """A viewer of `catalogue` that saves labels into `folder`."""
    labels.prepare(folder)
    place = server.listen(0)
    served = app.Served(catalogue, folder, overwrite)
    running = server.create(served, place, TOKEN)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    try:
        yield Viewer(place.getsockname()[1], folder)
    finally:
        running.should_exit = True
        thread.join(30)
