# Generated from client/callgate/_async/client.py by client/generate_sync.py: change that file, not this one.
"""The sync client. It encodes, waits and decodes; it repeats no call and decides nothing.

Example::

    with Callgate("127.0.0.1:9090", token=token) as gateway:
        answer = gateway.call("python.run", {"code": "print(6 * 7)"}, deadline_s=10)
        print(answer.raise_for_state().stdout.text)

        for event in gateway.stream("python.run", {"code": "print('live')"}):
            if isinstance(event, OutputChunk):
                print(event.text, end="")

        waiting = gateway.submit("python.run", {"code": "print('later')"}, purpose="a report")
        print((gateway.wait(waiting.call_id)).stdout.text)
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc

from callgate import _bounds, _wire
from callgate._dial import Dial, read_ca
from callgate._status import ended_early, from_rpc_error, may_pass, reading, translating
from callgate._sync._channel import Channel, pause
from callgate._target import choose_tls, parse_target
from callgate.approval import Approval
from callgate.dead_letter import DeadLetter, DeadLetters
from callgate.errors import CallgateError, CallPending, CallRefused
from callgate.operating import Breaker, Stop, Stopped
from callgate.task import Amounts, NewTask, Task
from callgate.types import Accepted, Answer, Answered, CallSummary, Event, OnDisconnect, Tool, Waiting
from callgate_proto.v1 import gateway_pb2 as pb

DEFAULT_TARGET: Final = "127.0.0.1:9090"
# The longest wall time that a tool can declare: nobody waits longer than a call can take.
_LONGEST_CALL_S: Final = 3600.0
# The gateway needs a moment after the deadline to collect what the tool left behind.
_GRACE_S: Final = 30.0
# Between two attempts to follow a call again whose gateway is away.
_PAUSE_FIRST_S: Final = 0.2
_PAUSE_MOST_S: Final = 5.0
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,8192}")
_ReadT = TypeVar("_ReadT")


class Callgate:
    """A client of one gateway, for one credential. One connection, opened at the first call and reused.

    Every method may raise `CallRefused` (the gateway said no; nothing ran) and `GatewayUnreachable` (no answer
    came; what became of the request is not known).
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        token: str | None = None,
        tls: bool | None = None,
        ca_file: str | Path | None = None,
        timeout_s: float = 30.0,
        max_answer_bytes: int = 192 * 1024 * 1024,
        send_token_in_clear: bool = False,
    ) -> None:
        """Connect lazily to `target`, `host:port` or `[ipv6]:port`.

        `tls` None means: plaintext on loopback, TLS everywhere else and with a `ca_file`, which names the roots to
        trust instead of the built-in ones. `timeout_s` is how long to wait for everything but a call, and
        `max_answer_bytes` how much to take in one answer.

        Raises:
            ValueError: a malformed target or token, a token that would cross the network in clear, or a `ca_file`
                without a certificate or without TLS.
            OSError: the `ca_file` cannot be read.
        """
        where = parse_target(target)
        secure = choose_tls(
            where, tls=tls, roots=ca_file is not None, token=token is not None, token_in_clear=send_token_in_clear
        )
        if token is not None and not _TOKEN.fullmatch(token):
            raise ValueError("the token must be printable ASCII without spaces")
        self._target = target
        self._timeout_s = timeout_s
        self._channel = Channel(Dial(where, secure, read_ca(ca_file), max_answer_bytes))
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)

    def __repr__(self) -> str:
        return f"Callgate({self._target!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Calls made with `on_disconnect="detach"` go on at the gateway."""
        self._channel.close()

    def call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        deadline_s: float | None = None,
        on_disconnect: OnDisconnect = "detach",
        task: str | None = None,
        purpose: str | None = None,
    ) -> Answer:
        """Run a tool and wait for its answer.

        An answer is returned for every call whose tool was started, whatever became of it: look at `ok`, or use
        `raise_for_state()`. `deadline_s` is when the tool is killed, if nothing smaller is declared for it; its
        partial output still arrives. The same `idempotency_key` with the same arguments does not run twice.
        `task` names a task whose grant shall hold too, and `purpose` says why the call is wanted to whoever may be
        asked to approve it.

        Raises:
            ValueError: arguments that JSON cannot hold (NaN, circles), or a deadline that is not positive.
            TypeError: arguments that JSON has no type for.
            CallPending: the call waits for an approval.
            CallRefused: the tool was not started.
            GatewayUnreachable: no answer came. The exception says whether the call is known to run.
        """
        request = _wire.call_request(
            tool,
            arguments,
            idempotency_key=idempotency_key,
            deadline_s=deadline_s,
            on_disconnect=on_disconnect,
            task=task,
            purpose=purpose,
        )
        state = self._call(request, _wait_s(deadline_s))
        if isinstance(state, CallSummary):
            raise CallPending(state)
        return state

    def submit(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        deadline_s: float | None = None,
        priority: int | None = None,
        task: str | None = None,
        purpose: str | None = None,
    ) -> Answer | CallSummary:
        """Ask for a call that the gateway carries on by itself, over restarts of its own, and return at once.

        What is returned says how far the call is and has its id: go on with `follow()`, `wait()` or `get()`. An
        answer is returned only where the same `idempotency_key` has one already. `priority` is 0 to 9, the larger
        the sooner among the calls of one tenant, 5 where it is left out. The rest is taken and raised as by
        `call()`.

        Raises:
            ValueError, TypeError, CallRefused, GatewayUnreachable: as `call()`.
        """
        request = _wire.call_request(
            tool,
            arguments,
            idempotency_key=idempotency_key,
            deadline_s=deadline_s,
            task=task,
            purpose=purpose,
            asynchronous=True,
            priority=priority,
        )
        return self._call(request, self._timeout_s)

    def stream(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        deadline_s: float | None = None,
        on_disconnect: OnDisconnect = "detach",
        task: str | None = None,
        purpose: str | None = None,
    ) -> Iterator[Event]:
        """Run a tool and follow it: `Accepted`, any number of `OutputChunk`, and `Answered` as the last event.

        A call that waits, for its turn or for an approval, says so with `Waiting`. A stored answer has no `Accepted`;
        that of a repeated call in progress names the first. Leaving the iteration early is a disconnect, see
        `on_disconnect`. Takes and raises the same as `call()`, but waits for an approval; a refusal is raised at the
        first step of the iteration.
        """
        request = _wire.call_request(
            tool,
            arguments,
            idempotency_key=idempotency_key,
            deadline_s=deadline_s,
            on_disconnect=on_disconnect,
            task=task,
            purpose=purpose,
        )
        return self._events(pb.StreamCallRequest(call=request), _wait_s(deadline_s))

    def follow(self, call_id: str, after: int = -1) -> Iterator[Event]:
        """Follow a call of this caller to its end, as `stream()` does: also one that waits, or whose stream broke.

        `after` is the `seq` of the last event that is known; then only later ones come. A call that has ended gives
        its last event. Nothing is retried: where the connection breaks, go on after the last event seen, or use
        `wait()`. The first step of the iteration may raise `CallRefused`; so does the end of a call that never ran.
        """
        return self._follow(call_id, after, None)

    def wait(self, call_id: str, timeout_s: float | None = None) -> Answer:
        """Wait for a call's answer, over broken connections and restarts of the gateway.

        Looking again is safe: it starts nothing.

        Raises:
            TimeoutError: the call has not ended within `timeout_s`; it goes on.
            CallRefused: the call is unknown, or ended without its tool being started.
            GatewayUnreachable: the gateway was away until `timeout_s` had passed, or what answers is none.
        """
        ends_at = None if timeout_s is None else time.monotonic() + timeout_s
        after, pause_s = -1, _PAUSE_FIRST_S
        while True:
            try:
                for event in self._follow(call_id, after, _left_s(ends_at)):
                    after, pause_s = event.seq, _PAUSE_FIRST_S
                    if isinstance(event, Answered):
                        return event.answer
            except CallgateError as error:
                left_s = _left_s(ends_at)
                if left_s == 0 and _out_of_time(error):
                    raise TimeoutError(f"call {call_id} has not ended within {timeout_s:g} s; it goes on") from error
                if not may_pass(error) or (left_s is not None and left_s <= pause_s):
                    raise
            pause(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MOST_S)

    def get(self, call_id: str) -> Answer | CallSummary:
        """Show one call of this caller: its answer, or how far it is."""
        return self._ask(self._channel.stub.GetCall, pb.GetCallRequest(call_id=call_id), _wire.call_state, call_id)

    def cancel(self, call_id: str) -> Answer | CallSummary:
        """Ask a running call to end, wait for that, and show it. A call that has ended stays as it is."""
        request = pb.CancelCallRequest(call_id=call_id)
        return self._ask(self._channel.stub.CancelCall, request, _wire.call_state, call_id)

    def calls(self, limit: int = 50) -> list[CallSummary]:
        """List the newest calls of this caller, newest first.

        Raises:
            ValueError: `limit` is not 1 to 200.
        """
        request = pb.ListCallsRequest(limit=_wire.list_limit(limit))
        return self._ask(self._channel.stub.ListCalls, request, lambda page: list(map(_wire.summary, page.calls)))

    def tools(self) -> list[Tool]:
        """List the tools of which some call by this caller could be allowed, by name."""
        request = pb.ListToolsRequest()
        return self._ask(self._channel.stub.ListTools, request, lambda page: list(map(_wire.tool, page.tools)))

    def tool(self, name: str) -> Tool:
        """Show one tool with its schemas and limits."""
        request = pb.GetToolRequest(tool=name)
        return self._ask(self._channel.stub.GetTool, request, lambda response: _wire.tool(response.tool))

    def approvals(self) -> list[Approval]:
        """List what waits for an approval that this caller may give, and what of it was decided lately.

        The arguments of a call are in a single `approval()` only.
        """
        request = pb.ListApprovalsRequest()
        return self._ask(
            self._channel.stub.ListApprovals, request, lambda page: list(map(_wire.approval, page.approvals))
        )

    def approval(self, call_id: str) -> Approval:
        """Show one call that needs an approval, with its arguments."""
        request = pb.GetApprovalRequest(call_id=call_id)
        return self._ask(
            self._channel.stub.GetApproval, request, lambda response: _wire.approval(response.approval), call_id
        )

    def approve(self, call_id: str, digest: str) -> Approval:
        """Approve a call, once. `digest` is that of the approval that was read: nothing else is approved.

        Example::

            asked = gateway.approval(call_id)
            if sensible(asked.tool, asked.arguments):
                gateway.approve(call_id, asked.digest)
        """
        return self._decide(pb.DecideApprovalRequest(call_id=call_id, digest=digest, approve=True))

    def deny(self, call_id: str, digest: str) -> Approval:
        """Deny a call, once and for all. `digest` is that of the approval that was read."""
        return self._decide(pb.DecideApprovalRequest(call_id=call_id, digest=digest, approve=False))

    def dead_letters(self, limit: int = 50) -> DeadLetters:
        """List what failed for good, newest first, and how many there are in all.

        They are this caller's, or for an administrator those of the tenant.

        Raises:
            ValueError: `limit` is not 1 to 200.
        """
        request = pb.ListDeadLettersRequest(limit=_wire.list_limit(limit))
        return self._ask(self._channel.stub.ListDeadLetters, request, _wire.dead_letters)

    def dead_letter(self, call_id: str) -> DeadLetter:
        """Show one of them with its attempts."""
        request = pb.GetDeadLetterRequest(call_id=call_id)
        return self._ask(
            self._channel.stub.GetDeadLetter, request, lambda response: _wire.dead_letter(response.dead_letter), call_id
        )

    def redrive(self, call_id: str) -> CallSummary:
        """Make a new call of a dead letter, which then is none any more, and return the new call."""
        request = pb.RedriveDeadLetterRequest(call_id=call_id)
        return self._ask(self._channel.stub.RedriveDeadLetter, request, _summary_of)

    def discard(self, call_id: str) -> CallSummary:
        """Give a dead letter up."""
        request = pb.DiscardDeadLetterRequest(call_id=call_id)
        return self._ask(self._channel.stub.DiscardDeadLetter, request, _summary_of, call_id)

    def settle(self, call_id: str, *, happened: bool) -> CallSummary:
        """Say of a call whose effect is unknown whether it took effect. For administrators of its tenant."""
        request = pb.SettleCallRequest(call_id=call_id, happened=happened)
        return self._ask(self._channel.stub.SettleCall, request, _summary_of, call_id)

    def _decide(self, request: pb.DecideApprovalRequest) -> Approval:
        return self._ask(
            self._channel.stub.DecideApproval,
            request,
            lambda response: _wire.approval(response.approval),
            request.call_id,
        )

    def _call(self, request: pb.CallRequest, wait_s: float) -> Answer | CallSummary:
        with translating(self._target):
            response: pb.CallResponse = self._channel.stub.Call(request, timeout=wait_s, metadata=self._metadata)
        with reading(self._target, response.answer.call_id or response.summary.call_id):
            return _wire.call_state(response)

    def create_task(
        self,
        name: str,
        tools: Mapping[str, Mapping[str, Any]],
        *,
        lifetime_s: float,
        budget: Amounts | None = None,
    ) -> NewTask:
        """Make a task with a grant: the `tools`, each with a JSON Schema that arguments must fit as well, {} for any.

        Its `token` is a credential that is narrower than this one, for whoever works on the task. It is shown this
        once. A grant's schemas may use the part of JSON Schema that is quick to check: `type`, `enum`, `const`,
        `properties`, `required`, `additionalProperties`, `items`, `prefixItems`, minima and maxima, `multipleOf`,
        `allOf`, `anyOf`, `oneOf` and short `pattern`s.

        Raises:
            ValueError, TypeError: a schema that JSON cannot hold.
        """
        request = _bounds.task_request(name, tools, lifetime_s, budget)
        return self._ask(self._channel.stub.CreateTask, request, _bounds.new_task)

    def tasks(self, limit: int = 50) -> list[Task]:
        """List this caller's tasks, newest first.

        Raises:
            ValueError: `limit` is not 1 to 200.
        """
        request = pb.ListTasksRequest(limit=_wire.list_limit(limit))
        response = self._ask(self._channel.stub.ListTasks, request, _tasks_of)
        return list(response)

    def task(self, task_id: str) -> Task:
        """Show one task of this caller with what it has spent."""
        request = pb.GetTaskRequest(task_id=task_id)
        return self._ask(self._channel.stub.GetTask, request, _task_of)

    def end_task(self, task_id: str) -> Task:
        """End a task: its credential is worthless from then on. One that is over stays as it is."""
        request = pb.EndTaskRequest(task_id=task_id)
        return self._ask(self._channel.stub.EndTask, request, _task_of)

    def stops(self) -> list[Stop]:
        """List what is stopped in this administrator's tenant."""
        response = self._ask(self._channel.stub.ListStops, pb.ListStopsRequest(), _stops_of)
        return list(response)

    def stop(self, agent: str, reason: str = "") -> Stopped:
        """Refuse every call of an agent of this tenant, and cancel what runs. An empty `agent` is the whole tenant."""
        request = pb.StopRequest(agent=agent, reason=reason)
        return self._ask(self._channel.stub.Stop, request, _bounds.stopped)

    def resume(self, agent: str) -> None:
        """Take a stop back. No stop applies to this: who stopped its whole tenant can resume it."""
        self._ask(self._channel.stub.Resume, pb.ResumeRequest(agent=agent), bool)

    def breakers(self) -> list[Breaker]:
        """List the circuit breakers of this administrator's tenant, and those that all tenants share."""
        response = self._ask(self._channel.stub.ListBreakers, pb.ListBreakersRequest(), _breakers_of)
        return list(response)

    def set_breaker(self, name: str, *, open: bool) -> Breaker:  # noqa: A002  # the word for it
        """Open a circuit breaker until it is closed by hand, or close it."""
        request = pb.SetBreakerRequest(name=name, open=open)
        return self._ask(self._channel.stub.SetBreaker, request, _breaker_of)

    def _ask(
        self, rpc: Callable[..., Any], request: object, read: Callable[[Any], _ReadT], call_id: str | None = None
    ) -> _ReadT:
        """Ask something that starts no tool. `call_id` is the call that an unreadable response is about."""
        with translating(self._target):
            response = rpc(request, timeout=self._timeout_s, metadata=self._metadata)
        with reading(self._target, call_id):
            return read(response)

    def _follow(self, call_id: str, after: int, wait_s: float | None) -> Iterator[Event]:
        return self._events(pb.FollowCallRequest(call_id=call_id, after=after), wait_s)

    def _events(self, request: pb.StreamCallRequest | pb.FollowCallRequest, wait_s: float | None) -> Iterator[Event]:
        call_id: str | None = None
        stub = self._channel.stub
        rpc = stub.FollowCall if isinstance(request, pb.FollowCallRequest) else stub.StreamCall
        responses = rpc(request, timeout=wait_s, metadata=self._metadata)
        try:
            for response in responses:
                with reading(self._target, call_id):
                    event = _wire.event(response.event if isinstance(response, pb.FollowCallResponse) else response)
                if isinstance(event, CallRefused):
                    raise event
                if isinstance(event, Accepted | Waiting):
                    call_id = event.call_id
                if event is not None:
                    yield event
                if isinstance(event, Answered):
                    return
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._target, call_id) from error
        finally:
            responses.cancel()
        raise ended_early(self._target, call_id)


def _wait_s(deadline_s: float | None) -> float:
    """How long to listen: a little longer than the call can take, or partial output would be missed."""
    return (_LONGEST_CALL_S if deadline_s is None else deadline_s) + _GRACE_S


def _left_s(ends_at: float | None) -> float | None:
    return None if ends_at is None else max(0.0, ends_at - time.monotonic())


def _out_of_time(error: CallgateError) -> bool:
    """Say whether it was our own waiting that ended: the gateway was there."""
    cause = error.__cause__
    return isinstance(cause, grpc.RpcError) and cause.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def _summary_of(
    response: pb.RedriveDeadLetterResponse | pb.DiscardDeadLetterResponse | pb.SettleCallResponse,
) -> CallSummary:
    return _wire.summary(response.call)


def _tasks_of(response: pb.ListTasksResponse) -> tuple[Task, ...]:
    return tuple(map(_bounds.task, response.tasks))


def _task_of(response: pb.GetTaskResponse | pb.EndTaskResponse) -> Task:
    return _bounds.task(response.task)


def _stops_of(response: pb.ListStopsResponse) -> tuple[Stop, ...]:
    return tuple(map(_bounds.stop, response.stops))


def _breakers_of(response: pb.ListBreakersResponse) -> tuple[Breaker, ...]:
    return tuple(map(_bounds.breaker, response.breakers))


def _breaker_of(response: pb.SetBreakerResponse) -> Breaker:
    return _bounds.breaker(response.breaker)
