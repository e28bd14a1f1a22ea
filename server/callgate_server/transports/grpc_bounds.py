"""The methods of tasks, stops and breakers. They decode, pass on and encode; they decide nothing."""

from collections.abc import Mapping
from typing import Any, TypeVar

from callgate_proto.v1 import gateway_pb2
from callgate_server.model.errors import CallError, Reason
from callgate_server.transports.gate import Gate
from callgate_server.transports.grpc_kept import Context, listed, token_of
from callgate_server.transports.wire import timestamp
from callgate_server.transports.wire_tasks import task_to_proto, wish_from_proto

T = TypeVar("T")


class BoundsMethods:
    """Mixed into the service."""

    _gate: Gate

    async def CreateTask(  # noqa: N802
        self, request: gateway_pb2.CreateTaskRequest, context: Context
    ) -> gateway_pb2.CreateTaskResponse:
        task, credential = await _had(self._gate.tasks).create(token_of(context), wish_from_proto(request))
        return gateway_pb2.CreateTaskResponse(task=task_to_proto(task), token=credential.reveal().decode())

    async def ListTasks(  # noqa: N802
        self, request: gateway_pb2.ListTasksRequest, context: Context
    ) -> gateway_pb2.ListTasksResponse:
        documents = await _had(self._gate.tasks).list(token_of(context), listed(request.limit))
        return gateway_pb2.ListTasksResponse(tasks=map(task_to_proto, documents))

    async def GetTask(  # noqa: N802
        self, request: gateway_pb2.GetTaskRequest, context: Context
    ) -> gateway_pb2.GetTaskResponse:
        document = await _had(self._gate.tasks).show(token_of(context), request.task_id)
        return gateway_pb2.GetTaskResponse(task=task_to_proto(document))

    async def EndTask(  # noqa: N802
        self, request: gateway_pb2.EndTaskRequest, context: Context
    ) -> gateway_pb2.EndTaskResponse:
        document = await _had(self._gate.tasks).end(token_of(context), request.task_id)
        return gateway_pb2.EndTaskResponse(task=task_to_proto(document))

    async def ListStops(  # noqa: N802
        self, _request: gateway_pb2.ListStopsRequest, context: Context
    ) -> gateway_pb2.ListStopsResponse:
        documents = await _had(self._gate.stops).list(token_of(context))
        return gateway_pb2.ListStopsResponse(stops=map(stop_to_proto, documents))

    async def Stop(self, request: gateway_pb2.StopRequest, context: Context) -> gateway_pb2.StopResponse:  # noqa: N802
        stopped, cancelled = await _had(self._gate.stops).stop(token_of(context), request.agent, request.reason)
        return gateway_pb2.StopResponse(stopped=stop_to_proto(stopped), cancelled=cancelled)

    async def Resume(  # noqa: N802
        self, request: gateway_pb2.ResumeRequest, context: Context
    ) -> gateway_pb2.ResumeResponse:
        await _had(self._gate.stops).resume(token_of(context), request.agent)
        return gateway_pb2.ResumeResponse()

    async def ListBreakers(  # noqa: N802
        self, _request: gateway_pb2.ListBreakersRequest, context: Context
    ) -> gateway_pb2.ListBreakersResponse:
        documents = await _had(self._gate.breakers).list(token_of(context))
        return gateway_pb2.ListBreakersResponse(breakers=map(breaker_to_proto, documents))

    async def SetBreaker(  # noqa: N802
        self, request: gateway_pb2.SetBreakerRequest, context: Context
    ) -> gateway_pb2.SetBreakerResponse:
        document = await _had(self._gate.breakers).set(token_of(context), request.name, open_it=request.open)
        return gateway_pb2.SetBreakerResponse(breaker=breaker_to_proto(document))


def stop_to_proto(document: Mapping[str, Any]) -> gateway_pb2.Stopped:
    return gateway_pb2.Stopped(
        agent=document["agent"], reason=document["reason"], at=timestamp(document["at"]), by=document["by"]
    )


def breaker_to_proto(document: Mapping[str, Any]) -> gateway_pb2.Breaker:
    return gateway_pb2.Breaker(**document)


def _had(part: T | None) -> T:
    """Return a part that a gate may lack.

    Raises:
        CallError: `not_possible`.
    """
    if part is None:
        raise CallError(Reason.NOT_POSSIBLE, "This gateway has nothing of the kind.")
    return part
