"""Where each connection and request of one call is decided: rules, policy, credential, the upstream's circuit breaker,
address, record, and only then the dialling. In this order, so that no name is asked for that policy refuses, nobody
learns how an upstream is that he may not reach, and nothing is sent that is not recorded.

Decides what is written about it, and that a refusal which cannot be written is still a refusal. What a decision rests
on is elsewhere: `execution/egress_rules.py`, Cedar, `execution/egress_addresses.py`.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, assert_never

from callgate_server.backends.egress.credentials import Header, header_of
from callgate_server.backends.egress.dialler import Dialler
from callgate_server.backends.egress.meter import Metered, Trip
from callgate_server.backends.egress.pipes import FailedError, RefusedError
from callgate_server.execution.breaker import Outcome, Refused
from callgate_server.execution.breakers import BreakerKey, Breakers, Passage
from callgate_server.execution.egress import EgressTerms
from callgate_server.execution.egress_addresses import Address
from callgate_server.execution.egress_budget import Spending
from callgate_server.execution.egress_names import is_certain, loosest_path
from callgate_server.execution.egress_rules import Why, decide, for_destination, is_seen
from callgate_server.model.egress import EgressAsk, EgressRule
from callgate_server.model.errors import CallError
from callgate_server.model.strict_json import Json
from callgate_server.model.verdict import Ruling, Verdict

_RECORDABLE: Final = re.compile(r"[\x21-\x7e]{0,253}")

# Says that something of the gateway's own went wrong: where, and what.
Report = Callable[[str, BaseException], None]


@dataclass(frozen=True, slots=True)
class Admission:
    """What was allowed, decided and recorded: to exactly these addresses, with exactly this header.

    Everything that is done with it is done inside `passing`.
    """

    ask: EgressAsk
    addresses: tuple[Address, ...]
    header: Header | None
    passage: Passage

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Tell the upstream's breaker how the body ended: what the tool, its budget or its call broke off says
        nothing."""
        with self.passage:
            try:
                yield
            except FailedError as failed:
                if failed.why in _UPSTREAMS_OWN:
                    self.passage.report(Outcome.FAILED)
                raise
            self.passage.report(Outcome.SUCCEEDED)

    def answered(self, status: int | None = None) -> None:
        """The upstream's answer has begun, with this status where the gate sees one."""
        if status in _UNAVAILABLE:
            self.passage.report(Outcome.FAILED)
        else:
            self.passage.answered()

    def unasked(self) -> None:
        """The tool has not said all that it wants: whatever the upstream does about that is no fault of its own."""
        self.passage.report(Outcome.NOTHING)


class Checkpoint:
    """One call's decisions and its account."""

    def __init__(self, terms: EgressTerms, dialler: Dialler, breakers: Breakers, report: Report) -> None:
        self._terms = terms
        self._dialler = dialler
        self._breakers = breakers
        self._report = report
        self._said: set[Why] = set()
        self.spending = Spending(terms.budget)

    def must_see(self, ask: EgressAsk) -> bool:
        """Whether TLS to a destination ends at the gate, because a rule for it needs that.

        Raises:
            RefusedError: there is no rule for it.
        """
        rules = for_destination(self._terms.rules, ask.scheme, ask.host, ask.port)
        if not rules:
            raise RefusedError(Why.NO_RULE, ask)
        return any(is_seen(rule) for rule in rules)

    async def admit(self, ask: EgressAsk, held: Address | None = None) -> Admission:
        """Decide on a connection or a request, and record that it is allowed. `held`: the address of the connection
        that is open to this destination already.

        Raises:
            RefusedError: it is not; nothing was sent, and no more was recorded.
        """
        rule = decide(self._terms.rules, ask)
        if isinstance(rule, Why):
            raise RefusedError(rule, ask)
        verdict = self._consent(ask)
        header = self._header(rule, ask)
        passage = self._breakers.ask(self._key(rule, ask))
        if isinstance(passage, Refused):
            raise RefusedError(Why.CIRCUIT_OPEN, ask, verdict.policies, retry_after_s=passage.retry_after_s)
        try:
            addresses = (held,) if held else await self._dialler.resolve(ask.host, ask.port, self._terms.tenant)
            if isinstance(addresses, Why):
                raise RefusedError(addresses, ask, verdict.policies)
            await self._record_allowed(_allowed(ask, rule, verdict, addresses), ask)
        except BaseException:
            passage.report(Outcome.NOTHING)
            raise
        return Admission(ask, addresses, header, passage)

    async def dial(self, admission: Admission, trip: Trip, *, tls: bool) -> Metered:
        """Open what was admitted, as part of `trip`.

        Raises:
            FailedError: nobody answers there, or not who should.
        """
        ask = admission.ask
        trip.dialling = ask
        try:
            link = await self._dialler.dial(admission.addresses, ask.port, ask.host if tls else None)
        except FailedError as failed:
            trip.dialling = None
            await self._note("egress_closed", _closed(ask, 0, 0, failed.why))
            raise
        trip.dialling = None
        metered = Metered(link, ask, self.spending, trip.touch)
        trip.links.append(metered)
        return metered

    async def close(self, trip: Trip, why: Why | None = None) -> None:
        """End what is open of a trip, and record what it carried, or that it was given up on the way."""
        # All of them before the first word of it: the record may take its time, and a cancellation cut that short.
        for metered in trip.links:
            await metered.abort()
        if trip.dialling is not None:
            given_up, trip.dialling = trip.dialling, None
            await self._note("egress_closed", _closed(given_up, 0, 0, why))
        while trip.links:
            metered = trip.links.pop()
            carried = _closed(metered.ask, metered.sent_bytes, metered.received_bytes, why)
            await self._note("egress_closed", carried)

    async def refuse(self, refused: RefusedError) -> None:
        """Record a refusal. Those that only say that a budget is spent are recorded once."""
        self.spending.refuse()
        if refused.why in _BUDGETS:
            if refused.why in self._said:
                return
            self._said.add(refused.why)
        policies: list[Json] = list(refused.policies)
        await self._note("egress_refused", {**_asked(refused.ask), "why": refused.why.value, "policies": policies})

    async def _record_allowed(self, fields: Mapping[str, Json], ask: EgressAsk) -> None:
        try:
            await self._terms.record("egress_allowed", fields)
        except CallError as error:
            raise RefusedError(Why.UNRECORDED, ask) from error

    def _key(self, rule: EgressRule, ask: EgressAsk) -> BreakerKey:
        """Which breaker an upstream has. Its name is seen by operators, so that it holds nothing that a tool chose:
        what stands for the star of a wildcard is in it as a digest.
        """
        name = f"{ask.host}:{ask.port}"
        if not any(rule.host == ask.host for rule in self._terms.rules):
            name = f"{rule.destination}/{hashlib.sha256(ask.host.encode()).hexdigest()[:12]}"
        return BreakerKey("upstream", self._terms.tenant, name)

    async def _note(self, event: str, fields: Mapping[str, Json]) -> None:
        try:
            await self._terms.record(event, fields)
        except Exception as error:  # what is said at an end must not keep the rest from ending
            self._report("egress", error)

    def _consent(self, ask: EgressAsk) -> Verdict:
        """Return the verdict on what was asked. Policy may look at the path: where an upstream may read another one
        in it, both must be allowed.

        Raises:
            RefusedError: policy is against it, or nobody can say how the path will be read.
        """
        readings = [ask]
        if ask.path is not None and not is_certain(ask.path):
            try:
                readings.append(replace(ask, path=loosest_path(ask.path)))
            except ValueError as error:
                raise RefusedError(Why.BAD_PATH, ask) from error
        verdicts = [self._terms.consent(reading) for reading in readings]
        for verdict in verdicts:
            if (refusal := _refusal(verdict.ruling)) is not None:
                raise RefusedError(refusal, ask, verdict.policies)
        return verdicts[0]

    def _header(self, rule: EgressRule, ask: EgressAsk) -> Header | None:
        if rule.secret is None:
            return None
        credential = self._terms.credentials.get(rule.secret)
        header = None if credential is None else header_of(credential)
        if header is None:
            raise RefusedError(Why.BAD_CREDENTIAL, ask)
        return header


# What an upstream does, or fails to do, by itself.
_UPSTREAMS_OWN: Final = frozenset({Why.UNREACHABLE, Why.TLS_FAILED, Why.BROKEN_OFF, Why.BAD_ANSWER, Why.IDLE})
# What a proxy in front of an upstream says in its place, and what an overloaded one says itself.
_UNAVAILABLE: Final = frozenset({502, 503, 504})
_BUDGETS: Final = frozenset({Why.CONNECTIONS_SPENT, Why.REQUESTS_SPENT, Why.TOO_MANY_AT_ONCE, Why.BYTES_SPENT})


def _refusal(ruling: Ruling) -> Why | None:
    match ruling:
        case Ruling.ALLOW:
            return None
        case Ruling.DENY:
            return Why.POLICY_DENIED
        case Ruling.NEEDS_APPROVAL:
            # Nobody can be asked while a connection waits.
            return Why.APPROVAL_REQUIRED
        case Ruling.ERROR:
            return Why.POLICY_ERROR
        case _:
            assert_never(ruling)


def _asked(ask: EgressAsk) -> dict[str, Json]:
    fields: dict[str, Json] = {"scheme": ask.scheme, "host": _recordable(ask.host), "port": ask.port}
    if ask.method is not None:
        fields["method"] = _recordable(ask.method)
    return fields


def _recordable(text: str) -> str:
    """What a hostile tool chose is written as it is only if it is plain."""
    if _RECORDABLE.fullmatch(text):
        return text
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _allowed(ask: EgressAsk, rule: EgressRule, verdict: Verdict, addresses: tuple[Address, ...]) -> dict[str, Json]:
    policies: list[Json] = list(verdict.policies)
    fields = _asked(ask) | {
        "rule": rule.destination,
        "policies": policies,
        "policy_version": verdict.policy_version,
        "address": ",".join(map(str, addresses)),
    }
    if rule.secret is not None:
        fields["secret"] = rule.secret
    return fields


def _closed(ask: EgressAsk, sent_bytes: int, received_bytes: int, why: Why | None) -> dict[str, Json]:
    return {
        "scheme": ask.scheme,
        "host": ask.host,
        "port": ask.port,
        "sent_bytes": sent_bytes,
        "received_bytes": received_bytes,
        "how": "ended" if why is None else why.value,
    }
