"""The pages of administrators: stops and breakers. They decode, pass on and encode; they decide nothing."""

from dataclasses import dataclass

from fastapi import Depends, FastAPI, Request
from starlette.responses import Response

from callgate_server.model.errors import CallError, Reason
from callgate_server.transports.asking import admitted, fields_of, reply, token_of
from callgate_server.transports.documents_bounds import (
    BreakerBody,
    BreakerDocument,
    BreakersDocument,
    ResumeBody,
    ResumedDocument,
    StopBody,
    StoppedDocument,
    StopsDocument,
)
from callgate_server.transports.gate import BreakerDesk, Gate, StopDesk
from callgate_server.transports.limits import TransportLimits
from callgate_server.transports.openapi import body_of, refusals


def add_operator_pages(app: FastAPI, gate: Gate, limits: TransportLimits) -> None:
    """Add the pages of what the gate has."""
    if gate.stops is not None:
        _StopPages(gate, gate.stops, limits).add_to(app)
    if gate.breakers is not None:
        _BreakerPages(gate, gate.breakers, limits).add_to(app)


@dataclass(frozen=True, slots=True)
class _StopPages:
    gate: Gate
    stops: StopDesk
    limits: TransportLimits

    def add_to(self, app: FastAPI) -> None:
        strict = [Depends(admitted)]
        app.get(
            "/v1/stops",
            dependencies=strict,
            operation_id="list_stops",
            responses={200: {"model": StopsDocument}, **refusals(401, 403)},
        )(self.list_stops)
        app.post(
            "/v1/stops",
            dependencies=strict,
            operation_id="stop",
            openapi_extra=body_of(StopBody),
            responses={200: {"model": StoppedDocument}, **refusals(401, 403, 415)},
        )(self.stop)
        app.post(
            "/v1/stops/resume",
            dependencies=strict,
            operation_id="resume",
            openapi_extra=body_of(ResumeBody),
            responses={200: {"model": ResumedDocument}, **refusals(401, 403, 409, 415)},
        )(self.resume)

    async def list_stops(self, request: Request) -> Response:
        """List what is stopped in this administrator's tenant."""
        return reply({"stops": await self.stops.list(token_of(request))})

    async def stop(self, request: Request) -> Response:
        """Refuse every call of an agent, or of the whole tenant, and cancel what runs."""
        token = token_of(request)
        fields = await fields_of(request, self.limits.body_bytes, frozenset(("agent", "reason")))
        agent, reason = fields.get("agent"), fields.get("reason", "")
        # The whole tenant is only stopped by who writes so.
        if not isinstance(agent, str) or not isinstance(reason, str):
            raise CallError(Reason.INVALID_REQUEST, "The body needs `agent`, a text: empty is the whole tenant.")
        stopped, cancelled = await self.stops.stop(token, agent, reason)
        return reply({"stopped": stopped, "cancelled": cancelled})

    async def resume(self, request: Request) -> Response:
        """Take a stop back."""
        token = token_of(request)
        agent = (await fields_of(request, self.limits.body_bytes, frozenset(("agent",)))).get("agent")
        if not isinstance(agent, str):
            raise CallError(Reason.INVALID_REQUEST, "The body needs `agent`, a text: empty is the whole tenant.")
        await self.stops.resume(token, agent)
        return reply({"resumed": agent})


@dataclass(frozen=True, slots=True)
class _BreakerPages:
    gate: Gate
    breakers: BreakerDesk
    limits: TransportLimits

    def add_to(self, app: FastAPI) -> None:
        strict = [Depends(admitted)]
        app.get(
            "/v1/breakers",
            dependencies=strict,
            operation_id="list_breakers",
            responses={200: {"model": BreakersDocument}, **refusals(401, 403)},
        )(self.list_breakers)
        app.post(
            "/v1/breakers",
            dependencies=strict,
            operation_id="set_breaker",
            openapi_extra=body_of(BreakerBody),
            responses={200: {"model": BreakerDocument}, **refusals(401, 403, 409, 415)},
        )(self.set_breaker)

    async def list_breakers(self, request: Request) -> Response:
        """List the circuit breakers of this administrator's tenant, and those that all share."""
        return reply({"breakers": await self.breakers.list(token_of(request))})

    async def set_breaker(self, request: Request) -> Response:
        """Open one until it is closed by hand, or close it."""
        token = token_of(request)
        fields = await fields_of(request, self.limits.body_bytes, frozenset(("name", "open")))
        name, open_it = fields.get("name"), fields.get("open")
        if not isinstance(name, str) or not isinstance(open_it, bool):
            raise CallError(Reason.INVALID_REQUEST, "The body needs `name`, a text, and `open`, true or false.")
        return reply(await self.breakers.set(token, name, open_it=open_it))
