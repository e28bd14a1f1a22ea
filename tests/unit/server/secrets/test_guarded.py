from functools import partial

import pytest

from callgate_server.execution import faults
from callgate_server.execution.breaker import BreakerRules, State
from callgate_server.execution.breakers import SECRETS, Breakers
from callgate_server.model.errors import CallError, Reason
from callgate_server.secrets.broker import Lease
from callgate_server.secrets.guarded import GuardedStore

RULES = BreakerRules(window=4, min_calls=2, failure_rate=0.5, open_s=5, probes=1)


class Store:
    def __init__(self) -> None:
        self.error: CallError | None = None
        self.reads = self.revoked = 0
        self.takes_s = 0.0
        self.now = 0.0

    async def read(self, path: str, *, timeout_s: float) -> Lease:
        self.reads += 1
        self.now += self.takes_s
        if self.error is not None:
            raise self.error
        return Lease({}, None, None)

    async def revoke(self, lease_id: str, *, timeout_s: float) -> None:
        self.revoked += 1


class Desk:
    def __init__(self) -> None:
        self.store = Store()
        self.breakers = Breakers({"secrets": RULES}, lambda _: None, clock=lambda: self.store.now)
        guard = partial(self.breakers.guard, SECRETS, faults.SECRETS)
        self.guarded = GuardedStore(self.store, guard, clock=lambda: self.store.now)

    async def reads(self, times: int, reason: Reason | None = None) -> None:
        self.store.error = None if reason is None else CallError(reason, "no")
        for _ in range(times):
            if reason is None:
                await self.guarded.read("kv/data/a", timeout_s=10)
            else:
                assert await self.refused() is reason

    async def refused(self) -> Reason:
        with pytest.raises(CallError) as refused:
            await self.guarded.read("kv/data/a", timeout_s=10)
        return refused.value.reason

    @property
    def state(self) -> State:
        return self.breakers.list()["secrets"].state


async def test_a_store_that_does_not_answer_is_asked_no_more_until_a_probe_finds_it_back():
    desk = Desk()
    await desk.reads(2, Reason.SECRETS_UNAVAILABLE)
    assert await desk.refused() is Reason.CIRCUIT_OPEN
    assert desk.store.reads == 2
    desk.store.now += 5
    await desk.reads(1)
    assert desk.state is State.CLOSED


async def test_a_store_that_refuses_a_secret_works():
    desk = Desk()
    await desk.reads(5, Reason.SECRET_REFUSED)
    assert (desk.state, desk.breakers.list()["secrets"].calls) == (State.CLOSED, 4)


async def test_a_call_that_has_no_time_left_says_nothing_of_the_store():
    desk = Desk()
    desk.store.takes_s = 10
    await desk.reads(5, Reason.SECRETS_UNAVAILABLE)
    assert desk.breakers.list()["secrets"].calls == 0


async def test_revocations_are_owed_whatever_the_breaker_says():
    desk = Desk()
    await desk.reads(2, Reason.SECRETS_UNAVAILABLE)
    desk.breakers.open("secrets")
    await desk.guarded.revoke("lease-1", timeout_s=1)
    assert desk.store.revoked == 1
