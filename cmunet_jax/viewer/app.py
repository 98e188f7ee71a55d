"""What the page asks for: the list of cases, pixels, diameters, and to save a mask.

Cases and frames are asked for by their number, layers by one of a few words, so no address names a
file. Pixels travel as bytes [H, W], which the page needs for its painting anyway: the server has
then read and checked each file, and no decoder of the browser meets what a stranger wrote.
"""

from __future__ import annotations

import importlib.resources
import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cmunet_jax.viewer import catalogue as catalogue_lib
from cmunet_jax.viewer import labels
from cmunet_jax.viewer.catalogue import Case, Catalogue, Frame
from cmunet_jax.viewer.confined import Unreadable
from cmunet_jax.viewer.measured import Measured, nearest

_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# Bounded before it is read: Python refuses to make a number of thousands of digits.
_NUMBER = re.compile("[0-9]{1,9}")
STARTS = ("prediction-a", "prediction-b", "label", "empty")
"""What a painted mask may have been made from."""
LABEL = "x-label"
"""Header: the digest of the file of a label, which a save names again, so that no other is lost."""


@dataclass(frozen=True)
class Served:
    """What one server has: the catalogue, where labels go, whether they may be replaced.

    `measured` are the analyses of saved labels.
    """

    catalogue: Catalogue
    labels: pathlib.Path
    overwrite: bool
    measured: Measured = field(default_factory=Measured)


def create(served: Served) -> Starlette:
    """The application, without the checks of `guard`."""
    files = _files()

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in files:
            raise HTTPException(404)
        content, kind = files[name]
        return Response(content, media_type=kind)

    async def cases(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(_cases, served))

    async def layer(request: Request) -> Response:
        return await run_in_threadpool(_layer, served, request.path_params)

    async def qca(request: Request) -> Response:
        return await run_in_threadpool(_qca, served, request.path_params)

    async def save(request: Request) -> Response:
        return await _save(served, request)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/static/{name}", page),
            Route("/api/cases", cases),
            Route("/api/layer/{case}/{frame}/{kind}", layer),
            Route("/api/qca/{case}/{frame}/{which}", qca),
            Route("/api/label/{case}/{frame}", save, methods=["POST"]),
        ]
    )


def _files() -> Mapping[str, tuple[bytes, str]]:
    """The page's own files, read once: their names are all that can be asked for."""
    folder = importlib.resources.files("cmunet_jax.viewer") / "static"
    return {
        entry.name: (entry.read_bytes(), _TYPES[pathlib.PurePath(entry.name).suffix])
        for entry in folder.iterdir()
        if pathlib.PurePath(entry.name).suffix in _TYPES
    }


def _cases(served: Served) -> dict[str, Any]:
    content = catalogue_lib.described(
        served.catalogue, lambda name: labels.saved(served.labels, name)
    )
    # The name of the folder and no more: the rest of its path is nobody's business.
    return {
        **content,
        "labels": catalogue_lib.sendable(served.labels.name),
        "overwrite": served.overwrite,
    }


def _found(served: Served, at: Mapping[str, Any]) -> tuple[Case, Frame]:
    cases = served.catalogue.cases
    if not (_NUMBER.fullmatch(at["case"]) and _NUMBER.fullmatch(at["frame"])):
        raise HTTPException(404)
    number, index = int(at["case"]), int(at["frame"])
    if number >= len(cases) or index >= len(cases[number].frames):
        raise HTTPException(404)
    return cases[number], cases[number].frames[index]


def _refused(reason: object, status: int, **more: str) -> Response:
    return JSONResponse({"reason": str(reason), **more}, status_code=status)


def _label(served: Served, frame: Frame) -> tuple[NDArray[np.uint8], str]:
    return labels.read(served.labels, frame.name, frame.layers["frame"]())


def _layer(served: Served, at: Mapping[str, Any]) -> Response:
    _, frame = _found(served, at)
    kind = at["kind"]
    wanted = "frame" if kind == "label" else kind  # of a label is asked whether it is of this frame
    if kind not in catalogue_lib.KINDS or wanted not in frame.layers:
        return _refused(frame.problem or "there is no such layer", 404)
    headers = {}
    try:
        if kind == "label":
            pixels, headers[LABEL] = _label(served, frame)
        else:
            pixels = frame.layers[kind]()
    except Unreadable as error:
        return _refused(error, 422)
    headers["x-shape"] = ",".join(map(str, pixels.shape))
    return Response(pixels.tobytes(), media_type="application/octet-stream", headers=headers)


def _qca(served: Served, at: Mapping[str, Any]) -> Response:
    case, frame = _found(served, at)
    which = at["which"]
    label = which == "label" and "frame" in frame.layers
    if not label and which not in frame.qca:
        return _refused("there is no analysis of diameters", 404)
    try:
        if label:
            mask, _ = _label(served, frame)
            level = nearest(mask, frame.maps.values())
            return JSONResponse(served.measured.of(mask, case.spacing_mm, level))
        return JSONResponse(frame.qca[which]())
    except Unreadable as error:
        return _refused(error, 422)


async def _save(served: Served, request: Request) -> Response:
    case, frame = _found(served, request.path_params)
    started = request.query_params.get("from", "")
    if started not in STARTS:
        return _refused("it is not said what the mask was made from", 400)
    if "frame" not in frame.layers:
        return _refused(frame.problem, 422)
    try:
        pixels = await run_in_threadpool(frame.layers["frame"])
    except Unreadable as error:
        return _refused(error, 422)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > pixels.size:
            break
    if len(body) != pixels.size:
        return _refused(f"{len(body)} bytes, not {pixels.size}", 400)
    replace = served.overwrite or request.query_params.get("replace") == "yes"
    mask = np.frombuffer(bytes(body), np.uint8).reshape(pixels.shape)
    try:
        digest = await run_in_threadpool(
            labels.save,
            served.labels,
            frame.name,
            pixels,
            mask,
            overwrite=replace,
            facts=_facts(served.catalogue, case, frame, started),
            known=request.query_params.get("known"),
        )
    except labels.Exists as error:
        return _refused(error, 409, label=error.label)
    except labels.Refused as error:
        return _refused(error, 422)
    return JSONResponse({"saved": frame.name, "artery_pixels": int(mask.sum()), "label": digest})


def _facts(catalogue: Catalogue, case: Case, frame: Frame, started: str) -> dict[str, Any]:
    """Where a mask comes from: digests and numbers, nothing that tells whose it is."""
    _, digests = catalogue.checkpoints.get(started.rpartition("-")[2], ("", ()))
    return {
        "source_sha256": case.sha256,
        "frame": frame.index,
        "made_from": started,
        "checkpoints": [*digests],
    }
