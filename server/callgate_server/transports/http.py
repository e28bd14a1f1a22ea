"""The HTTP edge: decode, hand to the pipeline, encode. It decides nothing about a call.

A refused call is a problem document with the status of its reason; a call whose tool was started is a 200 with its
answer, whatever became of it (`server/adr/0001-outcomes-are-answers.md`). Events are streamed to who asks for
`text/event-stream`. A client that leaves only stops waiting, unless its call said `on_disconnect: cancel`.
"""

from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from callgate_server.execution.running import Running
from callgate_server.model.call import CallRequest, OnDisconnect
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.identifiers import new_call_id
from callgate_server.model.strict_json import Json, encode
from callgate_server.transports.asking import (
    CallId,
    Content,
    Limit,
    admitted,
    identified,
    json_body,
    media_type,
    place_of,
    reply,
    shown,
    token_of,
)
from callgate_server.transports.documents import (
    AnswerDocument,
    CallBody,
    CallDocument,
    CallsDocument,
    HealthDocument,
    ReadinessDocument,
    ToolDocument,
    ToolsDocument,
)
from callgate_server.transports.gate import Gate
from callgate_server.transports.guard import Guard
from callgate_server.transports.http_kept import KeptPages
from callgate_server.transports.http_operators import add_operator_pages
from callgate_server.transports.http_tasks import add_task_pages
from callgate_server.transports.limits import TransportLimits
from callgate_server.transports.openapi import CALL_HEADERS, body_of, describe, refusals
from callgate_server.transports.places import Places
from callgate_server.transports.replies import http_reply, refusal_reply, unexpected_reply
from callgate_server.transports.streaming import ClientGoneError, EventStream, while_connected
from callgate_server.transports.wire import call_from_json

EXPOSITION: Final = "text/plain; version=0.0.4; charset=utf-8"
ToolName = Annotated[str, Path(description="The tool's name, like `webhooks.sign`.")]


def http_app(
    gate: Gate,
    limits: TransportLimits,
    places: Places,
    *,
    hosts: frozenset[str] = frozenset(),
    origins: frozenset[str] = frozenset(),
) -> ASGIApp:
    """Return the ASGI application. `places` are shared with the other edge.

    `hosts` are the names (without port) under which it may be addressed, any if empty; a gateway on loopback needs
    them, or a page whose name resolves to it can read it. `origins` are the browser origins that it serves.
    """
    app = FastAPI(
        title="Callgate",
        version="1",
        description="Typed, sandboxed tool calls. The same is offered over gRPC as callgate.v1.Gateway.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    KeptPages(gate, limits).add_to(app)
    add_task_pages(app, gate, limits)
    add_operator_pages(app, gate, limits)
    _Pages(gate, limits).add_to(app)
    _add_refusals(app, gate)
    return Guard(app, gate, limits, places, hosts, origins)


def _add_refusals(app: FastAPI, gate: Gate) -> None:
    @app.exception_handler(CallError)
    async def refused(_request: Request, error: CallError) -> Response:
        return refusal_reply(error)

    @app.exception_handler(HTTPException)
    async def refused_by_http(_request: Request, error: HTTPException) -> Response:
        return http_reply(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> Response:
        # Only places that we declared are named; the value and the validator's text, which may quote it, are not.
        places = sorted({str(fault["loc"][-1]) for fault in error.errors()})
        return refusal_reply(CallError(Reason.INVALID_REQUEST, f"Not acceptable: {', '.join(places)}."))

    @app.exception_handler(ClientGoneError)
    async def gone(_request: Request, _error: ClientGoneError) -> Response:
        return Response(status_code=499)  # nobody reads it; the access log shows it

    @app.exception_handler(Exception)
    async def unexpected(_request: Request, error: Exception) -> Response:
        error_id = new_call_id()
        gate.unexpected(error_id, error)
        return unexpected_reply(error_id)


@dataclass(frozen=True, slots=True)
class _Pages:
    gate: Gate
    limits: TransportLimits

    def add_to(self, app: FastAPI) -> None:
        strict = [Depends(admitted)]
        app.post(
            "/v1/tools/{tool}/calls",
            dependencies=strict,
            operation_id="call",
            openapi_extra={**body_of(CallBody), "parameters": CALL_HEADERS},
            responses={
                200: {"model": AnswerDocument, "content": {"text/event-stream": {"schema": {"type": "string"}}}},
                202: {"model": CallDocument},
                **refusals(400, 401, 403, 404, 409, 413, 415, 422, 424, 429, 503, 504),
            },
        )(self.call)
        app.get(
            "/v1/calls",
            dependencies=strict,
            operation_id="list_calls",
            responses={200: {"model": CallsDocument}, **refusals(400, 401)},
        )(self.list_calls)
        app.get(
            "/v1/calls/{call_id}",
            dependencies=strict,
            operation_id="get_call",
            responses={200: {"model": AnswerDocument | CallDocument}, **refusals(401, 404)},
        )(self.get_call)
        app.post(
            "/v1/calls/{call_id}/cancel",
            dependencies=strict,
            operation_id="cancel_call",
            responses={200: {"model": AnswerDocument | CallDocument}, **refusals(401, 404)},
        )(self.cancel_call)
        app.get(
            "/v1/tools",
            dependencies=strict,
            operation_id="list_tools",
            responses={200: {"model": ToolsDocument}, **refusals(401)},
        )(self.list_tools)
        app.get(
            "/v1/tools/{tool}",
            dependencies=strict,
            operation_id="get_tool",
            responses={200: {"model": ToolDocument}, **refusals(401, 404)},
        )(self.get_tool)
        app.get("/healthz", operation_id="health", responses={200: {"model": HealthDocument}})(self.health)
        app.get(
            "/readyz",
            operation_id="readiness",
            responses={200: {"model": ReadinessDocument}, 503: {"model": ReadinessDocument}},
        )(self.readiness)
        app.get(
            "/metrics",
            dependencies=[Depends(identified)],
            operation_id="metrics",
            responses={200: {"content": {"text/plain": {}}}, **refusals(401, 403)},
        )(self.metrics)
        openapi = encode(describe(app))

        @app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(identified)])
        async def own_description() -> Response:
            return Response(openapi, media_type="application/json")

    async def call(self, request: Request, tool: ToolName, content: Content = None) -> Response:
        """Run a tool and wait for its answer, or stream its events."""
        token, events = token_of(request), _wants_events(request)
        if events:
            place_of(request).stream()
        body = await json_body(request, self.limits.body_bytes)
        wanted = call_from_json(tool, body, request.headers.get("idempotency-key"))
        running = await self.gate.calls.start(token, wanted)
        if events:
            return EventStream(running, wanted.on_disconnect, self.limits.heartbeat_s, with_text=content == "text")
        await _until_settled(request, running, wanted)
        if running.ended:
            return shown(await running.wait(), content)
        # It goes on by itself: at once where that was asked for, else once somebody has approved it.
        summary = await self.gate.queries.call(token, running.claimed_id)
        return reply(summary, 202, {"location": f"/v1/calls/{running.claimed_id}"})

    async def list_calls(
        self,
        request: Request,
        limit: Limit = 50,
    ) -> Response:
        """List the newest calls of this caller, newest first, without their results."""
        return reply({"calls": await self.gate.queries.calls(token_of(request), limit)})

    async def get_call(self, request: Request, call_id: CallId, content: Content = None) -> Response:
        """Show one call of this caller: its answer, or how far it is."""
        return shown(await self.gate.queries.call(token_of(request), call_id), content)

    async def cancel_call(self, request: Request, call_id: CallId, content: Content = None) -> Response:
        """Ask a running call to end, wait for it and show it. A call that has ended stays as it is."""
        return shown(await self.gate.queries.cancel(token_of(request), call_id), content)

    async def list_tools(self, request: Request) -> Response:
        """List the tools of which some call by this caller could be allowed."""
        return reply({"tools": await self.gate.queries.tools(token_of(request))})

    async def get_tool(self, request: Request, tool: ToolName) -> Response:
        """Show one tool with its schemas."""
        return reply(await self.gate.queries.tool(token_of(request), tool))

    async def health(self) -> Response:
        """Say that the process answers."""
        return reply({"status": "ok"})

    async def readiness(self) -> Response:
        """Say whether the gateway can serve, and which of its parts work."""
        now = await self.gate.ready()
        components: Json = {name: "ok" if works else "failing" for name, works in now.components.items()}
        return reply({"ready": now.ready, "components": components}, 200 if now.ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Show the metrics in Prometheus' text format. For who may administer `metrics`: they tell of all tenants."""
        return Response(await self.gate.metrics(token_of(request)), media_type=EXPOSITION)


def _wants_events(request: Request) -> bool:
    return "text/event-stream" in map(media_type, request.headers.get("accept", "").split(","))


async def _until_settled(request: Request, running: Running, wanted: CallRequest) -> None:
    """Wait until there is something to tell: at once where the caller asked not to wait."""
    if wanted.asynchronous:
        return
    try:
        await while_connected(request.receive, running.settled())
    except ClientGoneError:
        if wanted.on_disconnect is OnDisconnect.CANCEL:
            running.cancel()
        raise
