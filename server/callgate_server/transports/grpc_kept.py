"""The methods of calls that go on by themselves: following one, approvals, dead letters. They decide nothing."""

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from callgate_proto.v1 import gateway_pb2
from callgate_server.model.errors import CallError, Reason
from callgate_server.transports import wire
from callgate_server.transports.gate import Gate
from callgate_server.transports.wire_kept import approval_to_proto, dead_letter_to_proto

DEFAULT_LISTED = 50
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def token_of(context: Context) -> str | None:
    metadata = context.invocation_metadata() or ()
    return wire.bearer([str(value) for key, value in metadata if key == "authorization"])


def listed(limit: int) -> int:
    """Return how many to list.

    Raises:
        CallError: `invalid_request`.
    """
    if limit < 0:
        raise CallError(Reason.INVALID_REQUEST, "`limit` must not be negative.")
    return limit or DEFAULT_LISTED


class KeptMethods:
    """Mixed into the service."""

    _gate: Gate

    async def FollowCall(  # noqa: N802
        self, request: gateway_pb2.FollowCallRequest, context: Context
    ) -> AsyncIterator[gateway_pb2.FollowCallResponse]:
        after = request.after if request.HasField("after") else -1
        running = await self._gate.queries.follow(token_of(context), request.call_id, after)
        async for event in running.events(after):
            yield gateway_pb2.FollowCallResponse(event=wire.event_to_proto(event, with_text=request.content_text))

    async def ListApprovals(  # noqa: N802
        self, _request: gateway_pb2.ListApprovalsRequest, context: Context
    ) -> gateway_pb2.ListApprovalsResponse:
        documents = await self._gate.approvals.list(token_of(context))
        return gateway_pb2.ListApprovalsResponse(approvals=map(approval_to_proto, documents))

    async def GetApproval(  # noqa: N802
        self, request: gateway_pb2.GetApprovalRequest, context: Context
    ) -> gateway_pb2.GetApprovalResponse:
        document = await self._gate.approvals.show(token_of(context), request.call_id)
        return gateway_pb2.GetApprovalResponse(approval=approval_to_proto(document))

    async def DecideApproval(  # noqa: N802
        self, request: gateway_pb2.DecideApprovalRequest, context: Context
    ) -> gateway_pb2.DecideApprovalResponse:
        document = await self._gate.approvals.decide(
            token_of(context), request.call_id, request.digest, approve=request.approve
        )
        return gateway_pb2.DecideApprovalResponse(approval=approval_to_proto(document))

    async def ListDeadLetters(  # noqa: N802
        self, request: gateway_pb2.ListDeadLettersRequest, context: Context
    ) -> gateway_pb2.ListDeadLettersResponse:
        found, total = await self._gate.dead_letters.list(token_of(context), listed(request.limit))
        return gateway_pb2.ListDeadLettersResponse(dead_letters=map(dead_letter_to_proto, found), total=total)

    async def GetDeadLetter(  # noqa: N802
        self, request: gateway_pb2.GetDeadLetterRequest, context: Context
    ) -> gateway_pb2.GetDeadLetterResponse:
        document = await self._gate.dead_letters.show(token_of(context), request.call_id)
        return gateway_pb2.GetDeadLetterResponse(dead_letter=dead_letter_to_proto(document))

    async def RedriveDeadLetter(  # noqa: N802
        self, request: gateway_pb2.RedriveDeadLetterRequest, context: Context
    ) -> gateway_pb2.RedriveDeadLetterResponse:
        document = await self._gate.dead_letters.redrive(token_of(context), request.call_id)
        return gateway_pb2.RedriveDeadLetterResponse(call=wire.summary_to_proto(document))

    async def DiscardDeadLetter(  # noqa: N802
        self, request: gateway_pb2.DiscardDeadLetterRequest, context: Context
    ) -> gateway_pb2.DiscardDeadLetterResponse:
        document = await self._gate.dead_letters.discard(token_of(context), request.call_id)
        return gateway_pb2.DiscardDeadLetterResponse(call=wire.summary_to_proto(document))

    async def SettleCall(  # noqa: N802
        self, request: gateway_pb2.SettleCallRequest, context: Context
    ) -> gateway_pb2.SettleCallResponse:
        document = await self._gate.dead_letters.settle(token_of(context), request.call_id, happened=request.happened)
        return gateway_pb2.SettleCallResponse(call=wire.summary_to_proto(document))
