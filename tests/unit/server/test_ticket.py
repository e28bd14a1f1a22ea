import hashlib
from dataclasses import replace
from datetime import timedelta

from callgate_server.model.answer import SandboxInfo
from callgate_server.model.call import Caller, CallRequest, Deadline
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.verdict import Ruling, Verdict
from callgate_server.ticket import Admitted, Ticket
from support.stages import AGENT, OTHER_AGENT, tool

REQUEST = CallRequest("text.echo", b"{}", "grpc", idempotency_key="k")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def admitted(request: CallRequest = REQUEST, caller: Caller = AGENT) -> Admitted:
    ticket = Ticket(caller, request, arguments={"text": "hello", "mode": "plain"})
    ticket.tool = tool(record_clear=["mode"], runtime="runsc")
    verdict = Verdict(Ruling.ALLOW, ("p1",), "v1")
    return Admitted(ticket, ticket.tool, verdict, b"{}", "digest", Deadline(ticket.received_s + 5))


def test_an_early_refusal_records_what_was_known_by_then() -> None:
    refusal = Ticket(AGENT, REQUEST).refusal(CallError(Reason.UNKNOWN_TOOL, "No such tool."), digest)
    assert (refusal.tool, refusal.version, refusal.policy_version, refusal.arguments) == ("", "", "", {})
    assert refusal.caller == AGENT


def test_a_late_refusal_records_arguments_as_hashes_but_for_those_marked_clear() -> None:
    call = admitted()
    call.ticket.verdict = call.verdict
    refusal = call.ticket.refusal(CallError(Reason.OVERLOADED, "full", policies=("p1",)), digest)
    assert (refusal.tool, refusal.version, refusal.policy_version) == ("text.echo", "1.0.0", "v1")
    assert refusal.arguments["mode"] == "plain"
    assert "hello" not in repr(refusal.arguments)


def test_intent_sandbox_and_answer_agree_on_the_call() -> None:
    call = admitted()
    intent, request = call.intent(digest), call.sandbox_request()
    blank = call.blank(SandboxInfo("fake", "runsc", "container"))
    assert intent.call_id == request.call_id == blank.call_id == call.ticket.id
    assert intent.decision_id == blank.decision.id
    assert intent.idempotency_key == "k"
    assert "hello" not in repr(intent)
    assert request.runtime == "runsc"
    assert request.tenant == "acme"
    assert intent.deadline_at == request.deadline_at
    assert abs(intent.deadline_at - call.ticket.received_at - timedelta(seconds=5)) < timedelta(milliseconds=1)


def test_each_attempt_with_a_key_has_the_same_key_towards_upstreams_and_never_the_callers() -> None:
    first, second = admitted().names(digest), admitted().names(digest)
    assert first.call_id != second.call_id
    assert first.idempotency_key == second.idempotency_key
    assert len(first.idempotency_key) == 32
    others = [
        admitted(replace(REQUEST, idempotency_key="l")),
        admitted(caller=OTHER_AGENT),
        replace(admitted(), tool=tool(tool="text.other")),
        replace(admitted(), arguments_digest="other"),
        admitted(replace(REQUEST, idempotency_key=None)),
        admitted(replace(REQUEST, idempotency_key=None)),
    ]
    assert len({first.idempotency_key, *(call.names(digest).idempotency_key for call in others)}) == 7


def test_a_call_cancelled_before_it_had_a_sandbox_is_answered_without_one() -> None:
    answer = admitted().cancelled_early()
    assert (answer.state, answer.error and answer.error.reason) == (State.CANCELLED, Reason.CANCELLED)
    assert answer.sandbox == SandboxInfo("", "", "container")
