import asyncio
import time
from ipaddress import ip_address

import pytest

from callgate_server.backends.egress.checkpoint import Checkpoint
from callgate_server.backends.egress.meter import Trip
from callgate_server.backends.egress.pipes import FailedError, RefusedError
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

    async def resolve(self, host, port):
        self.order.append(("resolve", host, port))
        return self.resolved

    async def dial(self, addresses, port, tls_name):
        self.order.append(("dial", addresses, port, tls_name))
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails:
            raise FailedError(self.fails)
        return Link()


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

        terms = EgressTerms(
            rules=rules,
            credentials={one.name: one for one in credentials},
            consent=consent,
            budget=BUDGET,
            deadline=Deadline(time.monotonic() + 60),
            record=record,
        )
        dialler = FakeDialler(self.order, resolved, fails, hangs=hangs)
        self.checkpoint = Checkpoint(terms, dialler, lambda _, error: self.reports.append(error))

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
