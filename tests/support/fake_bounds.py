"""What the fake gateway does about tasks, stops and breakers. `root` is the only agent whose breakers there are."""

import uuid

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from callgate_proto.v1 import gateway_pb2 as pb
from support.fake_refusals import Refused, abort, not_possible

BREAKERS = ("engine", "tool:acme/text.diff", "upstream:acme/statistics.example:8443")
# It failed, and is tried again by itself.
FAILING = BREAKERS[2]


class FakeBounds:
    """Mixed into the fake gateway, which says who may ask."""

    def __init__(self) -> None:
        self.made: list[pb.Task] = []
        self.stopped: dict[str, pb.Stopped] = {}
        self.opened: set[str] = set()

    def _authenticate_or_abort(self, context: grpc.ServicerContext) -> None:
        raise NotImplementedError

    def CreateTask(  # noqa: N802
        self, request: pb.CreateTaskRequest, context: grpc.ServicerContext
    ) -> pb.CreateTaskResponse:
        self._authenticate_or_abort(context)
        if not request.grant.tools_json:
            abort(context, Refused("invalid_request", grpc.StatusCode.INVALID_ARGUMENT, "`grant` names 1 to 64 tools."))
        now = Timestamp()
        now.GetCurrentTime()
        task = pb.Task(
            task_id=f"task-{uuid.uuid4()}",
            name=request.name,
            agent="bot",
            grant=request.grant,
            budget=request.budget,
            spent=pb.Budget(calls=0, cpu_s=0, egress_bytes=0, cost=0),
            created_at=now,
            expires_at=Timestamp(seconds=now.seconds + int(request.lifetime_s)),
        )
        self.made.insert(0, task)
        return pb.CreateTaskResponse(task=task, token="cgt_fake_credential")

    def ListTasks(  # noqa: N802
        self, request: pb.ListTasksRequest, context: grpc.ServicerContext
    ) -> pb.ListTasksResponse:
        self._authenticate_or_abort(context)
        return pb.ListTasksResponse(tasks=self.made[: request.limit or 50])

    def GetTask(self, request: pb.GetTaskRequest, context: grpc.ServicerContext) -> pb.GetTaskResponse:  # noqa: N802
        self._authenticate_or_abort(context)
        return pb.GetTaskResponse(task=self._task(request.task_id, context))

    def EndTask(self, request: pb.EndTaskRequest, context: grpc.ServicerContext) -> pb.EndTaskResponse:  # noqa: N802
        self._authenticate_or_abort(context)
        task = self._task(request.task_id, context)
        task.ended_at.GetCurrentTime()
        return pb.EndTaskResponse(task=task)

    def ListStops(  # noqa: N802
        self, _request: pb.ListStopsRequest, context: grpc.ServicerContext
    ) -> pb.ListStopsResponse:
        self._authenticate_or_abort(context)
        return pb.ListStopsResponse(stops=self.stopped.values())

    def Stop(self, request: pb.StopRequest, context: grpc.ServicerContext) -> pb.StopResponse:  # noqa: N802
        self._authenticate_or_abort(context)
        stopped = pb.Stopped(agent=request.agent, reason=request.reason, by="root")
        stopped.at.GetCurrentTime()
        self.stopped[request.agent] = stopped
        return pb.StopResponse(stopped=stopped, cancelled=2)

    def Resume(self, request: pb.ResumeRequest, context: grpc.ServicerContext) -> pb.ResumeResponse:  # noqa: N802
        self._authenticate_or_abort(context)
        if self.stopped.pop(request.agent, None) is None:
            abort(context, not_possible("It is not stopped by itself."))
        return pb.ResumeResponse()

    def ListBreakers(  # noqa: N802
        self, _request: pb.ListBreakersRequest, context: grpc.ServicerContext
    ) -> pb.ListBreakersResponse:
        self._authenticate_or_abort(context)
        return pb.ListBreakersResponse(breakers=map(self._breaker, BREAKERS))

    def SetBreaker(  # noqa: N802
        self, request: pb.SetBreakerRequest, context: grpc.ServicerContext
    ) -> pb.SetBreakerResponse:
        self._authenticate_or_abort(context)
        if request.name not in BREAKERS:
            abort(context, not_possible("No such breaker."))
        (self.opened.add if request.open else self.opened.discard)(request.name)
        return pb.SetBreakerResponse(breaker=self._breaker(request.name))

    def _breaker(self, name: str) -> pb.Breaker:
        if name == FAILING and name not in self.opened:
            return pb.Breaker(name=name, state="open", retry_after_ms=12_300)
        return pb.Breaker(
            name=name, state="forced_open" if name in self.opened else "closed", calls=9, failures=2, slow=1
        )

    def _task(self, task_id: str, context: grpc.ServicerContext) -> pb.Task:
        found = next((task for task in self.made if task.task_id == task_id), None)
        if found is None:
            abort(context, Refused("unknown_task", grpc.StatusCode.NOT_FOUND, "No such task."))
        return found
