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
"""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from callgate_proto.v1 import gateway_pb2 as pb
from callgate_proto.v1.gateway_pb2_grpc import GatewayServicer, add_GatewayServicer_to_server

TOKEN = "cg_fake_0123456789abcdef"
_STARTED = "started\n"
_PROGRAMS = {"print(6 * 7)": "42\n", "print('live')": "live\n"}
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
)


@dataclass
class Refused(Exception):
    reason: str
    code: grpc.StatusCode
    message: str
    retry_after_ms: int | None = None
    policies: tuple[str, ...] = ()
    violations: tuple[pb.Violation, ...] = ()
    call_id: str | None = None


@dataclass
class Call:
    id: str
    tool: str
    arguments: dict[str, Any]
    request: pb.CallRequest
    cancelled: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    answer: pb.Answer | None = None
    # What happens in the call, until None or the exception that ends it.
    happens: SimpleQueue[tuple[str, str] | Exception | None] = field(default_factory=SimpleQueue)

    def output(self) -> Iterator[tuple[str, str]]:
        """Yield live output until the answer is there. Whoever stops listening leaves the call alone."""
        while not self.ended.is_set() or not self.happens.empty():
            event = self.happens.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                return
            yield event


class FakeGateway(GatewayServicer):
    """A context manager that serves on a free port of loopback, see `target`."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.artifacts: list[tuple[str, bytes]] = []
        self.metadata: list[dict[str, str | bytes]] = []
        # What every request is refused with, if a test wants that.
        self.refuse_with: Refused | None = None
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
        for call in self.calls:
            call.cancelled.set()
        self._server.stop(grace=None).wait()

    def Call(self, request: pb.CallRequest, context: grpc.ServicerContext) -> pb.CallResponse:  # noqa: N802
        try:
            call = self._start(request, context)
            context.send_initial_metadata((("callgate-call-id", call.id),))
            for _ in call.output():
                pass
            assert call.answer is not None
            return pb.CallResponse(answer=call.answer)
        except Refused as refused:
            _abort(context, refused)

    def StreamCall(  # noqa: N802
        self, request: pb.StreamCallRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamCallResponse]:
        try:
            call = self._start(request.call, context)
        except Refused as refused:
            _abort(context, refused)
        if call.answer is not None and call.answer.replayed:
            yield pb.StreamCallResponse(seq=0, answer=call.answer)
            return
        if request.call.on_disconnect == pb.ON_DISCONNECT_CANCEL:
            context.add_callback(call.cancelled.set)
        yield pb.StreamCallResponse(seq=0, accepted=pb.Accepted(call_id=call.id))
        seq = 1
        try:
            for stream, text in call.output():
                yield pb.StreamCallResponse(seq=seq, output=pb.OutputChunk(stream=stream, text=text))
                seq += 1
            yield pb.StreamCallResponse(seq=seq, answer=call.answer)
        except Refused as refused:
            failure = pb.Failure(reason=refused.reason, code=refused.code.name, message=refused.message, retryable=True)
            yield pb.StreamCallResponse(seq=seq, error=pb.Error(call_id=call.id, failure=failure))
        except ConnectionAbortedError:
            return

    def GetCall(self, request: pb.GetCallRequest, context: grpc.ServicerContext) -> pb.GetCallResponse:  # noqa: N802
        call = self._find(request.call_id, context)
        if call.answer is None:
            return pb.GetCallResponse(summary=_summary(call))
        return pb.GetCallResponse(answer=call.answer)

    def CancelCall(self, request: pb.CancelCallRequest, context: grpc.ServicerContext) -> pb.CancelCallResponse:  # noqa: N802
        call = self._find(request.call_id, context)
        call.cancelled.set()
        assert call.ended.wait(10)
        return pb.CancelCallResponse(answer=call.answer)

    def ListCalls(self, request: pb.ListCallsRequest, context: grpc.ServicerContext) -> pb.ListCallsResponse:  # noqa: N802
        self._authenticate_or_abort(context)
        newest = list(reversed(self.calls))[: request.limit or 50]
        return pb.ListCallsResponse(calls=[_summary(call) for call in newest])

    def ListTools(self, request: pb.ListToolsRequest, context: grpc.ServicerContext) -> pb.ListToolsResponse:  # noqa: N802
        self._authenticate_or_abort(context)
        return pb.ListToolsResponse(tools=[_tool(name) for name in sorted(_TOOLS)])

    def GetTool(self, request: pb.GetToolRequest, context: grpc.ServicerContext) -> pb.GetToolResponse:  # noqa: N802
        self._authenticate_or_abort(context)
        if request.tool not in _TOOLS:
            _abort(context, _unknown_tool())
        return pb.GetToolResponse(tool=_tool(request.tool))

    def call_of(self, tool: str, *, within_s: float = 10) -> Call:
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
        if metadata.get("authorization") != f"Bearer {TOKEN}":
            raise Refused("unauthenticated", grpc.StatusCode.UNAUTHENTICATED, "Give a valid credential.")
        if self.refuse_with is not None:
            raise self.refuse_with

    def _authenticate_or_abort(self, context: grpc.ServicerContext) -> None:
        try:
            self._authenticate(context)
        except Refused as refused:
            _abort(context, refused)

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
        arguments = json.loads(request.arguments_json)
        for name in arguments.keys() - _SCHEMAS.get(request.tool, {}).keys():
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
        self.calls.append(call)
        threading.Thread(target=self._carry, args=(call,), name=f"call-{call_id}").start()
        return call

    def _carry(self, call: Call) -> None:
        """Carry a call to its end. It belongs to the gateway: nobody has to listen."""
        try:
            for event in self._run(call):
                call.happens.put(event)
        except (Refused, ConnectionAbortedError) as error:
            call.happens.put(error)
        call.ended.set()
        call.happens.put(None)

    def _run(self, call: Call) -> Iterator[tuple[str, str]]:
        """Yield live output, then leave the answer in the call."""
        if call.tool == "demo.late":
            raise Refused(
                "sandbox_unavailable", grpc.StatusCode.UNAVAILABLE, "No sandbox could be started.", call_id=call.id
            )
        if call.tool == "demo.vanish":
            raise ConnectionAbortedError
        answer = _blank(call)
        chunks = _OUTPUTS.get(call.tool, list)()
        if call.tool == "python.run":
            chunks = [("stdout", _PROGRAMS[call.arguments["code"]])]
        for stream, text in chunks:
            yield stream, text
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
        call.answer = answer

    def _find(self, call_id: str, context: grpc.ServicerContext) -> Call:
        self._authenticate_or_abort(context)
        found = next((call for call in self.calls if call.id == call_id), None)
        if found is None:
            _abort(context, Refused("unknown_call", grpc.StatusCode.NOT_FOUND, "No such call."))
        return found


_CANCELLED = ("cancelled", "cancelled", "CANCELLED", "Cancelled on request.")
_TIMED_OUT = ("timed_out", "timed_out", "DEADLINE_EXCEEDED", "Killed at its deadline.")
_OUTPUTS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "demo.speak": lambda: [("stdout", "one\n"), ("stderr", "a warning\n"), ("stdout", "two\n")],
    "demo.both": lambda: [("stdout", "said\n")],
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


def _summary(call: Call) -> pb.CallSummary:
    summary = pb.CallSummary(
        call_id=call.id, tool=call.tool, version="1.0.0", state="running", policies=["permit-demo"]
    )
    summary.received_at.FromJsonString("2026-01-02T03:04:05.678901Z")
    if call.answer is not None:
        summary.state = call.answer.state
        summary.finished_at.FromJsonString("2026-01-02T03:04:06Z")
        if call.answer.HasField("error"):
            summary.error.CopyFrom(call.answer.error)
    return summary


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


def _abort(context: grpc.ServicerContext, refused: Refused) -> NoReturn:
    retryable = refused.retry_after_ms is not None or refused.code is grpc.StatusCode.UNAVAILABLE
    info = ErrorInfo(reason=refused.reason, domain="callgate", metadata={"retryable": str(retryable).lower()})
    if refused.policies:
        info.metadata["policies"] = ",".join(refused.policies)
    if refused.call_id:
        info.metadata["call_id"] = refused.call_id
    details: list[Message] = [info]
    if refused.retry_after_ms is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(refused.retry_after_ms)
        details.append(retry)
    if refused.violations:
        fields = [
            BadRequest.FieldViolation(field=one.path, reason=one.rule, description=one.message)
            for one in refused.violations
        ]
        details.append(BadRequest(field_violations=fields))
    status = Status(code=Code.Value(refused.code.name), message=refused.message, details=map(_packed, details))
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(refused.code, refused.message)


def _packed(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
