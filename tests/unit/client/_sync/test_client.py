# Generated from tests/unit/client/_async/test_client.py by client/generate_sync.py: change that file, not this one.
# ruff: noqa: C416, SIM117
# the sync half of this file is generated from it
"""The sync client against a gateway that behaves."""

import socket
import textwrap
import threading
from collections.abc import Iterator

import grpc
import pytest

from callgate import (
    Accepted,
    Answer,
    Answered,
    CallFailed,
    Callgate,
    CallPending,
    CallRefused,
    CallSummary,
    GatewayUnreachable,
    OutputChunk,
    Waiting,
)
from callgate._sync import client
from callgate.task import Amounts
from support.examples import code_block
from support.fake_gateway import TOKEN, FakeGateway
from support.fake_refusals import Refused


@pytest.fixture
def gateway(fake: FakeGateway) -> Iterator[Callgate]:
    with Callgate(fake.target, token=TOKEN) as gateway:
        yield gateway


def test_the_example_of_the_module_runs(fake: FakeGateway, capsys: pytest.CaptureFixture[str]) -> None:
    namespace = {"Callgate": Callgate, "OutputChunk": OutputChunk, "token": TOKEN}
    code = textwrap.indent(code_block(client).replace("127.0.0.1:9090", fake.target), "    ")
    exec("def example():\n" + code, namespace)  # noqa: S102  # it is our own documentation
    namespace["example"]()  # type: ignore[operator]
    assert capsys.readouterr().out == "42\n\nlive\nlater\n\n"


def test_call_returns_the_answer_of_the_tool(gateway: Callgate) -> None:
    answer = gateway.call("text.upper", {"text": "grüße"})
    assert answer.ok
    assert answer.raise_for_state() is answer
    assert answer.result == {"text": "GRÜSSE"}
    assert (answer.tool, answer.version, answer.exit.code, answer.untrusted) == ("text.upper", "1.0.0", 0, True)
    assert answer.usage.phases_ms == {"run": 12.25}
    assert answer.decision.policies == ("permit-demo",)


def test_integers_above_two_to_the_53_survive(gateway: Callgate) -> None:
    assert (gateway.call("demo.both")).result == {"n": 9007199254740993}


def test_a_tool_that_fails_is_an_answer_with_its_output(gateway: Callgate) -> None:
    answer = gateway.call("demo.fail")
    assert not answer.ok
    assert answer.error is not None
    assert (answer.state, answer.error.reason, answer.exit.code) == ("failed", "tool_failed", 3)
    assert (answer.stdout.text, answer.stderr.text) == ("so far\n", "it broke\n")
    with pytest.raises(CallFailed) as caught:
        answer.raise_for_state()
    assert caught.value.answer is answer


def test_a_deadline_ends_the_tool_and_keeps_partial_output(gateway: Callgate, fake: FakeGateway) -> None:
    answer = gateway.call("demo.wait", deadline_s=0.0501)
    assert (answer.state, answer.stdout.text) == ("timed_out", "started\n")
    # Rounded up: a deadline is never made shorter than asked for.
    assert fake.calls[0].request.deadline_ms == 51


def test_a_refusal_raises_with_reason_policies_and_call_id(gateway: Callgate) -> None:
    with pytest.raises(CallRefused) as caught:
        gateway.call("demo.forbidden")
    refusal = caught.value
    assert (refusal.reason, refusal.message, refusal.retryable) == ("policy_denied", "No policy permits it.", False)
    assert refusal.failure.code == "PERMISSION_DENIED"
    assert refusal.policies == ("forbid-demo", "no-nights")
    assert refusal.call_id
    assert str(refusal) == f"policy_denied: No policy permits it. (call {refusal.call_id})"


def test_invalid_arguments_name_the_field(gateway: Callgate) -> None:
    with pytest.raises(CallRefused) as caught:
        gateway.call("text.upper", {"txt": "the value stays out of it"})
    violation = caught.value.violations[0]
    assert (violation.path, violation.rule, violation.message) == ("/txt", "additionalProperties", "is not declared")
    assert "the value" not in str(caught.value)


def test_a_refusal_says_when_to_try_again(gateway: Callgate, fake: FakeGateway) -> None:
    fake.refuse_with = Refused("overloaded", grpc.StatusCode.RESOURCE_EXHAUSTED, "At capacity.", retry_after_ms=1500)
    with pytest.raises(CallRefused) as caught:
        gateway.call("text.upper", {"text": "a"})
    assert (caught.value.reason, caught.value.retryable, caught.value.retry_after_ms) == ("overloaded", True, 1500)


def test_nothing_is_retried(gateway: Callgate, fake: FakeGateway) -> None:
    fake.refuse_with = Refused("draining", grpc.StatusCode.UNAVAILABLE, "Shutting down.", retry_after_ms=1)
    with pytest.raises(CallRefused):
        gateway.call("text.upper", {"text": "a"})
    assert len(fake.metadata) == 1


@pytest.mark.parametrize("token", [None, "cg_fake_wrong"])
def test_without_a_valid_token_calls_are_refused(fake: FakeGateway, token: str | None) -> None:
    with Callgate(fake.target, token=token) as gateway:
        with pytest.raises(CallRefused) as caught:
            gateway.tools()
    assert caught.value.reason == "unauthenticated"


def test_a_repeated_idempotency_key_is_replayed(gateway: Callgate, fake: FakeGateway) -> None:
    first = gateway.call("text.upper", {"text": "a"}, idempotency_key="k1")
    again = gateway.call("text.upper", {"text": "a"}, idempotency_key="k1")
    assert (first.replayed, again.replayed) == (False, True)
    assert (again.call_id, again.result) == (first.call_id, first.result)
    assert len(fake.calls) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_lacks_never_leave(gateway: Callgate, fake: FakeGateway, value: float) -> None:
    with pytest.raises(ValueError, match="NaN"):
        gateway.call("text.upper", {"text": [{"deep": value}]})
    assert fake.metadata == []


def test_a_stream_reports_acceptance_output_and_the_answer(gateway: Callgate) -> None:
    events = [event for event in gateway.stream("demo.speak")]
    assert isinstance(events[0], Accepted)
    assert [(event.stream, event.text) for event in events if isinstance(event, OutputChunk)] == [
        ("stdout", "one\n"),
        ("stderr", "a warning\n"),
        ("stdout", "two\n"),
    ]
    last = events[-1]
    assert isinstance(last, Answered)
    assert (last.answer.call_id, last.answer.stdout.text) == (events[0].call_id, "one\ntwo\n")
    assert [event.seq for event in events] == [0, 1, 2, 3, 4]


def test_a_replayed_stream_is_only_its_answer(gateway: Callgate) -> None:
    gateway.call("text.upper", {"text": "a"}, idempotency_key="k1")
    events = [event for event in gateway.stream("text.upper", {"text": "a"}, idempotency_key="k1")]
    assert [type(event) for event in events] == [Answered]


def test_a_stream_raises_the_refusal_before_the_first_event(gateway: Callgate) -> None:
    with pytest.raises(CallRefused, match="policy_denied"):
        next(gateway.stream("demo.forbidden"))


def test_a_stream_raises_a_refusal_after_acceptance(gateway: Callgate) -> None:
    events = gateway.stream("demo.late")
    accepted = next(events)
    with pytest.raises(CallRefused) as caught:
        next(events)
    assert isinstance(accepted, Accepted)
    assert (caught.value.reason, caught.value.call_id, caught.value.retryable) == (
        "sandbox_unavailable",
        accepted.call_id,
        True,
    )


def test_the_end_of_a_stream_is_not_taken_for_an_answer(gateway: Callgate) -> None:
    events = gateway.stream("demo.vanish")
    accepted = next(events)
    with pytest.raises(GatewayUnreachable) as caught:
        next(events)
    assert isinstance(accepted, Accepted)
    assert caught.value.call_id == accepted.call_id


def test_bad_arguments_of_a_stream_raise_at_once(gateway: Callgate) -> None:
    with pytest.raises(ValueError, match="deadline"):
        gateway.stream("demo.speak", deadline_s=0)


def test_leaving_a_stream_cancels_the_call_if_asked(gateway: Callgate, fake: FakeGateway) -> None:
    for event in gateway.stream("demo.wait", on_disconnect="cancel"):
        if isinstance(event, OutputChunk):
            break
    call = fake.call_of("demo.wait")
    gateway.close()
    assert call.cancelled.wait(10)


def test_cancel_keeps_what_the_tool_wrote(gateway: Callgate, fake: FakeGateway) -> None:
    events = gateway.stream("demo.wait")
    accepted = next(events)
    assert isinstance(accepted, Accepted)
    running = gateway.get(accepted.call_id)
    assert isinstance(running, CallSummary)
    assert (running.state, running.finished_at) == ("running", None)
    assert running.to_json()["received_at"] == "2026-01-02T03:04:05.678901+00:00"
    next(events)
    ended = gateway.cancel(accepted.call_id)
    assert isinstance(ended, Answer)
    assert (ended.state, ended.stdout.text) == ("cancelled", "started\n")


def test_get_shows_the_stored_answer(gateway: Callgate) -> None:
    answer = gateway.call("text.upper", {"text": "a"})
    assert gateway.get(answer.call_id) == answer


def test_an_unknown_call_is_refused(gateway: Callgate) -> None:
    for ask in (gateway.get, gateway.cancel):
        with pytest.raises(CallRefused) as caught:
            ask("00000000-0000-0000-0000-000000000000")
        assert caught.value.reason == "unknown_call"


def test_calls_are_listed_newest_first(gateway: Callgate) -> None:
    gateway.call("text.upper", {"text": "a"})
    gateway.call("demo.fail")
    calls = gateway.calls()
    assert [call.tool for call in calls] == ["demo.fail", "text.upper"]
    assert calls[0].error is not None
    assert calls[0].error.reason == "tool_failed"
    assert [call.tool for call in gateway.calls(limit=1)] == ["demo.fail"]


@pytest.mark.parametrize("limit", [0, 201, -1])
def test_a_list_that_is_never_so_long_is_not_asked_for(gateway: Callgate, fake: FakeGateway, limit: int) -> None:
    for ask in (gateway.calls, gateway.dead_letters, gateway.tasks):
        with pytest.raises(ValueError, match="1 to 200"):
            ask(limit)
    assert fake.metadata == []


def test_tools_have_schemas_and_limits(gateway: Callgate) -> None:
    assert "text.upper" in [tool.tool for tool in gateway.tools()]
    tool = gateway.tool("text.upper")
    assert tool.input["required"] == ["text"]
    assert (tool.limits.wall_s, tool.limits.memory_mb) == (30.0, 256)
    with pytest.raises(CallRefused, match="unknown_tool"):
        gateway.tool("demo.nothing")


def test_a_result_that_is_not_json_is_no_answer(gateway: Callgate, fake: FakeGateway) -> None:
    with pytest.raises(GatewayUnreachable, match=r"callgate\.v1|was accepted") as caught:
        gateway.call("demo.garbage")
    assert caught.value.call_id == fake.calls[0].id


def test_an_answer_larger_than_allowed_names_its_call(fake: FakeGateway) -> None:
    with Callgate(fake.target, token=TOKEN, max_answer_bytes=1024 * 1024) as small:
        with pytest.raises(GatewayUnreachable) as caught:
            small.call("demo.large")
    with Callgate(fake.target, token=TOKEN, max_answer_bytes=1000) as smaller:
        with pytest.raises(GatewayUnreachable, match="larger than this client takes"):
            smaller.tools()
    assert caught.value.call_id == fake.calls[0].id
    with Callgate(fake.target, token=TOKEN) as gateway:
        assert len((gateway.call("demo.large")).result) == 3_000_000


def test_a_request_larger_than_the_gateway_takes_is_refused(gateway: Callgate, fake: FakeGateway) -> None:
    with pytest.raises(CallRefused) as caught:
        gateway.call("text.upper", {"text": "x" * (2 << 20)})
    assert caught.value.reason == "request_too_large"
    assert "It takes 1048576 bytes" in caught.value.message
    assert fake.calls == []


def test_a_closed_port_says_what_to_check() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{reserved.getsockname()[1]}"
        with Callgate(target, token=TOKEN) as gateway:
            with pytest.raises(GatewayUnreachable, match="Check that it runs") as caught:
                gateway.tools()
    assert target in str(caught.value)
    assert caught.value.call_id is None


def test_a_silent_peer_is_given_up_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with Callgate(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2) as gateway:
            with pytest.raises(GatewayUnreachable):
                gateway.tools()


def test_a_gateway_that_stops_is_noticed(fake: FakeGateway) -> None:
    with Callgate(fake.target, token=TOKEN) as gateway:
        gateway.tools()
        fake.stop()
        with pytest.raises(GatewayUnreachable):
            gateway.tools()


def test_a_closed_client_says_so(fake: FakeGateway) -> None:
    gateway = Callgate(fake.target, token=TOKEN)
    gateway.tools()
    gateway.close()
    with pytest.raises(ValueError, match="closed"):
        gateway.tools()


def test_the_token_is_not_in_the_representation() -> None:
    gateway = Callgate("127.0.0.1:9090", token=TOKEN)
    assert TOKEN not in repr(gateway)
    assert "127.0.0.1:9090" in repr(gateway)


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "grün", "x" * 8193])
def test_a_token_that_cannot_be_a_header_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII") as caught:
        Callgate("127.0.0.1:9090", token=token)
    assert not token or token not in str(caught.value)


def test_a_token_does_not_leave_in_clear_by_accident() -> None:
    for target in ("gateway.example:9090", "10.0.0.1:9090", "[2001:db8::1]:9090"):
        with pytest.raises(ValueError, match="in clear"):
            Callgate(target, token=TOKEN, tls=False)
        Callgate(target, token=TOKEN, tls=False, send_token_in_clear=True)


def test_on_disconnect_takes_only_its_two_words(gateway: Callgate) -> None:
    with pytest.raises(ValueError, match="on_disconnect"):
        gateway.call("text.upper", on_disconnect="ignore")  # type: ignore[arg-type]


def submit(gateway: Callgate, tool: str, *, purpose: str | None = None) -> CallSummary:
    call = gateway.submit(tool, purpose=purpose)
    assert isinstance(call, CallSummary)
    return call


def test_a_call_that_needs_an_approval_is_pending_and_says_by_whom(gateway: Callgate) -> None:
    with pytest.raises(CallPending) as caught:
        gateway.call("demo.guarded", {"amount": 1}, task="t1", purpose="because")
    summary = caught.value.summary
    assert (summary.state, summary.task) == ("awaiting_approval", "t1")
    assert summary.approval is not None
    assert (summary.approval.group, summary.approval.decided_by) == ("finance", None)
    assert str(caught.value) == (
        "demo.guarded waits for an approval by finance until 2100-01-02T03:04:05+00:00: "
        f"ask for it with get() or follow() (call {summary.call_id})"
    )


def test_what_was_read_is_approved_and_runs(gateway: Callgate) -> None:
    call = submit(gateway, "demo.guarded", purpose="because")
    listed = gateway.approvals()
    assert [(one.call_id, one.state, one.arguments) for one in listed] == [(call.call_id, "waiting", None)]
    asked = gateway.approval(call.call_id)
    assert (asked.arguments, asked.purpose, asked.group, asked.waits) == ({}, "because", "finance", True)
    decided = gateway.approve(call.call_id, asked.digest)
    assert (decided.state, decided.decided_by) == ("approved", "acme/boss")
    assert (gateway.wait(call.call_id, timeout_s=10)).stdout.text == "paid\n"
    with pytest.raises(CallRefused, match="not_possible"):
        gateway.approve(call.call_id, asked.digest)


def test_another_digest_decides_nothing(gateway: Callgate) -> None:
    call = submit(gateway, "demo.guarded")
    for decide in (gateway.approve, gateway.deny):
        with pytest.raises(CallRefused, match="approval_void"):
            decide(call.call_id, "sha256:00")
    assert (gateway.approval(call.call_id)).waits


def test_a_denied_call_never_started(gateway: Callgate) -> None:
    call = submit(gateway, "demo.guarded")
    gateway.deny(call.call_id, (gateway.approval(call.call_id)).digest)
    with pytest.raises(CallRefused) as caught:
        gateway.wait(call.call_id, timeout_s=10)
    assert (caught.value.reason, caught.value.call_id) == ("approval_denied", call.call_id)


def test_a_submitted_call_goes_on_by_itself(gateway: Callgate, fake: FakeGateway) -> None:
    fake.turns.clear()
    call = gateway.submit("text.upper", {"text": "a"}, priority=9, purpose="later", idempotency_key="k1")
    assert isinstance(call, CallSummary)
    assert (call.state, call.attempt) == ("admitted", 1)
    request = fake.calls[0].request
    assert (request.asynchronous, request.priority, request.purpose) == (True, 9, "later")
    # The RPC's own deadline counts as the call's, so that it must not be that of a question.
    fake.turns.set()
    assert (gateway.wait(call.call_id)).result == {"text": "A"}
    again = gateway.submit("text.upper", {"text": "a"}, idempotency_key="k1")
    assert isinstance(again, Answer)
    assert again.replayed


def test_following_shows_what_a_call_waits_for(gateway: Callgate, fake: FakeGateway) -> None:
    fake.turns.clear()
    call = submit(gateway, "demo.speak")
    events = []
    for event in gateway.follow(call.call_id):
        events.append(event)
        fake.turns.set()
    assert events[:2] == [Accepted(0, call.call_id), Waiting(1, call.call_id, "admitted")]
    assert isinstance(events[-1], Answered)
    assert [event.text for event in events if isinstance(event, OutputChunk)] == ["one\n", "a warning\n", "two\n"]
    # A call that has ended has its last event.
    assert [event for event in gateway.follow(call.call_id)] == events[-1:]


def test_following_goes_on_after_the_last_event_that_is_known(gateway: Callgate, fake: FakeGateway) -> None:
    fake.turns.clear()
    call = submit(gateway, "demo.flaky")
    seen = []
    with pytest.raises(GatewayUnreachable) as caught:
        for event in gateway.follow(call.call_id):
            seen.append(event)  # what came before the connection broke is kept
            fake.turns.set()
    assert caught.value.call_id == call.call_id
    rest = [event for event in gateway.follow(call.call_id, after=seen[-1].seq)]
    assert isinstance(rest[-1], Answered)
    assert rest[-1].answer.stdout.text == "one\ntwo\n"
    assert not {event.seq for event in seen} & {event.seq for event in rest}


def test_waiting_survives_a_broken_connection(gateway: Callgate, fake: FakeGateway) -> None:
    fake.turns.clear()
    call = submit(gateway, "demo.flaky")
    threading.Timer(0.2, fake.turns.set).start()
    assert (gateway.wait(call.call_id, timeout_s=30)).stdout.text == "one\ntwo\n"
    assert len(fake.metadata) > 2


def test_waiting_ends_in_time_and_the_call_goes_on(gateway: Callgate, fake: FakeGateway) -> None:
    fake.turns.clear()
    call = submit(gateway, "demo.speak")
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.3 s; it goes on"):
        gateway.wait(call.call_id, timeout_s=0.3)
    assert not fake.calls[0].cancelled.is_set()


def test_waiting_for_a_gateway_that_stays_away_ends(gateway: Callgate, fake: FakeGateway) -> None:
    fake.stop()
    with pytest.raises(GatewayUnreachable):
        gateway.wait("00000000-0000-0000-0000-000000000000", timeout_s=0.5)


def test_waiting_for_a_call_that_never_started_or_is_unknown_is_refused(gateway: Callgate) -> None:
    call = submit(gateway, "demo.late")
    for call_id, reason in ((call.call_id, "sandbox_unavailable"), ("no-such-call", "unknown_call")):
        with pytest.raises(CallRefused, match=reason):
            gateway.wait(call_id, timeout_s=10)


def test_waiting_goes_on_while_the_gateway_is_draining(gateway: Callgate, fake: FakeGateway) -> None:
    call = submit(gateway, "demo.speak")
    fake.refuse_with = Refused("draining", grpc.StatusCode.UNAVAILABLE, "Shutting down.", retry_after_ms=1)
    with pytest.raises(CallRefused, match="draining"):
        gateway.wait(call.call_id, timeout_s=2)
    assert len(fake.metadata) > 2


def test_what_failed_for_good_is_a_dead_letter_and_can_be_redriven(gateway: Callgate) -> None:
    call = submit(gateway, "demo.fail")
    assert not (gateway.wait(call.call_id)).ok
    listed = gateway.dead_letters()
    assert (listed.total, [letter.call_id for letter in listed.dead_letters]) == (1, [call.call_id])
    letter = gateway.dead_letter(call.call_id)
    assert [(one.attempt, one.reason) for one in letter.attempts] == [(1, "tool_failed"), (2, "tool_failed")]
    assert letter.redrivable
    again = gateway.redrive(call.call_id)
    assert (again.follows, again.call_id != call.call_id) == (call.call_id, True)
    gateway.wait(again.call_id)
    assert (gateway.discard(again.call_id)).call_id == again.call_id
    assert (gateway.dead_letters()).total == 0
    with pytest.raises(CallRefused, match="not_possible"):
        gateway.discard(call.call_id)


def test_an_unknown_effect_is_settled(gateway: Callgate) -> None:
    for happened, state in ((True, "succeeded"), (False, "failed")):
        call = submit(gateway, "demo.unknown")
        with pytest.raises(CallRefused, match="effect_unknown"):
            gateway.wait(call.call_id)
        assert not (gateway.dead_letter(call.call_id)).redrivable
        assert (gateway.settle(call.call_id, happened=happened)).state == state


def test_a_task_is_made_shown_and_ended(gateway: Callgate) -> None:
    grant = {"text.diff": {"properties": {"before": {"const": "a"}}}, "text.upper": {}}
    made = gateway.create_task("compare", grant, lifetime_s=60, budget=Amounts(calls=3, cost=2.5))
    assert made.token == "cgt_fake_credential"
    assert made.token not in repr(made)
    assert (made.task.tools, made.task.budget) == (grant, Amounts(calls=3, cost=2.5))
    assert not made.task.is_over
    assert gateway.tasks() == [made.task] == [gateway.task(made.task.task_id)]
    assert (gateway.end_task(made.task.task_id)).is_over
    with pytest.raises(CallRefused):
        gateway.task("task-nobodys")
    with pytest.raises(ValueError, match="JSON"):
        gateway.create_task("x", {"text.diff": {"const": float("nan")}}, lifetime_s=60)


def test_an_agent_is_stopped_and_goes_on(gateway: Callgate) -> None:
    stopped = gateway.stop("bot", "it loops")
    assert (stopped.stop.agent, stopped.stop.reason, stopped.cancelled) == ("bot", "it loops", 2)
    assert gateway.stops() == [stopped.stop]
    gateway.resume("bot")
    assert gateway.stops() == []
    with pytest.raises(CallRefused):
        gateway.resume("bot")


def test_breakers_are_listed_and_set(gateway: Callgate) -> None:
    assert [(one.name, one.state, one.failures) for one in gateway.breakers()] == [
        ("engine", "closed", 2),
        ("tool:acme/text.diff", "closed", 2),
        ("upstream:acme/statistics.example:8443", "open", 0),
    ]
    assert [one.retry_after_ms for one in gateway.breakers()] == [None, None, 12_300]
    assert (gateway.set_breaker("engine", open=True)).state == "forced_open"
    assert (gateway.set_breaker("engine", open=False)).state == "closed"
    with pytest.raises(CallRefused):
        gateway.set_breaker("nonsense", open=True)
