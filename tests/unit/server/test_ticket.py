import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from callgate_server.execution.egress import EgressBudget, EgressSession, EgressTerms, Outlet
from callgate_server.execution.framing import Frame
from callgate_server.model.answer import SandboxInfo
from callgate_server.model.call import Caller, CallRequest, Deadline
from callgate_server.model.egress import Credential, EgressAsk, EgressUsage
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.run import EgressWire
from callgate_server.model.sealed import Sealed
from callgate_server.model.strict_json import Json
from callgate_server.model.verdict import Ruling, Verdict
from callgate_server.ticket import EGRESS_AT_ONCE, Admitted, Ticket, WayOut
from support.stages import AGENT, OTHER_AGENT, tool

REQUEST = CallRequest("text.echo", b"{}", "grpc", idempotency_key="k")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def admitted(request: CallRequest = REQUEST, caller: Caller = AGENT, **changes: object) -> Admitted:
    ticket = Ticket(caller, request, arguments={"text": "hello", "mode": "plain"})
    ticket.tool = tool(**{"record_clear": ["mode"], "runtime": "runsc"} | changes)
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


@dataclass
class Gate:
    """Remembers what was opened."""

    terms: list[EgressTerms] = field(default_factory=list)
    authority_pem: bytes = b"PEM"

    def open(self, terms: EgressTerms, outlet: Outlet) -> EgressSession:
        self.terms.append(terms)
        return NoSession()


class NoSession:
    def feed(self, frame: Frame) -> None:
        raise ValueError("nothing is expected")

    async def close(self) -> EgressUsage:
        return EgressUsage()


async def nowhere(data: bytes) -> None:
    raise ConnectionError


async def unrecorded(kind: str, body: Mapping[str, Json]) -> None:
    raise CallError(Reason.AUDIT_UNAVAILABLE, "no record")


def yes(ask: EgressAsk) -> Verdict:
    return Verdict(Ruling.ALLOW, ("p2",), "v1")


def test_a_tool_without_rules_has_no_way_out_even_where_there_is_a_gate() -> None:
    assert admitted().way_out(Gate(), {}, yes, unrecorded) == WayOut()
    assert admitted(egress="configured").way_out(Gate(), {}, yes, unrecorded) == WayOut()


def test_a_tool_with_rules_never_runs_without_a_gate() -> None:
    with pytest.raises(ValueError, match="no gate"):
        admitted(egress=[{"host": "api.example.com"}]).way_out(None, {}, yes, unrecorded)


def test_what_a_call_may_reach_is_made_of_its_tool_its_leases_and_its_deadline() -> None:
    rules = [{"host": "api.example.com"}, {"host": "db", "scheme": "tcp", "port": 5432, "local_port": 15432}]
    limits = {"egress_kb": 2, "egress_connections": 3, "egress_requests": 4}
    call, gate = admitted(egress=rules, limits=limits), Gate()
    credentials = {"key": Credential("key", "X-Key", "", Sealed(b"value"))}
    way_out = call.way_out(gate, credentials, yes, unrecorded)
    assert way_out.wire is not None
    assert replace(way_out.wire, mark=None) == EgressWire(proxy=True, ports=(15432,), authority_pem=None)
    assert way_out.begin is not None
    way_out.begin(nowhere)
    (terms,) = gate.terms
    assert terms.mark == way_out.wire.mark
    assert terms.tenant == call.ticket.caller.tenant
    assert terms.rules == call.tool.manifest.rules
    assert terms.credentials is credentials
    assert terms.budget == EgressBudget(bytes=2048, connections=3, requests=4, concurrent=EGRESS_AT_ONCE)
    assert (terms.deadline, terms.consent, terms.record) == (call.deadline, yes, unrecorded)


@pytest.mark.parametrize(
    ("rule", "wire"),
    [
        ({"scheme": "tcp", "port": 5432}, EgressWire(proxy=False, ports=(5432,), authority_pem=None)),
        ({"scheme": "http", "methods": ["GET"]}, EgressWire(proxy=True, ports=(), authority_pem=None)),
        ({"methods": ["GET"]}, EgressWire(proxy=True, ports=(), authority_pem=b"PEM")),
        ({"paths": ["/v1/*"]}, EgressWire(proxy=True, ports=(), authority_pem=b"PEM")),
    ],
)
def test_a_sandbox_is_offered_what_its_rules_need_and_no_more(rule: dict[str, object], wire: EgressWire) -> None:
    call = admitted(egress=[{"host": "api.example.com", **rule}])
    offered = call.way_out(Gate(), {}, yes, unrecorded).wire
    assert offered is not None
    assert replace(offered, mark=None) == wire


def test_each_attempt_draws_a_mark_that_nobody_can_guess() -> None:
    call = admitted(egress=[{"host": "api.example.com"}])
    wires = [call.way_out(Gate(), {}, yes, unrecorded).wire for _ in range(3)]
    marks = {wire.mark for wire in wires if wire and wire.mark}
    assert len(marks) == 3
    assert all(len(mark) >= 22 and mark.isascii() and " " not in mark for mark in marks)


def test_a_tool_gets_the_arguments_that_the_deployment_fixes_and_the_record_does_not() -> None:
    call = admitted(fixed={"database": "orders"})
    assert call.tool_arguments_json == b'{"database":"orders","mode":"plain","text":"hello"}'
    assert admitted().tool_arguments_json == b"{}"
    assert "database" not in call.intent(digest).arguments
