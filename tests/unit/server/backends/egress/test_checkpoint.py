import asyncio
import re
import time
from ipaddress import ip_address

import pytest

from callgate_server.backends.egress.checkpoint import Checkpoint
from callgate_server.backends.egress.meter import Trip
from callgate_server.backends.egress.pipes import FailedError, RefusedError
from callgate_server.execution.breaker import BreakerRules
from callgate_server.execution.breakers import Breakers
from callgate_server.execution.egress import EgressTerms
from callgate_server.execution.egress_rules import Why
from callgate_server.model.call import Deadline
from callgate_server.model.egress import EgressAsk
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.verdict import Ruling, Verdict
from support.egress_rig import ALLOWED, BUDGET, credential, rule
from support.pipes import pair

HOST = "api.example.com"
ADDRESSES = (ip_address("93.184.216.34"), ip_address("2606:4700::1111"))
ASK = EgressAsk("https", HOST, 443, "GET", "/v1/a")


RULES = BreakerRules(window=4, min_calls=2, failure_rate=0.5, open_s=7.5, probes=1)
DENIED = Verdict(Ruling.DENY, ("no-admin",), "v1")


class Link:
    """A link of a pair, with an address."""

    def __init__(self):
        end, self.upstream = pair()
        self.address = ADDRESSES[0]
        self.usable = True
        self.read, self.write, self.finish, self.abort = end.read, end.write, end.finish, end.abort


class FakeDialler:
    """Behaves as told, and writes into the order of things what it was asked for."""

    def __init__(self, order, resolved=ADDRESSES, fails=None, *, hangs=False):
        self.order = order
        self.resolved = resolved
        self.fails = fails
        self.hangs = hangs
        self.links = []

    async def resolve(self, host, port, tenant):
        self.order.append(("resolve", host, port, tenant))
        return self.resolved

    async def dial(self, addresses, port, tls_name):
        self.order.append(("dial", addresses, port, tls_name))
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails:
            raise FailedError(self.fails)
        self.links.append(Link())
        return self.links[-1]


class Desk:
    """A checkpoint with everything around it."""

    def __init__(
        self,
        *rules,
        credentials=(),
        verdict=ALLOWED,
        forbidden="",
        resolved=ADDRESSES,
        fails=None,
        hangs=False,
        unwritable=(),
        fault=None,
    ):
        self.order = []
        self.reports = []
        self.unwritable = unwritable

        def consent(ask):
            self.order.append(("consent", ask))
            return DENIED if forbidden and ask.path.startswith(forbidden) else verdict

        async def record(event, fields):
            if event in self.unwritable:
                raise CallError(Reason.AUDIT_UNAVAILABLE, "The record cannot be written.")
            if fault is not None and event == "egress_closed":
                raise fault
            self.order.append((event, dict(fields)))

        self.breakers = Breakers({"upstream": RULES}, lambda _: None, clock=lambda: self.now)
        self.now = 0.0
        terms = EgressTerms(
            tenant="acme",
            rules=rules,
            credentials={one.name: one for one in credentials},
            consent=consent,
            budget=BUDGET,
            deadline=Deadline(time.monotonic() + 60),
            record=record,
            mark="mark",
        )
        self.dialler = FakeDialler(self.order, resolved, fails, hangs=hangs)
        self.checkpoint = Checkpoint(terms, self.dialler, self.breakers, lambda _, error: self.reports.append(error))

    @property
    def steps(self):
        return [step[0] for step in self.order]

    async def refused(self, ask=ASK):
        with pytest.raises(RefusedError) as refused:
            await self.checkpoint.admit(ask)
        await self.checkpoint.refuse(refused.value)
        return refused.value.why


async def test_nothing_is_asked_of_anybody_before_a_rule_allows_it():
    desk = Desk()
    assert await desk.refused() is Why.NO_RULE
    assert desk.order == [
        (
            "egress_refused",
            {"scheme": "https", "host": HOST, "port": 443, "method": "GET", "why": "no_rule", "policies": []},
        )
    ]


@pytest.mark.parametrize(
    ("ruling", "why"),
    [
        (Ruling.DENY, Why.POLICY_DENIED),
        (Ruling.ERROR, Why.POLICY_ERROR),
        (Ruling.NEEDS_APPROVAL, Why.APPROVAL_REQUIRED),
    ],
)
async def test_no_name_is_asked_for_that_policy_refuses(ruling, why):
    desk = Desk(rule(HOST, 443), verdict=Verdict(ruling, ("no-egress",), "v1"))
    assert await desk.refused() is why
    assert desk.steps == ["consent", "egress_refused"]
    assert desk.order[-1][1]["policies"] == ["no-egress"]


@pytest.mark.parametrize(
    "path", ["/admin/x", "//admin/x", "/;a/admin", "/%2Fadmin", "/%2561dmin", "/a%2F%252e%252e%2Fadmin"]
)
async def test_policy_is_against_a_path_in_whichever_way_an_upstream_may_read_it(path):
    desk = Desk(rule(HOST, 443), forbidden="/admin")
    assert await desk.refused(EgressAsk("https", HOST, 443, "GET", path)) is Why.POLICY_DENIED
    await desk.checkpoint.admit(EgressAsk("https", HOST, 443, "GET", path.replace("d", "")))


async def test_a_path_that_nobody_can_say_the_reading_of_is_refused():
    desk = Desk(rule(HOST, 443))
    assert await desk.refused(EgressAsk("https", HOST, 443, "GET", "/%" + "25" * 99)) is Why.BAD_PATH


async def test_policy_is_asked_about_exactly_what_was_asked_for():
    desk = Desk(rule(HOST, 443))
    await desk.checkpoint.admit(ASK)
    assert desk.order[0] == ("consent", ASK)


async def test_what_is_allowed_is_recorded_before_it_is_dialled():
    desk = Desk(rule(HOST, 443))
    admission = await desk.checkpoint.admit(ASK)
    await desk.checkpoint.dial(admission, Trip(1), tls=True)
    assert desk.steps == ["consent", "resolve", "egress_allowed", "dial"]
    assert desk.order[1] == ("resolve", HOST, 443, "acme")
    assert desk.order[2][1] == {
        "scheme": "https",
        "host": HOST,
        "port": 443,
        "method": "GET",
        "rule": "api.example.com:443",
        "policies": ["permit-all"],
        "policy_version": "v1",
        "address": "93.184.216.34,2606:4700::1111",
    }
    assert desk.order[3] == ("dial", ADDRESSES, 443, HOST)


async def test_what_cannot_be_recorded_is_not_allowed():
    desk = Desk(rule(HOST, 443), unwritable=("egress_allowed",))
    assert await desk.refused() is Why.UNRECORDED
    assert "dial" not in desk.steps


async def test_a_bad_address_is_a_refusal():
    desk = Desk(rule(HOST, 443), resolved=Why.METADATA_ADDRESS)
    assert await desk.refused() is Why.METADATA_ADDRESS
    assert desk.order[-1][1]["why"] == "metadata_address"


async def test_an_open_connection_keeps_its_address():
    desk = Desk(rule(HOST, 443))
    admission = await desk.checkpoint.admit(ASK, held=ADDRESSES[1])
    assert admission.addresses == (ADDRESSES[1],)
    assert "resolve" not in desk.steps


async def test_the_credential_of_the_rule_comes_with_the_admission_and_its_name_into_the_record():
    desk = Desk(rule(HOST, 443, secret="key"), credentials=[credential("key", b"s3cr3t"), credential("other", b"x")])
    admission = await desk.checkpoint.admit(ASK)
    assert admission.header.value == b"Bearer s3cr3t"
    assert desk.order[-1][1]["secret"] == "key"
    assert "s3cr3t" not in repr((desk.order, admission))


@pytest.mark.parametrize("credentials", [[], [credential("key", b"two\r\nlines")]])
async def test_without_a_usable_credential_the_request_does_not_go_without_it(credentials):
    desk = Desk(rule(HOST, 443, secret="key"), credentials=credentials)
    assert await desk.refused() is Why.BAD_CREDENTIAL
    assert "resolve" not in desk.steps


def test_tls_is_to_be_ended_where_a_rule_must_see_the_request():
    desk = Desk(rule(HOST, 443), rule("seen.example.com", 443), rule("seen.example.com", 443, methods=["GET"]))
    assert not desk.checkpoint.must_see(EgressAsk("https", HOST, 443))
    assert desk.checkpoint.must_see(EgressAsk("https", "seen.example.com", 443))
    with pytest.raises(RefusedError, match="no_rule"):
        desk.checkpoint.must_see(EgressAsk("https", HOST, 8443))


async def test_what_a_connection_carried_is_recorded_at_its_end():
    desk = Desk(rule(HOST, 443))
    trip = Trip(1)
    link = await desk.checkpoint.dial(await desk.checkpoint.admit(ASK), trip, tls=True)
    await link.write(b"1234")
    await desk.checkpoint.close(trip)
    await desk.checkpoint.close(trip)
    assert desk.steps.count("egress_closed") == 1
    assert desk.order[-1][1] == {
        "scheme": "https",
        "host": HOST,
        "port": 443,
        "sent_bytes": 4,
        "received_bytes": 0,
        "how": "ended",
    }


async def test_a_connection_that_was_allowed_and_failed_is_recorded_as_that():
    desk = Desk(rule(HOST, 443), fails=Why.UNTRUSTED_CERTIFICATE)
    trip = Trip(1)
    with pytest.raises(FailedError, match="untrusted_certificate"):
        await desk.checkpoint.dial(await desk.checkpoint.admit(ASK), trip, tls=True)
    assert desk.order[-1][1]["how"] == "untrusted_certificate"
    assert not trip.links


async def test_an_account_that_cannot_be_written_is_reported():
    desk = Desk(rule(HOST, 443), unwritable=("egress_closed", "egress_refused"))
    trip = Trip(1)
    await desk.checkpoint.dial(await desk.checkpoint.admit(ASK), trip, tls=True)
    await desk.checkpoint.close(trip, Why.IDLE)
    assert await desk.refused(EgressAsk("https", "evil.test", 443)) is Why.NO_RULE
    assert [error.reason for error in desk.reports] == [Reason.AUDIT_UNAVAILABLE] * 2


@pytest.mark.parametrize("host", ["a" * 254, "b\u00fccher.example", "line\nbreak", "\x1b[31m", "a b", "\udcff"])
async def test_what_a_hostile_tool_chose_is_recorded_as_it_is_only_if_it_is_plain(host):
    desk = Desk()
    assert await desk.refused(EgressAsk("https", host, 443)) is Why.NO_RULE
    recorded = desk.order[-1][1]["host"]
    assert recorded.startswith("sha256:")
    assert len(recorded) == len("sha256:") + 64


async def test_a_spent_budget_is_recorded_once_and_counted_each_time():
    desk = Desk()
    for _ in range(3):
        await desk.checkpoint.refuse(RefusedError(Why.REQUESTS_SPENT, ASK))
        await desk.checkpoint.refuse(RefusedError(Why.NO_RULE, ASK))
    assert desk.steps.count("egress_refused") == 4
    assert desk.checkpoint.spending.usage.refused == 6


async def test_a_fault_of_the_record_at_an_end_does_not_keep_the_rest_from_ending():
    desk = Desk(rule(HOST, 443), fault=RuntimeError("a fault of the gateway"))
    trip = Trip(1)
    for _ in range(2):
        await desk.checkpoint.dial(await desk.checkpoint.admit(ASK), trip, tls=True)
    await desk.checkpoint.close(trip)
    assert not trip.links
    assert [str(error) for error in desk.reports] == ["a fault of the gateway"] * 2


async def test_a_cancellation_while_an_end_is_recorded_leaves_no_connection_open():
    desk = Desk(rule(HOST, 443), fault=asyncio.CancelledError())
    trip = Trip(1)
    for _ in range(2):
        await desk.checkpoint.dial(await desk.checkpoint.admit(ASK), trip, tls=True)
    # As when a third is on its way.
    trip.dialling = ASK
    with pytest.raises(asyncio.CancelledError):
        await desk.checkpoint.close(trip, Why.CALL_ENDED)
    assert [link.upstream.aborted for link in desk.dialler.links] == [True, True]


async def test_a_connection_that_was_allowed_and_given_up_on_the_way_has_an_end_in_the_record():
    desk = Desk(rule(HOST, 443), hangs=True)
    trip = Trip(1)
    admission = await desk.checkpoint.admit(ASK)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await desk.checkpoint.dial(admission, trip, tls=True)
    for _ in range(2):
        await desk.checkpoint.close(trip, Why.CALL_ENDED)
    assert desk.steps.count("egress_closed") == 1
    assert desk.order[-1][1]["how"] == "call_ended"


# --- the circuit breaker of an upstream ----------------------------------------------------------------------------


async def attempt(desk, error=None, status=200, ask=ASK):
    """One request to an upstream that answers with `status`, or ends in `error`."""
    admission = await desk.checkpoint.admit(ask)
    with admission.passing():
        if error is not None:
            raise error
        admission.answered(status)


async def failing(desk, *errors, ask=ASK):
    for error in errors:
        with pytest.raises(type(error)):
            await attempt(desk, error, ask=ask)


NAME = f"upstream:acme/{HOST}:443"


@pytest.mark.parametrize("why", [Why.UNREACHABLE, Why.BROKEN_OFF, Why.BAD_ANSWER, Why.IDLE, Why.TLS_FAILED])
async def test_an_upstream_that_fails_is_left_alone_and_no_name_is_asked_for(why):
    desk = Desk(rule(HOST, 443))
    await failing(desk, FailedError(why), FailedError(why))
    desk.order.clear()
    assert await desk.refused() is Why.CIRCUIT_OPEN
    assert desk.steps == ["consent", "egress_refused"]
    assert (desk.order[-1][1]["why"], desk.order[-1][1]["policies"]) == ("circuit_open", ["permit-all"])


@pytest.mark.parametrize(("status", "refused"), [(502, True), (503, True), (504, True), (500, False), (429, False)])
async def test_only_what_an_upstream_says_in_place_of_an_answer_counts(status, refused):
    desk = Desk(rule(HOST, 443))
    for _ in range(2):
        await attempt(desk, status=status)
    if refused:
        assert await desk.refused() is Why.CIRCUIT_OPEN
    else:
        await attempt(desk)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("the tool hung up"),
        asyncio.CancelledError(),
        FailedError(Why.BYTES_SPENT),
        FailedError(Why.UNTRUSTED_CERTIFICATE),
        FailedError(Why.OTHER_NAME),
        FailedError(Why.ENCODED_ANSWER),
    ],
)
async def test_what_is_not_the_upstreams_own_doing_does_not_count(error):
    desk = Desk(rule(HOST, 443))
    await failing(desk, *[error] * 5)
    assert desk.breakers.list()[NAME].calls == 0
    await desk.checkpoint.admit(ASK)


async def test_silence_towards_a_tool_that_has_not_said_all_does_not_count():
    desk = Desk(rule(HOST, 443))
    for _ in range(3):
        admission = await desk.checkpoint.admit(ASK)
        with pytest.raises(FailedError), admission.passing():
            admission.unasked()
            raise FailedError(Why.IDLE)
    assert desk.breakers.list()[NAME].calls == 0


async def test_an_answer_that_breaks_off_is_a_failure_even_though_it_had_begun():
    desk = Desk(rule(HOST, 443))
    for _ in range(2):
        admission = await desk.checkpoint.admit(ASK)
        with pytest.raises(FailedError), admission.passing():
            admission.answered(200)
            raise FailedError(Why.BROKEN_OFF)
    assert await desk.refused() is Why.CIRCUIT_OPEN


async def test_policy_is_asked_first_so_that_nobody_learns_how_an_upstream_is_that_he_may_not_reach():
    desk = Desk(rule(HOST, 443), forbidden="/admin")
    await failing(desk, FailedError(Why.UNREACHABLE), FailedError(Why.UNREACHABLE))
    assert await desk.refused(EgressAsk("https", HOST, 443, "GET", "/admin")) is Why.POLICY_DENIED
    assert desk.breakers.refusals["upstream"] == 0


async def test_who_is_refused_is_told_when_to_come_again_and_then_one_tries():
    desk = Desk(rule(HOST, 443))
    await failing(desk, FailedError(Why.UNREACHABLE), FailedError(Why.UNREACHABLE))
    desk.now = 2.5
    with pytest.raises(RefusedError) as refused:
        await desk.checkpoint.admit(ASK)
    assert refused.value.retry_after_s == 5
    desk.now = 7.5
    probe = await desk.checkpoint.admit(ASK)
    assert await desk.refused() is Why.CIRCUIT_OPEN
    with probe.passing():
        probe.answered()
        await attempt(desk)  # the first byte has closed it


@pytest.mark.parametrize("how", ["unresolved", "unrecorded"])
async def test_a_probe_that_is_never_dialled_lets_the_next_one_try(how):
    desk = Desk(rule(HOST, 443))
    await failing(desk, FailedError(Why.UNREACHABLE), FailedError(Why.UNREACHABLE))
    desk.now = 7.5
    if how == "unresolved":
        desk.dialler.resolved = Why.UNRESOLVED
    else:
        desk.unwritable = ("egress_allowed",)
    for _ in range(3):
        assert await desk.refused() is Why(how)


async def test_a_port_and_a_host_have_a_breaker_each():
    desk = Desk(rule(HOST, 443), rule(HOST, 8443), rule("other.example.com", 443))
    await failing(desk, FailedError(Why.UNREACHABLE), FailedError(Why.UNREACHABLE))
    await attempt(desk, ask=EgressAsk("https", HOST, 8443, "GET", "/"))
    await attempt(desk, ask=EgressAsk("https", "other.example.com", 443, "GET", "/"))
    assert await desk.refused() is Why.CIRCUIT_OPEN


async def test_the_name_of_a_breaker_holds_nothing_that_a_tool_chose():
    desk = Desk(rule("*.api.example.com", 443))
    for label in ("secret-0123456789", "other"):
        await attempt(desk, ask=EgressAsk("https", f"{label}.api.example.com", 443, "GET", "/"))
    names = list(desk.breakers.list())
    assert len(names) == 2
    assert all(re.fullmatch(r"upstream:acme/\*\.api\.example\.com:443/[0-9a-f]{12}", name) for name in names)
