"""A gateway that behaves, without sandboxes: a real gRPC server with a few tools played in memory.

It keeps the promises a client relies on: authentication first, ids for accepted calls, replay by idempotency key,
cancellation with partial output, refusals with typed details. It knows nothing of the server's code.

    python.run       knows the outputs of the programs in the examples, see `_PROGRAMS`
    text.upper       a pure one: {"text": str} gives {"text": str}
    demo.speak       writes to both outputs in several pieces, no result
    demo.both        writes to its standard output and has a result
    demo.fail        exits with 3 after some output
    demo.wait        writes "started\n" and runs until it is cancelled or its deadline passes
    demo.files       leaves artifacts: whatever the test put into `artifacts`
    demo.hostile     writes terminal sequences that nobody cleaned
    demo.forbidden   is refused by policy
    demo.late        is accepted, and then no sandbox can be started
    demo.vanish      is accepted, and then the connection ends without an answer
    demo.garbage     has a result that is not JSON
    demo.large       has a result of 3 MB
    demo.guarded     waits for an approval; what it is called with is up to whoever calls it
    demo.flaky       writes two lines, and between them the connection breaks
    demo.unknown     ends so that nobody knows its effect

A call asked for with `asynchronous` waits for its turn until `turns` is set, is attempted twice where its tool fails,
and is a dead letter then. See `fake_desk` for approvals and dead letters.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from types import TracebackType
from typing import Any, Self

import grpc

from callgate_proto.v1 import gateway_pb2 as pb
from callgate_proto.v1.gateway_pb2_grpc import GatewayServicer, add_GatewayServicer_to_server
from support.fake_bounds import FakeBounds
from support.fake_desk import Call, arguments_of
from support.fake_refusals import Refused, abort, not_possible

TOKEN = "cg_fake_0123456789abcdef"
_STARTED = "started\n"
_PROGRAMS = {"print(6 * 7)": "42\n", "print('live')": "live\n", "print('later')": "later\n"}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "python.run": {"code": {"type": "string"}},
    "text.upper": {"text": {"type": "string", "description": "What to turn into capitals."}},
    "demo.wait": {"seconds": {"type": "integer"}},
}
_TOOLS = (
    "python.run",
    "text.upper",
    "demo.speak",
    "demo.both",
    "demo.fail",
    "demo.wait",
    "demo.files",
    "demo.hostile",
    "demo.late",
    "demo.vanish",
    "demo.garbage",
    "demo.large",
    "demo.guarded",
    "demo.flaky",
    "demo.unknown",
)


class FakeGateway(FakeBounds, GatewayServicer):
    """A context manager that serves on a free port of loopback, see `target`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.artifacts: list[tuple[str, bytes]] = []
        self.metadata: list[dict[str, str | bytes]] = []
        # What a test wants done when a request has come.
        self.on_request: Callable[[], object] = lambda: None
        # What every request is refused with, if a test wants that.
        self.refuse_with: Refused | None = None
        # Whether calls that wait for their turn get it.
        self.turns = threading.Event()
        self.turns.set()
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", 1 << 20)])
        add_GatewayServicer_to_server(self, self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self.turns.set()
        for call in self.calls:
            call.cancelled.set()
            call.decided.set()
        self._server.stop(grace=None).wait()

    def Call(self, request: pb.CallRequest, context: grpc.ServicerContext) -> pb.CallResponse:  # noqa: N802
        try:
            call = self._start(request, context)
            if call.answer is not None and call.answer.replayed:
                return pb.CallResponse(answer=call.answer)
            context.send_initial_metadata((("callgate-call-id", call.id),))
            if request.asynchronous or call.waits_for_approval:
                return pb.CallResponse(summary=call.summary())
            for event in call.events():
                if event.HasField("answer"):
                    return pb.CallResponse(answer=event.answer)
                if event.HasField("error"):
                    failure = event.error.failure
                    raise Refused(failure.reason, grpc.StatusCode[failure.code], failure.message, call_id=call.id)
            raise ConnectionAbortedError
        except Refused as refused:
            abort(context, refused)

    def StreamCall(  # noqa: N802
        self, request: pb.StreamCallRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamCallResponse]:
        try:
            call = self._start(request.call, context)
        except Refused as refused:
            abort(context, refused)
        if call.answer is not None and call.answer.replayed:
            yield pb.StreamCallResponse(seq=0, answer=call.answer)
            return
        if request.call.on_disconnect == pb.ON_DISCONNECT_CANCEL:
            context.add_callback(call.cancelled.set)
        yield from call.events(listens=context.is_active)

    def FollowCall(  # noqa: N802
        self, request: pb.FollowCallRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.FollowCallResponse]:
        call = self._find(request.call_id, context)
        if call.ended.is_set():
            yield from (pb.FollowCallResponse(event=event) for event in call.last())
            return
        for event in call.events(request.after if request.HasField("after") else -1, context.is_active):
            yield pb.FollowCallResponse(event=event)

    def GetCall(self, request: pb.GetCallRequest, context: grpc.ServicerContext) -> pb.GetCallResponse:  # noqa: N802
        call = self._find(request.call_id, context)
        if call.answer is None:
            return pb.GetCallResponse(summary=call.summary())
        return pb.GetCallResponse(answer=call.answer)

    def CancelCall(self, request: pb.CancelCallRequest, context: grpc.ServicerContext) -> pb.CancelCallResponse:  # noqa: N802
        call = self._find(request.call_id, context)
        call.cancelled.set()
        call.decided.set()
        assert call.ended.wait(10)
        if call.answer is None:
            return pb.CancelCallResponse(summary=call.summary())
        return pb.CancelCallResponse(answer=call.answer)

    def ListCalls(self, request: pb.ListCallsRequest, context: grpc.ServicerContext) -> pb.ListCallsResponse:  # noqa: N802
        self._authenticate_or_abort(context)
        newest = list(reversed(self.calls))[: request.limit or 50]
        return pb.ListCallsResponse(calls=[call.summary() for call in newest])

    def ListTools(self, request: pb.ListToolsRequest, context: grpc.ServicerContext) -> pb.ListToolsResponse:  # noqa: N802
        self._authenticate_or_abort(context)
        return pb.ListToolsResponse(tools=[_tool(name) for name in sorted(_TOOLS)])

    def GetTool(self, request: pb.GetToolRequest, context: grpc.ServicerContext) -> pb.GetToolResponse:  # noqa: N802
        self._authenticate_or_abort(context)
        if request.tool not in _TOOLS:
            abort(context, _unknown_tool())
        return pb.GetToolResponse(tool=_tool(request.tool))

    def ListApprovals(  # noqa: N802
        self, request: pb.ListApprovalsRequest, context: grpc.ServicerContext
    ) -> pb.ListApprovalsResponse:
        self._authenticate_or_abort(context)
        listed = pb.ListApprovalsResponse(approvals=[call.approval for call in self.calls if call.approval is not None])
        for approval in listed.approvals:
            approval.ClearField("arguments_json")
        return listed

    def GetApproval(  # noqa: N802
        self, request: pb.GetApprovalRequest, context: grpc.ServicerContext
    ) -> pb.GetApprovalResponse:
        return pb.GetApprovalResponse(approval=self._find_approval(request.call_id, context).approval)

    def DecideApproval(  # noqa: N802
        self, request: pb.DecideApprovalRequest, context: grpc.ServicerContext
    ) -> pb.DecideApprovalResponse:
        call = self._find_approval(request.call_id, context)
        assert call.approval is not None
        if not call.waits_for_approval:
            abort(context, not_possible("This approval was decided already."))
        if request.digest != call.approval.digest:
            message = "The digest is not that of the call; look at the approval again."
            abort(context, Refused("approval_void", grpc.StatusCode.FAILED_PRECONDITION, message))
        call.decide(approve=request.approve)
        return pb.DecideApprovalResponse(approval=call.approval)

    def ListDeadLetters(  # noqa: N802
        self, request: pb.ListDeadLettersRequest, context: grpc.ServicerContext
    ) -> pb.ListDeadLettersResponse:
        self._authenticate_or_abort(context)
        dead = [call.letter() for call in reversed(self.calls) if call.dead]
        return pb.ListDeadLettersResponse(dead_letters=dead[: request.limit or 50], total=len(dead))

    def GetDeadLetter(  # noqa: N802
        self, request: pb.GetDeadLetterRequest, context: grpc.ServicerContext
    ) -> pb.GetDeadLetterResponse:
        return pb.GetDeadLetterResponse(dead_letter=self._find_dead(request.call_id, context).letter())

    def RedriveDeadLetter(  # noqa: N802
        self, request: pb.RedriveDeadLetterRequest, context: grpc.ServicerContext
    ) -> pb.RedriveDeadLetterResponse:
        old = self._find_dead(request.call_id, context)
        if old.state == "unknown":
            abort(context, not_possible("Its effect is unknown; settle it first."))
        old.dead = False
        call = Call(str(uuid.uuid4()), old.tool, old.arguments, old.request, follows=old.id)
        self._begin(call)
        return pb.RedriveDeadLetterResponse(call=call.summary())

    def DiscardDeadLetter(  # noqa: N802
        self, request: pb.DiscardDeadLetterRequest, context: grpc.ServicerContext
    ) -> pb.DiscardDeadLetterResponse:
        call = self._find_dead(request.call_id, context)
        call.dead = False
        return pb.DiscardDeadLetterResponse(call=call.summary())

    def SettleCall(self, request: pb.SettleCallRequest, context: grpc.ServicerContext) -> pb.SettleCallResponse:  # noqa: N802
        call = self._find(request.call_id, context)
        if call.state != "unknown":
            abort(context, not_possible("The effect of this call is known."))
        call.dead, call.state = False, "succeeded" if request.happened else "failed"
        return pb.SettleCallResponse(call=call.summary())

    def call_of(self, tool: str, *, within_s: float = 60) -> Call:
        """Wait until a call of `tool` is accepted, and return it."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            for call in self.calls:
                if call.tool == tool:
                    return call
            time.sleep(0.01)
        raise AssertionError(f"no call of {tool} arrived")

    def _authenticate(self, context: grpc.ServicerContext) -> None:
        metadata = dict(context.invocation_metadata())
        self.metadata.append(metadata)
        self.on_request()
        if metadata.get("authorization") != f"Bearer {TOKEN}":
            raise Refused("unauthenticated", grpc.StatusCode.UNAUTHENTICATED, "Give a valid credential.")
        if self.refuse_with is not None:
            raise self.refuse_with

    def _authenticate_or_abort(self, context: grpc.ServicerContext) -> None:
        try:
            self._authenticate(context)
        except Refused as refused:
            abort(context, refused)

    def _start(self, request: pb.CallRequest, context: grpc.ServicerContext) -> Call:
        self._authenticate(context)
        call_id = str(uuid.uuid4())
        if request.tool == "demo.forbidden":
            raise Refused(
                "policy_denied",
                grpc.StatusCode.PERMISSION_DENIED,
                "No policy permits it.",
                policies=("forbid-demo", "no-nights"),
                call_id=call_id,
            )
        if request.tool not in _TOOLS:
            raise _unknown_tool()
        arguments = arguments_of(request)
        for name in () if request.tool == "demo.guarded" else arguments.keys() - _SCHEMAS.get(request.tool, {}).keys():
            violation = pb.Violation(path=f"/{name}", rule="additionalProperties", message="is not declared")
            raise Refused(
                "invalid_arguments",
                grpc.StatusCode.INVALID_ARGUMENT,
                "The arguments do not fit the tool's schema.",
                violations=(violation,),
                call_id=call_id,
            )
        for earlier in self.calls:
            if request.idempotency_key and earlier.request.idempotency_key == request.idempotency_key:
                replay = Call(earlier.id, request.tool, arguments, request)
                assert earlier.answer is not None
                replay.answer = pb.Answer()
                replay.answer.CopyFrom(earlier.answer)
                replay.answer.replayed = True
                replay.ended.set()
                return replay
        call = Call(call_id, request.tool, arguments, request)
        self._begin(call)
        return call

    def _begin(self, call: Call) -> None:
        self.calls.append(call)
        call.tell(accepted=pb.Accepted(call_id=call.id))
        if call.tool == "demo.guarded":
            call.ask_for_approval()
        elif call.request.asynchronous:
            call.tell(waiting=pb.Waiting(call_id=call.id, state="admitted"))
        threading.Thread(target=self._carry, args=(call,), name=f"call-{call.id}").start()

    def _carry(self, call: Call) -> None:
        """Carry a call to its end. It belongs to the gateway: nobody has to listen."""
        if call.approval is not None:
            call.decided.wait()
            if call.approval.state != "approved":
                denied = call.approval.state == "denied"
                _never_start(call, *(_DENIED if denied else _CANCELLED[1:]), state="denied" if denied else "cancelled")
                return
        if call.request.asynchronous:
            self.turns.wait()
        call.state = "running"
        try:
            answer = self._attempt(call)
        except ConnectionAbortedError:
            call.break_here()
            call.end("running")
            return
        except Refused as refused:
            _never_start(call, refused.reason, refused.code.name, refused.message, state="failed")
            return
        if call.tool == "demo.unknown":
            call.dead = True
            _never_start(call, "effect_unknown", "ABORTED", "Its effect is unknown.", state="unknown")
            return
        call.answer = answer
        call.dead = call.request.asynchronous and answer.state in ("failed", "timed_out")
        call.tell(answer=answer)
        call.end(answer.state)

    def _attempt(self, call: Call) -> pb.Answer:
        """Run a call, once more if it fails and the gateway carries it by itself."""
        while True:
            answer = self._run(call)
            ended = pb.CallAttempt(attempt=call.attempt, state=answer.state, reason=answer.error.reason)
            ended.at.FromJsonString("2026-01-02T03:04:06Z")
            call.attempts.append(ended)
            if not (call.request.asynchronous and answer.state == "failed" and call.attempt == 1):
                return answer
            call.attempt += 1

    def _run(self, call: Call) -> pb.Answer:
        """Play the tool with its live output, and return its answer."""
        if call.tool == "demo.late":
            raise Refused("sandbox_unavailable", grpc.StatusCode.UNAVAILABLE, "No sandbox could be started.")
        if call.tool == "demo.vanish":
            raise ConnectionAbortedError
        answer = _blank(call)
        chunks = _OUTPUTS.get(call.tool, list)()
        if call.tool == "python.run":
            chunks = [("stdout", _PROGRAMS[call.arguments["code"]])]
        for stream, text in chunks:
            if text == _BROKEN:
                call.break_here()
                continue
            call.tell(output=pb.OutputChunk(stream=stream, text=text))
            output = answer.stdout if stream == "stdout" else answer.stderr
            output.text += text
            output.total_bytes += len(text.encode())
        if call.tool == "demo.wait":
            timeout_s = call.request.deadline_ms / 1000 if call.request.HasField("deadline_ms") else 30
            _end(answer, *(_CANCELLED if call.cancelled.wait(timeout_s) else _TIMED_OUT))
        elif call.tool == "demo.fail":
            answer.exit.code = 3
            _end(answer, "failed", "tool_failed", "UNKNOWN", "The tool ended with exit code 3.")
        else:
            answer.exit.code = 0
            result = _RESULTS.get(call.tool, lambda _: b"null")(call.arguments)
            answer.result_json = result
        answer.artifacts.extend(
            pb.Artifact(name=name, size_bytes=len(data), sha256=sha256(data).hexdigest(), data=data)
            for name, data in (self.artifacts if call.tool == "demo.files" else [])
        )
        return answer

    def _find(self, call_id: str, context: grpc.ServicerContext) -> Call:
        self._authenticate_or_abort(context)
        found = next((call for call in self.calls if call.id == call_id), None)
        if found is None:
            abort(context, Refused("unknown_call", grpc.StatusCode.NOT_FOUND, "No such call."))
        return found

    def _find_approval(self, call_id: str, context: grpc.ServicerContext) -> Call:
        call = self._find(call_id, context)
        if call.approval is None:
            abort(context, Refused("unknown_call", grpc.StatusCode.NOT_FOUND, "No such approval."))
        return call

    def _find_dead(self, call_id: str, context: grpc.ServicerContext) -> Call:
        call = self._find(call_id, context)
        if not call.dead:
            abort(context, not_possible("This call is no dead letter."))
        return call


_BROKEN = "the connection breaks"
_DENIED = ("approval_denied", "PERMISSION_DENIED", "The approval was denied.")
_CANCELLED = ("cancelled", "cancelled", "CANCELLED", "Cancelled on request.")
_TIMED_OUT = ("timed_out", "timed_out", "DEADLINE_EXCEEDED", "Killed at its deadline.")
_OUTPUTS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "demo.speak": lambda: [("stdout", "one\n"), ("stderr", "a warning\n"), ("stdout", "two\n")],
    "demo.both": lambda: [("stdout", "said\n")],
    "demo.flaky": lambda: [("stdout", "one\n"), ("stdout", _BROKEN), ("stdout", "two\n")],
    "demo.guarded": lambda: [("stdout", "paid\n")],
    "demo.fail": lambda: [("stdout", "so far\n"), ("stderr", "it broke\n")],
    "demo.wait": lambda: [("stdout", _STARTED)],
    "demo.hostile": lambda: [("stdout", "\x1b]52;c;ZXZpbA==\x07\x1b[2Jgone\u202e\n"), ("stderr", "\x9b31mred\r!\n")],
}
_RESULTS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "text.upper": lambda arguments: json.dumps({"text": arguments["text"].upper()}).encode(),
    "demo.both": lambda _: b'{"n":9007199254740993}',
    "demo.hostile": lambda _: '{"title":"\u202e\x9b"}'.encode(),
    "demo.garbage": lambda _: b'{"a": NaN',
    "demo.large": lambda _: b'"' + b"x" * 3_000_000 + b'"',
}


def _blank(call: Call) -> pb.Answer:
    return pb.Answer(
        call_id=call.id,
        tool=call.tool,
        version="1.0.0",
        state="succeeded",
        untrusted=True,
        usage=pb.Usage(queue_ms=1.5, wall_ms=12.25, max_rss_kb=2048, phases_ms={"run": 12.25}),
        sandbox=pb.Sandbox(backend="fake", runtime="none", isolation="container"),
        decision=pb.Decision(id="d1", policies=["permit-demo"]),
        content=pb.Content(nonce="f" * 32, untrusted=True),
    )


def _end(answer: pb.Answer, state: str, reason: str, code: str, message: str) -> None:
    answer.state = state
    answer.error.CopyFrom(pb.Failure(reason=reason, code=code, message=message))


def _never_start(call: Call, reason: str, code: str, message: str, *, state: str) -> None:
    retryable = code == "UNAVAILABLE"
    call.failure = pb.Failure(reason=reason, code=code, message=message, retryable=retryable)
    call.tell(error=pb.Error(call_id=call.id, failure=call.failure))
    call.end(state)


def _tool(name: str) -> pb.Tool:
    properties = _SCHEMAS.get(name, {})
    schema = {"type": "object", "properties": properties, "required": [], "additionalProperties": False}
    if name == "text.upper":
        schema["required"] = ["text"]
    return pb.Tool(
        tool=name,
        version="1.0.0",
        summary=f"Plays {name}.",
        effect="read",
        isolation="container",
        input_json=json.dumps(schema).encode(),
        output_json=b"{}",
        limits=pb.Limits(wall_s=30, cpu=1, memory_mb=256, pids=64),
        digest="sha256:" + "0" * 64,
    )


def _unknown_tool() -> Refused:
    return Refused("unknown_tool", grpc.StatusCode.NOT_FOUND, "No such tool, or none that you may call.")
