"""What the pages of the HTTP edge have in common: reading a request as hostile input, and sending a document."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from fastapi import Path, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from callgate_server.model.errors import CallError, Reason
from callgate_server.model.strict_json import Json, encode
from callgate_server.transports.places import Place
from callgate_server.transports.streaming import ClientGoneError
from callgate_server.transports.wire import bearer, object_from_json, with_content_text

MAX_LISTED: Final = 200
# Where a request's scope has its place.
PLACE: Final = "callgate.place"
CallId = Annotated[str, Path(description="The call's id.")]
Limit = Annotated[int, Query(ge=1, le=MAX_LISTED, description="At most this many.")]
Content = Annotated[
    Literal["text"] | None,
    Query(description="With `text`, the answer has its text for a model: what a tool wrote between unforgeable marks."),
]


def token_of(request: Request) -> str | None:
    return bearer(request.headers.getlist("authorization"))


def place_of(request: Request) -> Place:
    place: Place = request.scope[PLACE]
    return place


async def identified(request: Request) -> None:
    """Refuse who has no credential, and who has too many requests open. Nothing of a body is kept for either.

    Raises:
        CallError: `unauthenticated`, `overloaded`.
    """
    await place_of(request).identified(token_of(request))


async def admitted(request: Request) -> None:
    """Refuse as `identified` does, and then what the page would ignore, or would have to choose from.

    Raises:
        CallError: as `identified`; `invalid_request`.
    """
    await identified(request)
    names = [name for name, _ in request.query_params.multi_items()]
    known = {parameter.alias for parameter in request.scope["route"].dependant.query_params}
    if len(names) != len(set(names)) or not known.issuperset(names):
        takes = ", ".join(sorted(known)) or "none"
        raise CallError(Reason.INVALID_REQUEST, f"Unknown or repeated query parameters; this page takes: {takes}.")


async def json_body(request: Request, limit_bytes: int) -> bytes:
    """Return the body, which says that it is JSON.

    Raises:
        HTTPException: 415, or 413 as soon as more has come than is allowed, whatever was announced.
        ClientGoneError: the client went away before the body was complete.
    """
    if media_type(request.headers.get("content-type", "")) != "application/json":
        raise HTTPException(415, "The body must be application/json.")
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > limit_bytes:
            raise HTTPException(413, f"A body may have {limit_bytes} bytes.")
        if not message.get("more_body", False):
            return bytes(body)


async def fields_of(request: Request, limit_bytes: int, known: frozenset[str]) -> dict[str, Json]:
    """Return the body, an object of at most these keys.

    Raises:
        HTTPException: as `json_body`.
        CallError: `invalid_request`.
    """
    return object_from_json(await json_body(request, limit_bytes), known)


def media_type(value: str) -> str:
    return value.partition(";")[0].strip().lower()


def shown(document: Mapping[str, Any], content: Literal["text"] | None) -> Response:
    return reply(with_content_text(document) if content == "text" else document)


def reply(document: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(document), status, headers, media_type="application/json")
