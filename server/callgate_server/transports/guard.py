"""The outermost layer of the HTTP edge: what is refused before anything is read, and what no answer goes without.

Refuses foreign origins and hosts, repeated headers, announced bodies above the cap, and requests for which there is no
place (`places.py`); keeps unexpected errors from the client; adds the headers that every answer carries.
"""

import time
from collections.abc import Sequence
from email.utils import formatdate
from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from callgate_server.model.errors import CallError
from callgate_server.model.identifiers import new_call_id
from callgate_server.transports.asking import PLACE
from callgate_server.transports.gate import Access, Gate
from callgate_server.transports.limits import TransportLimits
from callgate_server.transports.places import Place, Places
from callgate_server.transports.replies import http_reply, refusal_reply, unexpected_reply

# Probes must be answered when everything else is refused.
_UNCOUNTED: Final = frozenset({"/healthz", "/readyz"})
# What operators do: let in beyond the general ceiling.
_OPERATING: Final = ("/v1/stops", "/v1/breakers", "/v1/approvals", "/v1/dead-letters", "/metrics")
# A second one could mean another thing to a proxy than to us.
_ONCE: Final = frozenset({b"authorization", b"content-length", b"content-type", b"host", b"idempotency-key", b"origin"})
_ON_EVERY_ANSWER: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


class Guard:
    """An ASGI application around another. `hosts` empty: any Host is served; `origins` empty: no browser page is."""

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        limits: TransportLimits,
        places: Places,
        hosts: frozenset[str],
        origins: frozenset[str],
    ) -> None:
        self._app = app
        self._gate = gate
        self._limits = limits
        self._places = places
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origin.lower() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"this edge serves HTTP only, not {scope['type']}")
        began_s = time.monotonic()
        answer = _Answer(send)
        place = self._places.at("http", operating=_is_operating(scope["path"]))
        try:
            await self._serve(scope, receive, answer, place)
        finally:
            place.leave()
            route = getattr(scope.get("route"), "path", "")
            duration_ms = round((time.monotonic() - began_s) * 1000, 3)
            status = str(answer.status or 499)  # who left before there was one
            self._gate.accessed(Access("http", scope["method"], route, status, duration_ms, place.name))

    async def _serve(self, scope: Scope, receive: Receive, answer: "_Answer", place: Place) -> None:
        try:
            self._check(scope["headers"])
            if scope["path"] not in _UNCOUNTED:
                place.enter()
        except HTTPException as refusal:
            await http_reply(refusal)(scope, receive, answer)
            return
        except CallError as refusal:
            await refusal_reply(refusal)(scope, receive, answer)
            return
        scope[PLACE] = place
        try:
            await self._app(scope, receive, answer)
        except Exception as error:
            # Where an answer was begun, the inner layers have reported the error and the connection is cut.
            if answer.status is None:
                error_id = new_call_id()
                self._gate.unexpected(error_id, error)
                await unexpected_reply(error_id)(scope, receive, answer)

    def _check(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        if len(headers) > self._limits.headers:
            raise HTTPException(431, f"A request may have {self._limits.headers} header fields.")
        once: dict[bytes, bytes] = {}
        for name, value in headers:
            if name in _ONCE:
                if name in once:
                    raise HTTPException(400, f"The header `{name.decode()}` is there twice.")
                once[name] = value
        origin, host = once.get(b"origin"), once.get(b"host", b"")
        # A page in a browser must not reach a gateway on its user's machine, whatever name it resolved to it.
        if origin is not None and origin.decode("latin-1").lower() not in self._origins:
            raise HTTPException(403, "Requests of browser pages are refused; their origin is not in the allow-list.")
        if self._hosts and _hostname(host) not in self._hosts:
            raise HTTPException(403, "The Host header names none of this gateway's hosts.")
        length = once.get(b"content-length", b"0")
        if not length.isdigit():
            raise HTTPException(400, "The header `content-length` is not a number.")
        if len(length) > 18 or int(length) > self._limits.body_bytes:
            raise HTTPException(413, f"A body may have {self._limits.body_bytes} bytes.")


class _Answer:
    """Sends on, adding what every answer carries, and remembers the status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            date = (b"date", formatdate(usegmt=True).encode())
            message = {**message, "headers": [*message.get("headers", ()), date, *_ON_EVERY_ANSWER]}
        await self._send(message)


def _is_operating(path: str) -> bool:
    return path.startswith(_OPERATING) or (path.startswith("/v1/calls/") and path.endswith("/settle"))


def _hostname(host: bytes) -> str:
    """The name in a Host header, without the port; an IPv6 address keeps its brackets."""
    text = host.decode("latin-1").lower()
    name, colon, port = text.rpartition(":")
    return name if colon and (port.isdigit() or not port) else text
