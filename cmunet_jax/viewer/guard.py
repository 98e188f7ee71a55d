"""Who may ask: only the page that this server gave out, in a browser of this machine.

A server on the loopback can be reached by every page that is open in the same browser, and by
every user of the machine. Against the first stand the checks of Host (a foreign name that was made
to point here) and Origin (a foreign page), against the second a token that only the printed address
holds. What is asked for under /api/ needs it.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN = b"x-viewer-token"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def refusal(scope: Scope, *, port: int, token: str) -> str:
    """Why a request is refused, or ''.

    Args:
      scope: of an HTTP request, as ASGI gives it.
      port: that the server listens on.
      token: of the session.
    """
    given: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        given.setdefault(name.lower(), []).append(value)
    hosts = [f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost")]
    host, origin = given.get(b"host", []), given.get(b"origin", [])
    if len(host) != 1 or host[0].lower() not in hosts:
        return "a foreign Host"
    reads = scope["method"] in ("GET", "HEAD")
    if origin != [b"http://" + host[0].lower()] and (origin or not reads):
        return "a foreign Origin"
    opened = given.get(b"sec-fetch-mode") == [b"navigate"] and scope["path"] == "/"
    if given.get(b"sec-fetch-site", [b"none"])[0] not in (b"same-origin", b"none") and not opened:
        return "a foreign page"
    if scope["path"].startswith("/api/") or not reads:
        shown = given.get(TOKEN, [])
        if len(shown) != 1 or not secrets.compare_digest(shown[0], token.encode()):
            return "no token of this session: open the address that the command printed"
    return ""


def guarded(app: Application, *, port: int, token: str) -> Application:
    """`app` behind `refusal`, with the same strict headers on every answer."""
    fixed = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no WebSocket is spoken; a server closes what is not accepted

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *fixed]
            await send(message)

        reason = refusal(scope, port=port, token=token)
        if reason:
            refused = JSONResponse({"reason": f"refused: {reason}"}, status_code=403)
            await refused(scope, receive, answer)
        else:
            await app(scope, receive, answer)

    return guard
