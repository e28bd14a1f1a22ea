"""When a call is attempted once more: what another attempt can mend, how long to wait, and how many retries are fair.

Decisions only, and time is passed in. The budget is that of gRPC's retry throttling (proposal A6) with a memory: each
call earns a share of a retry, each retry costs one, and a small reserve comes back with time. So a tool that fails
altogether gets little more than its usual load, however many attempts its manifest allows.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from callgate_server.model.errors import Reason
from callgate_server.model.manifest import Effect

# Retries for each call, in the long run.
SHARE: Final = 0.2
# What a tool may retry beyond that, and how long an empty reserve takes to be full.
RESERVE: Final = 5.0
REFILL_S: Final = 10.0
# What earlier calls have earned is worth no more than this.
MOST: Final = 20.0
# Tenants and tools that are remembered. Who is forgotten begins with a full reserve.
REMEMBERED: Final = 4096
LONGEST_PAUSE_S: Final = 30.0

# Nothing ran: whatever the tool does, it did not.
BEFORE_THE_START: Final = frozenset({Reason.SANDBOX_UNAVAILABLE, Reason.SECRETS_UNAVAILABLE})
_AFTER_THE_START: Final = frozenset({Reason.TOOL_UNAVAILABLE, Reason.SANDBOX_LOST})


def mends(reason: Reason, effect: Effect, *, started: bool) -> bool:
    """Tell whether another attempt may mend it, and may be made: what is unsafe is never started twice."""
    if not started:
        return reason in BEFORE_THE_START
    return reason in _AFTER_THE_START and effect != "unsafe"


def pause_s(backoff_s: float, failures: int, chance: float) -> float:
    """Seconds to wait after so many failures (from 1): exponential with full jitter; `chance` is from 0 to 1.

    Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    ceiling: float = backoff_s * 2 ** (failures - 1)
    return min(LONGEST_PAUSE_S, ceiling) * chance


@dataclass(slots=True)
class _Account:
    balance: float
    at_s: float


class RetryBudgets:
    """What each tenant may still retry of each tool."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[tuple[str, str], _Account] = OrderedDict()

    def called(self, tenant: str, tool: str, now_s: float) -> None:
        """Earn for a call."""
        account = self._account(tenant, tool, now_s)
        account.balance = min(MOST, account.balance + SHARE)

    def take(self, tenant: str, tool: str, now_s: float) -> bool:
        """Pay for a retry, if there is enough."""
        account = self._account(tenant, tool, now_s)
        if account.balance < 1:
            return False
        account.balance -= 1
        return True

    def _account(self, tenant: str, tool: str, now_s: float) -> _Account:
        account = self._accounts.setdefault((tenant, tool), _Account(RESERVE, now_s))
        self._accounts.move_to_end((tenant, tool))
        if len(self._accounts) > REMEMBERED:
            self._accounts.popitem(last=False)
        gained = max(0.0, now_s - account.at_s) * RESERVE / REFILL_S
        # Time fills the reserve and no more; what calls have earned above it stays.
        account.balance = max(account.balance, min(RESERVE, account.balance + gained))
        account.at_s = max(account.at_s, now_s)
        return account
