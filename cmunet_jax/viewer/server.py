"""Listens on the loopback, says where, and ends quietly when it is told to."""

from __future__ import annotations

import secrets
import signal
import socket
import threading
import webbrowser

import uvicorn

from cmunet_jax.viewer import app, guard
from tfds_angio.errors import UserError

HOST = "127.0.0.1"


def listen(port: int) -> socket.socket:
    """A socket that listens on the loopback at `port`, 0 for a free one.

    Raises:
      UserError: if the port is taken or may not be used.
    """
    place = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # So that a server that has just ended does not block its own port for minutes.
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((HOST, port))
        place.listen(64)
    except OSError as error:
        place.close()
        raise UserError(
            f"config.port={port} cannot be used ({error.strerror}). "
            "Choose another, or 0 for any that is free."
        ) from None
    return place


def create(served: app.Served, place: socket.socket, token: str) -> uvicorn.Server:
    """A server of `served` for the socket `place`, not started yet."""
    port = place.getsockname()[1]
    return uvicorn.Server(
        uvicorn.Config(
            guard.guarded(app.create(served), port=port, token=token),
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=64,
            timeout_graceful_shutdown=1,
        )
    )


def serve(served: app.Served, *, port: int, open_browser: bool) -> None:
    """Serves until SIGINT or SIGTERM; prints the address, which holds the token.

    Raises:
      UserError: as `listen`.
    """
    place = listen(port)
    token = secrets.token_urlsafe(24)
    server = create(served, place, token)
    # What follows '#' stays in the browser: it is in no request, and so in no log.
    address = f"http://{HOST}:{place.getsockname()[1]}/#{token}"

    def stop(number: int, frame: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    # uvicorn raises the signals that it catches once more at its end; in a thread it leaves them
    # to us, and the command ends as one that has done what it was asked to.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    try:
        print(f"Open {address}\nCtrl-C ends.", flush=True)
        if open_browser and not webbrowser.open(address):
            print("No browser could be started: open the address yourself.", flush=True)
        while thread.is_alive():
            thread.join(0.5)
    finally:
        server.should_exit = True
        for number, handler in before.items():
            signal.signal(number, handler)
