"""What bounds a call beside policy: stops, its task's grant, rates, budgets, places, and failing again and again.

The pipeline asks when a caller asks for a call, when that is admitted (stops, after policy the grant), when it takes
its place (a replay never comes there, and so costs nothing), and when it has ended. What each bound is, the parts in
`admission/` decide; here they are asked in their order, and what they say becomes a refusal. Everything here happens
without waiting: between the look at the stops and a call's registration no stop can come.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, TypeAlias

from callgate_server.admission.bounds import Bounds, BoundTable
from callgate_server.admission.budgets import Budgets
from callgate_server.admission.fruitless import Fruitless, TooFruitlessError
from callgate_server.admission.limits import Shares
from callgate_server.admission.loops import LoopGuard, SameCall
from callgate_server.admission.rates import Rates
from callgate_server.admission.stops import StopList
from callgate_server.admission.tasks import LiveTasks
from callgate_server.ledger.store import Completion, StoredCall
from callgate_server.model.answer import Usage
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.spending import Amounts, Budget, Charge, Scope, hour_of, millionths
from callgate_server.model.strict_json import Json
from callgate_server.model.task import is_task_of_ours
from callgate_server.ticket import Admitted, Ticket, utc_now

# Failures that the same call would have again. What may pass by itself, or was wanted, makes no loop.
_OF_THE_CALL: Final = frozenset(
    {Reason.TOOL_FAILED, Reason.INVALID_RESULT, Reason.TIMED_OUT, Reason.OUT_OF_MEMORY, Reason.OUTPUT_FLOOD}
    | {Reason.SANDBOX_LOST}
)
_US: Final = 1000
_Budgets: TypeAlias = list[tuple[Scope, Budget]]


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of this gateway, and who has used how much of them."""

    bounds: BoundTable
    tasks: LiveTasks
    stops: StopList
    loops: LoopGuard
    catalog: Catalog
    rates: Rates = field(default_factory=Rates)
    budgets: Budgets = field(default_factory=Budgets)
    shares: Shares = field(default_factory=Shares)
    fruitless: Fruitless = field(default_factory=Fruitless)
    now: Callable[[], datetime] = utc_now
    clock: Callable[[], float] = time.monotonic
    # Calls that have reserved something and not ended.
    _reserved: set[str] = field(default_factory=set)

    def listen(self, ticket: Ticket) -> None:
        """Refuse who asks and asks for what comes to nothing.

        Raises:
            CallError: `rate_limited`.
        """
        self.fruitless.refuse_beyond(ticket.caller, self.clock())

    def came_to_nothing(self, caller: Caller, refusal: CallError | None = None) -> bool:
        """Count a refused or a repeated request. False for a refusal that is recorded in a sum."""
        if isinstance(refusal, TooFruitlessError):
            return False
        self.fruitless.count(caller, self.clock())
        return True

    def tell_beyond(self, remark: Callable[[str, Mapping[str, Json]], None]) -> None:
        """Tell how many requests `listen` has refused since the last time."""
        for scope, requests in self.fruitless.take_beyond():
            remark("refused_beyond", {"tenant": scope.tenant, "agent": scope.agent, "requests": requests})

    def admit(self, ticket: Ticket) -> None:
        """Refuse who is stopped, and narrow the caller to the task that the call or the credential names.

        Raises:
            CallError: `stopped`, `unknown_task`, `task_ended`, `unauthenticated` (the key that made the task is gone).
        """
        self.stops.refuse(ticket.caller)
        ticket.caller = self.tasks.narrowed(ticket.caller, ticket.request.task)

    def confine(self, ticket: Ticket) -> None:
        """Refuse a call with checked arguments that its task's grant does not have.

        Raises:
            CallError: `outside_grant`.
        """
        live = self.tasks.of(ticket.caller)
        if live is not None:
            live.confine(ticket.tool_name, ticket.arguments)

    def hasten(self, caller: Caller) -> None:
        """Count what is no call, but written down as one, in the same rates.

        Raises:
            CallError: `rate_limited`.
        """
        self._refuse_haste(self._bounds(caller))

    @contextmanager
    def place(self, call: Admitted) -> Iterator[tuple[Charge, ...]]:
        """Take what a call needs of each bound, and yield what it spends by that, for the record.

        Places are given back when it has ended, and what was reserved as well where `ended` was never told of it: then
        it was not claimed. A call that is refused by one bound uses nothing of the others.

        Raises:
            CallError: `loop_stopped`, `overloaded`, `budget_exceeded`, `rate_limited`.
        """
        self._refuse_loop(call)
        bounds = self._bounds(call.ticket.caller)
        with self.shares.hold(_places(call, bounds)):
            budgets, needed, hour = _budgets(bounds), _reservation(call.tool), hour_of(call.ticket.received_at)
            short = self.budgets.reserve(budgets, needed, hour)
            if short is not None:
                raise CallError(Reason.BUDGET_EXCEEDED, short)
            with self._unless_ended(call.ticket.id, budgets, needed, hour):
                self._refuse_haste(bounds)
                yield _charges(budgets, needed, hour)

    @contextmanager
    def owed(self, kept: StoredCall) -> Iterator[None]:
        """Hold what a call has reserved in an earlier life, which `load` has counted, as `place` does in this one."""
        with self._unless_ended(kept.call_id, *self._reserved_by(kept)):
            yield

    def unused(self, kept: StoredCall) -> tuple[Charge, ...]:
        """Return what a kept call gives back, for the record, should it end now. One that was begun has used it."""
        budgets, reserved, hour = self._reserved_by(kept)
        return _charges(budgets, -reserved, hour)

    def ended(self, call: Admitted, completion: Completion, usage: Usage | None) -> Completion:
        """Count the end of a claimed call, and return it with what it spent. `usage` is None where no tool ran."""
        self._learn(call, completion)
        budgets, hour = _budgets(self._bounds(call.ticket.caller)), hour_of(call.ticket.received_at)
        known = usage is not None or completion.state is State.UNKNOWN
        spent = _used(usage or Usage()) if known else -_reservation(call.tool)
        self._reserved.discard(call.ticket.id)
        if not budgets:
            return completion
        self.budgets.add(budgets, spent, hour)
        return replace(completion, charges=_charges(budgets, spent, hour))

    def load(self, charges: Iterable[Charge]) -> None:
        """Take over what was spent before this life of the gateway."""
        known = ((charge, self._budget(charge.scope)) for charge in charges)
        self.budgets.load(((charge, budget) for charge, budget in known if budget is not None), hour_of(self.now()))

    def _bounds(self, caller: Caller) -> list[tuple[Scope, Bounds]]:
        live = self.tasks.of(caller)
        if live is None and is_task_of_ours(caller.task):
            # It ended while the call ran. What the call comes to is its spending all the same.
            return self.bounds.of(caller, Budget())
        return self.bounds.of(caller, None if live is None else live.task.budget)

    def _budget(self, scope: Scope) -> Budget | None:
        if not scope.task:
            return self.bounds.budget(scope)
        live = self.tasks.of(Caller(scope.tenant, scope.agent, (), scope.task))
        return None if live is None else live.task.budget

    def _refuse_loop(self, call: Admitted) -> None:
        loop = self.loops.found(_same(call), self.clock())
        if loop is not None:
            raise CallError(
                Reason.LOOP_STOPPED,
                f"This call failed {loop.failures} times in a row, last with {loop.reason.value}. Change it, or wait "
                f"{loop.over_in_s:.0f} s.",
                retry_after_ms=round(loop.over_in_s * 1000) + 1,
            )

    def _refuse_haste(self, bounds: list[tuple[Scope, Bounds]]) -> None:
        # Last of all: what a rate has counted is not given back.
        wait_s = self.rates.take([(scope, found.rate) for scope, found in bounds if found.rate], self.clock())
        if wait_s:
            raise CallError(
                Reason.RATE_LIMITED,
                "More calls in this time than are allowed; wait and try again.",
                retry_after_ms=round(wait_s * 1000) + 1,
            )

    def _learn(self, call: Admitted, completion: Completion) -> None:
        if completion.state is State.SUCCEEDED:
            self.loops.succeeded(_same(call))
        elif completion.reason in _OF_THE_CALL:
            self.loops.failed(_same(call), completion.reason, self.clock())

    @contextmanager
    def _unless_ended(self, call_id: str, budgets: _Budgets, reserved: Amounts, hour: int) -> Iterator[None]:
        """Give back what a call has reserved, unless `ended` is told of it meanwhile."""
        self._reserved.add(call_id)
        try:
            yield
        finally:
            if call_id in self._reserved:
                self._reserved.discard(call_id)
                self.budgets.add(budgets, -reserved, hour)

    def _reserved_by(self, kept: StoredCall) -> tuple[_Budgets, Amounts, int]:
        """What a kept call has reserved and not used: in which budgets, how much, in which hour."""
        begun = kept.state is State.RUNNING or (kept.attempt or 1) > 1
        reserved = Amounts() if begun else _reservation(self.catalog.tools.get(kept.tool))
        return _budgets(self._bounds(kept.caller)), reserved, hour_of(kept.received_at)


def _charges(budgets: _Budgets, amounts: Amounts, hour: int) -> tuple[Charge, ...]:
    return tuple(Charge(scope, 0 if budget.window_h is None else hour, amounts) for scope, budget in budgets)


def _budgets(bounds: list[tuple[Scope, Bounds]]) -> _Budgets:
    return [(scope, found.budget) for scope, found in bounds if found.budget is not None]


def _places(call: Admitted, bounds: list[tuple[Scope, Bounds]]) -> list[tuple[Scope, int]]:
    """The places that it needs. A call that is kept waits for days, perhaps, and its queue has bounds of its own."""
    if call.is_kept:
        return []
    return [(scope, found.concurrent) for scope, found in bounds if found.concurrent is not None]


def _reservation(tool: Tool | None) -> Amounts:
    """What a call of this tool reserves; of one that is gone, nobody knows the cost."""
    return Amounts(calls=1, cost=0 if tool is None else millionths(tool.manifest.cost))


def _used(usage: Usage) -> Amounts:
    return Amounts(cpu_us=round(usage.cpu_ms * _US), egress_bytes=usage.egress_bytes)


def _same(call: Admitted) -> SameCall:
    caller = call.ticket.caller
    return SameCall(caller.tenant, caller.agent, call.tool.name, call.arguments_digest)
