"""The pages of calls that go on by themselves: following one, approvals, dead letters. They decide nothing."""

from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, FastAPI, Header, Query, Request
from starlette.responses import Response

from callgate_server.model.call import OnDisconnect
from callgate_server.model.errors import CallError, Reason
from callgate_server.transports.asking import CallId, Content, Limit, admitted, fields_of, place_of, reply, token_of
from callgate_server.transports.documents import (
    ApprovalDocument,
    ApprovalsDocument,
    CallDocument,
    DeadLetterDocument,
    DeadLettersDocument,
    DecisionBody,
    SettlementBody,
)
from callgate_server.transports.gate import Gate
from callgate_server.transports.limits import TransportLimits
from callgate_server.transports.openapi import body_of, refusals
from callgate_server.transports.streaming import EventStream

_DIGEST: Final = "digest"
_APPROVE: Final = "approve"
_HAPPENED: Final = "happened"


@dataclass(frozen=True, slots=True)
class KeptPages:
    gate: Gate
    limits: TransportLimits

    def add_to(self, app: FastAPI) -> None:
        strict = [Depends(admitted)]
        app.get(
            "/v1/calls/{call_id}/events",
            dependencies=strict,
            operation_id="follow_call",
            responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}, **refusals(401, 404)},
        )(self.follow)
        app.post(
            "/v1/calls/{call_id}/settle",
            dependencies=strict,
            operation_id="settle_call",
            openapi_extra=body_of(SettlementBody),
            responses={200: {"model": CallDocument}, **refusals(401, 403, 404, 409, 415)},
        )(self.settle)
        self._add_approvals(app)
        self._add_dead_letters(app)

    def _add_approvals(self, app: FastAPI) -> None:
        strict = [Depends(admitted)]
        app.get(
            "/v1/approvals",
            dependencies=strict,
            operation_id="list_approvals",
            responses={200: {"model": ApprovalsDocument}, **refusals(401)},
        )(self.list_approvals)
        app.get(
            "/v1/approvals/{call_id}",
            dependencies=strict,
            operation_id="get_approval",
            responses={200: {"model": ApprovalDocument}, **refusals(401, 404)},
        )(self.get_approval)
        app.post(
            "/v1/approvals/{call_id}/decision",
            dependencies=strict,
            operation_id="decide_approval",
            openapi_extra=body_of(DecisionBody),
            responses={200: {"model": ApprovalDocument}, **refusals(401, 403, 404, 409, 415)},
        )(self.decide)

    def _add_dead_letters(self, app: FastAPI) -> None:
        strict = [Depends(admitted)]
        app.get(
            "/v1/dead-letters",
            dependencies=strict,
            operation_id="list_dead_letters",
            responses={200: {"model": DeadLettersDocument}, **refusals(401)},
        )(self.list_dead_letters)
        app.get(
            "/v1/dead-letters/{call_id}",
            dependencies=strict,
            operation_id="get_dead_letter",
            responses={200: {"model": DeadLetterDocument}, **refusals(401, 404)},
        )(self.get_dead_letter)
        app.post(
            "/v1/dead-letters/{call_id}/redrive",
            dependencies=strict,
            operation_id="redrive_dead_letter",
            responses={202: {"model": CallDocument}, **refusals(401, 403, 404, 409, 422, 429)},
        )(self.redrive)
        app.post(
            "/v1/dead-letters/{call_id}/discard",
            dependencies=strict,
            operation_id="discard_dead_letter",
            responses={200: {"model": CallDocument}, **refusals(401, 404, 409)},
        )(self.discard)

    async def follow(
        self,
        request: Request,
        call_id: CallId,
        content: Content = None,
        after: Annotated[
            int | None, Query(ge=-1, le=2**53, description="The id of the last event that is known; all where absent.")
        ] = None,
        last_event_id: Annotated[
            str,
            Header(pattern="^[0-9]{0,16}$", description="The same, as a browser sends it when it connects again."),
        ] = "",
    ) -> Response:
        """Report a call of this caller as it goes, from after a given event on. Leaving changes nothing about it."""
        place_of(request).stream()
        known = after if after is not None else int(last_event_id or "-1")
        running = await self.gate.queries.follow(token_of(request), call_id, known)
        return EventStream(
            running, OnDisconnect.DETACH, self.limits.heartbeat_s, with_text=content == "text", after=known
        )

    async def settle(self, request: Request, call_id: CallId) -> Response:
        """Say what became of a call whose effect is unknown. For administrators of its tenant."""
        token = token_of(request)
        fields = await fields_of(request, self.limits.body_bytes, frozenset((_HAPPENED,)))
        happened = fields.get(_HAPPENED)
        if not isinstance(happened, bool):
            raise CallError(Reason.INVALID_REQUEST, "The body needs `happened`, true or false.")
        return reply(await self.gate.dead_letters.settle(token, call_id, happened=happened))

    async def list_approvals(self, request: Request) -> Response:
        """List what waits for an approval that this caller may give, then what was decided lately."""
        return reply({"approvals": await self.gate.approvals.list(token_of(request))})

    async def get_approval(self, request: Request, call_id: CallId) -> Response:
        """Show one of them with the call's arguments."""
        return reply(await self.gate.approvals.show(token_of(request), call_id))

    async def decide(self, request: Request, call_id: CallId) -> Response:
        """Approve or deny one, once. What runs is exactly what `digest` names."""
        token = token_of(request)
        fields = await fields_of(request, self.limits.body_bytes, frozenset((_DIGEST, _APPROVE)))
        digest, approve = fields.get(_DIGEST), fields.get(_APPROVE)
        if not isinstance(digest, str) or not isinstance(approve, bool):
            raise CallError(Reason.INVALID_REQUEST, "The body needs `digest`, a text, and `approve`, true or false.")
        return reply(await self.gate.approvals.decide(token, call_id, digest, approve=approve))

    async def list_dead_letters(self, request: Request, limit: Limit = 50) -> Response:
        """List what failed for good, newest first: this caller's, or its tenant's for an administrator."""
        found, total = await self.gate.dead_letters.list(token_of(request), limit)
        return reply({"dead_letters": found, "total": total})

    async def get_dead_letter(self, request: Request, call_id: CallId) -> Response:
        """Show one with its attempts."""
        return reply(await self.gate.dead_letters.show(token_of(request), call_id))

    async def redrive(self, request: Request, call_id: CallId) -> Response:
        """Make a new call of it, linked to the old one, which is a dead letter no longer."""
        made = await self.gate.dead_letters.redrive(token_of(request), call_id)
        return reply(made, 202, {"location": f"/v1/calls/{made['call_id']}"})

    async def discard(self, request: Request, call_id: CallId) -> Response:
        """Give it up: what was kept of it is deleted."""
        return reply(await self.gate.dead_letters.discard(token_of(request), call_id))
