"""How much may be spent, by whom, until when. Pure bookkeeping; what is spent is durable in the ledger.

Calls and cost are reserved before a call runs and given back where nothing ran, so that they are exact. Processor time
and egress are known when a call has ended: a budget of these refuses the next call, and those that ran at once may have
gone over it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from callgate_server.model.spending import MILLION, Amounts, Budget, Charge, Scope

_SWEEP_AT: Final = 1024


@dataclass(slots=True)
class _Account:
    start: int
    spent: Amounts
    budget: Budget


class Budgets:
    """What every scope with a budget has spent in its present window."""

    def __init__(self) -> None:
        self._accounts: dict[Scope, _Account] = {}
        self._sweep_at = _SWEEP_AT

    def __len__(self) -> int:
        return len(self._accounts)

    def spent(self, scope: Scope) -> Amounts:
        account = self._accounts.get(scope)
        return Amounts() if account is None else account.spent

    def reserve(self, wanted: Sequence[tuple[Scope, Budget]], amounts: Amounts, hour: int) -> str | None:
        """Spend `amounts` in every scope, or in none; return None, or which budget does not allow it, with figures."""
        accounts = [(scope, self._account(scope, budget, hour)) for scope, budget in wanted]
        for scope, account in accounts:
            short = _shortage(account, amounts)
            if short is not None:
                end = account.budget.window_end(hour)
                until = "of this task" if end is None else f"until {end.isoformat()}"
                return f"The budget of {scope} is used up: {short} {until}."
        for _, account in accounts:
            account.spent += amounts
        self._sweep(hour)
        return None

    def add(self, wanted: Sequence[tuple[Scope, Budget]], amounts: Amounts, hour: int) -> None:
        """Count what became known, or is given back, of a call that was admitted in `hour`."""
        for scope, budget in wanted:
            account = self._accounts.get(scope)
            # Of an earlier window nothing is counted any more, nor of a task that is over.
            if account is not None and account.start <= budget.window_start(hour):
                account.spent += amounts

    def load(self, charges: Iterable[tuple[Charge, Budget]], now: int) -> None:
        """Take over what an earlier life of the gateway has recorded; it is hour `now`."""
        for charge, budget in charges:
            account = self._account(charge.scope, budget, now)
            if account.start <= budget.window_start(charge.hour):
                account.spent += charge.amounts

    def forget(self, scope: Scope) -> None:
        """Forget a task that is over: nothing asks for it any more."""
        self._accounts.pop(scope, None)

    def _account(self, scope: Scope, budget: Budget, hour: int) -> _Account:
        start = budget.window_start(hour)
        account = self._accounts.get(scope)
        # A clock that was set back gives nobody a new window.
        if account is None or account.start < start:
            account = self._accounts[scope] = _Account(start, Amounts(), budget)
        return account

    def _sweep(self, hour: int) -> None:
        if len(self._accounts) <= self._sweep_at:
            return
        self._accounts = {
            scope: account
            for scope, account in self._accounts.items()
            if account.start >= account.budget.window_start(hour)
        }
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._accounts))


def _shortage(account: _Account, wanted: Amounts) -> str | None:
    spent, budget = account.spent, account.budget
    if budget.calls is not None and spent.calls + wanted.calls > budget.calls:
        return f"{spent.calls} of {budget.calls} calls"
    if budget.cost is not None and wanted.cost and spent.cost + wanted.cost > budget.cost:
        figures = f"{spent.cost / MILLION:g} of {budget.cost / MILLION:g} units of cost"
        return f"{figures}, and this call costs {wanted.cost / MILLION:g},"
    if budget.cpu_us is not None and spent.cpu_us >= budget.cpu_us:
        return f"{spent.cpu_us / MILLION:g} of {budget.cpu_us / MILLION:g} seconds of processor time"
    if budget.egress_bytes is not None and spent.egress_bytes >= budget.egress_bytes:
        return f"{spent.egress_bytes} of {budget.egress_bytes} bytes of egress"
    return None
