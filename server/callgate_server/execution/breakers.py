"""The circuit breakers of a gateway: one for the engine, one for the secret store, one for each tool of a tenant and
for each upstream of a tenant.

What a tenant's calls meet opens only that tenant's breakers. Decides which there are and how many are kept, times what
goes through them, and says what changed. When one opens is `breaker.py`, what counts as whose failure `faults.py`.
"""

import re
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final, Literal, Self, TypeVar, assert_never, get_args

from callgate_server.execution.breaker import Breaker, BreakerRules, Outcome, Permit, Refused, State, View, Why
from callgate_server.execution.faults import of_answer
from callgate_server.model.answer import Answer
from callgate_server.model.catalog import Tool
from callgate_server.model.errors import CallError, Reason

T = TypeVar("T")
Kind = Literal["engine", "secrets", "tool", "upstream"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
# Of each kind and tenant. Beyond, those are forgotten that were not asked for the longest time: closed ones first.
MOST: Final = 256
_NAME: Final = re.compile(r"(?:(engine|secrets)|(tool|upstream):([^/:\s]{1,128})/([!-~]{1,300}))")
_WORDS: Final[Mapping[Kind, str]] = {
    "engine": "The container engine failed too often just now, so that no sandbox is started for a while; try again.",
    "secrets": "The secret store failed too often just now, so that it is not asked for a while; try again.",
    "tool": "The tool failed too often just now, so that it does not run for a while; try again.",
    "upstream": "The upstream failed too often just now, so that it is not dialled for a while; try again.",
}
_BY_HAND: Final = "An operator has stopped this for now; try again later."


@dataclass(frozen=True, slots=True)
class BreakerKey:
    """Which breaker. Written `engine`, `secrets`, `tool:acme/text.diff`, `upstream:acme/api.example.com:443`."""

    kind: Kind
    tenant: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.tenant}/{self.name}" if self.name else self.kind

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` writes.

        Raises:
            ValueError: it names no breaker.
        """
        found = _NAME.fullmatch(text)
        for kind in KINDS:
            if found is not None and kind in (found[1], found[2]):
                return cls(kind, found[3] or "", found[4] or "")
        raise ValueError("a breaker is named like engine, secrets, tool:TENANT/NAME or upstream:TENANT/HOST:PORT")


ENGINE: Final = BreakerKey("engine")
SECRETS: Final = BreakerKey("secrets")


@dataclass(frozen=True, slots=True)
class Change:
    """A breaker changed. `by` is who did it by hand."""

    key: BreakerKey
    before: State
    after: State
    why: Why
    by: str = ""


class Passage:
    """One call through a breaker. The first report counts; leaving its context without one gives the permit back."""

    __slots__ = ("_began_s", "_clock", "_duration_s", "_permit", "_settle")

    def __init__(
        self,
        permit: Permit | None = None,
        clock: Callable[[], float] = time.monotonic,
        settle: Callable[[Permit, Outcome, float], None] = lambda *_: None,
    ) -> None:
        """Without a permit, it is a way on which no breaker stands."""
        self._permit = permit
        self._clock = clock
        self._settle = settle
        self._began_s = clock()
        self._duration_s: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_up()

    @property
    def probe(self) -> bool:
        """Whether others are refused until this one has ended."""
        return self._permit is not None and self._permit.probe

    def answered(self) -> None:
        """The answer has begun: what follows takes as long as it takes. A probe has seen enough with that."""
        if self._duration_s is None:
            self._duration_s = self._clock() - self._began_s
        if self.probe:
            self.report(Outcome.SUCCEEDED)

    def give_up(self) -> None:
        """Leave before anything can be said."""
        self.report(Outcome.NOTHING)

    def report(self, outcome: Outcome) -> None:
        """Say how it ended."""
        permit, self._permit = self._permit, None
        if permit is not None:
            duration_s = self._clock() - self._began_s if self._duration_s is None else self._duration_s
            self._settle(permit, outcome, duration_s)


class Breakers:
    """All of them. Kinds without rules of their own have the usual ones. `on_change` must not block or raise."""

    def __init__(
        self,
        rules: Mapping[Kind, BreakerRules],
        on_change: Callable[[Change], None],
        *,
        most: int = MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules = {kind: rules.get(kind, BreakerRules()) for kind in KINDS}
        self._on_change = on_change
        self._most = most
        self._clock = clock
        # By kind and tenant, so that no tenant's many push out another's; the one asked last is at the end.
        self._breakers: dict[tuple[Kind, str], OrderedDict[BreakerKey, Breaker]] = {}
        self._refusals: Counter[Kind] = Counter(dict.fromkeys(KINDS, 0))

    @property
    def refusals(self) -> Mapping[Kind, int]:
        """How many were refused since the start."""
        return self._refusals

    def ask(self, key: BreakerKey) -> Passage | Refused:
        """Ask for leave. A passage is to be reported, or left as a context."""
        breaker = self._of(key)
        answer = self._watched(key, breaker, partial(breaker.ask, self._clock()))
        if isinstance(answer, Refused):
            self._refusals[key.kind] += 1
            return answer
        return Passage(answer, self._clock, partial(self._settle, key, breaker))

    def enter(self, key: BreakerKey) -> Passage:
        """Ask for leave.

        Raises:
            CallError: `circuit_open`.
        """
        passage = self.ask(key)
        if isinstance(passage, Refused):
            raise self._refusal(key, passage)
        return passage

    @asynccontextmanager
    async def guard(self, key: BreakerKey, kinds: Mapping[Reason, Outcome]) -> AsyncIterator[Passage]:
        """Ask for leave, and report the body: what it raises counts as `kinds` says, its cancellation not at all.

        Raises:
            CallError: `circuit_open`, or what the body raised.
        """
        with self.enter(key) as passage:
            try:
                yield passage
            except CallError as error:
                passage.report(Outcome.NOTHING if error.particular else kinds.get(error.reason, Outcome.NOTHING))
                raise
            passage.report(Outcome.SUCCEEDED)

    def tool(self, tenant: str, tool: Tool) -> Passage:
        """Ask for leave to run a tool. Where its manifest wants no breaker, only an operator's hand opens one.

        Raises:
            CallError: `circuit_open`.
        """
        key = BreakerKey("tool", tenant, tool.name)
        if tool.manifest.breaker:
            return self.enter(key)
        self.refuse_if_stopped(key)
        return Passage()

    def failed(self, key: BreakerKey) -> None:
        """Count a failure that came to light outside of any passage. Only while closed: probes are asked for news."""
        breaker = self._of(key)
        if breaker.state is State.CLOSED:
            self.enter(key).report(Outcome.FAILED)

    def refuse_while_open(self, key: BreakerKey) -> None:
        """Ask for no leave, but go no further where nobody has it for a while.

        Raises:
            CallError: `circuit_open`.
        """
        left_s = self._of(key).closed_for_s(self._clock())
        if left_s > 0:
            self._refusals[key.kind] += 1
            raise self._refusal(key, Refused(left_s))

    def refuse_if_stopped(self, key: BreakerKey) -> None:
        """Ask for no leave, but respect an operator's hand.

        Raises:
            CallError: `circuit_open`: the breaker was opened by hand.
        """
        breaker = self._group(key).get(key)
        if breaker is not None and breaker.state is State.FORCED_OPEN:
            self._refusals[key.kind] += 1
            raise CallError(Reason.CIRCUIT_OPEN, _BY_HAND, retry_after_ms=round(self._rules[key.kind].open_s * 1000))

    # --- for operators -------------------------------------------------------------------------------------------

    def list(self) -> dict[str, View]:
        """What there is, by name."""
        now = self._clock()
        return {str(key): breaker.view(now) for group in self._breakers.values() for key, breaker in group.items()}

    def open(self, name: str, by: str = "") -> View:
        """Refuse everybody there until `close`. The breaker may be one that nobody has asked yet.

        Raises:
            ValueError: the name is none of a breaker.
        """
        return self._by_hand(name, Breaker.force_open, by)

    def close(self, name: str, by: str = "") -> View:
        """Let everybody through, and count anew.

        Raises:
            ValueError: the name is none of a breaker.
        """
        return self._by_hand(name, Breaker.close, by)

    def _by_hand(self, name: str, act: Callable[[Breaker, float], None], by: str) -> View:
        key = BreakerKey.parse(name)
        breaker = self._of(key)
        now = self._clock()
        self._watched(key, breaker, partial(act, breaker, now), by)
        return breaker.view(now)

    # -------------------------------------------------------------------------------------------------------------

    def _settle(self, key: BreakerKey, breaker: Breaker, permit: Permit, outcome: Outcome, duration_s: float) -> None:
        now = self._clock()
        match outcome:
            case Outcome.SUCCEEDED:
                self._watched(key, breaker, partial(breaker.succeed, permit, now, duration_s))
            case Outcome.FAILED:
                self._watched(key, breaker, partial(breaker.fail, permit, now, duration_s))
            case Outcome.NOTHING:
                breaker.cancel(permit)
            case _:
                assert_never(outcome)

    def _watched(self, key: BreakerKey, breaker: Breaker, act: Callable[[], T], by: str = "") -> T:
        """Do something to a breaker, and tell of the change that it makes. One that is forgotten has no listeners."""
        before, phase = breaker.state, breaker.phase
        result = act()
        if breaker.phase != phase and breaker.why is not None and self._group(key).get(key) is breaker:
            self._on_change(Change(key, before, breaker.state, breaker.why, by))
        return result

    def _group(self, key: BreakerKey) -> "OrderedDict[BreakerKey, Breaker]":
        return self._breakers.setdefault((key.kind, key.tenant), OrderedDict())

    def _of(self, key: BreakerKey) -> Breaker:
        group = self._group(key)
        breaker = group.get(key)
        if breaker is None:
            breaker = group[key] = Breaker(self._rules[key.kind], self._clock())
            if len(group) > self._most:
                del group[_least_missed(group)]
        group.move_to_end(key)
        return breaker

    def _refusal(self, key: BreakerKey, refused: Refused) -> CallError:
        by_hand = self._of(key).state is State.FORCED_OPEN
        text = _BY_HAND if by_hand else _WORDS[key.kind]
        return CallError(Reason.CIRCUIT_OPEN, text, retry_after_ms=max(1, round(refused.retry_after_s * 1000)))


def report(passage: Passage, tool: Tool, answer: Answer) -> None:
    """Tell a tool's breaker how its call ended."""
    passage.report(of_answer(answer, tool.manifest.limits))


def _least_missed(group: "OrderedDict[BreakerKey, Breaker]") -> BreakerKey:
    """Which to forget: the one not asked for longest, of the closed ones, else of those not opened by hand, else any.

    Never the newest, which is at the end.
    """
    old = list(group)[:-1]
    for states in ({State.CLOSED}, {State.OPEN, State.HALF_OPEN}, {State.FORCED_OPEN}):
        for key in old:
            if group[key].state in states:
                return key
    raise ValueError("there is none to forget")
