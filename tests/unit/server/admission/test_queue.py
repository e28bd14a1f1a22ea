import asyncio
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.admission.queue import Queue, QueueRules
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason

LOADER = Caller("acme", "loader")
ONE = QueueRules(1, 1, 100, 100, 100)


class Clients:
    """Who waits for turns, and in which order they came."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.served: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.release: dict[str, asyncio.Event] = {}

    async def ask(self, name: str, tenant: str, priority: int = 5) -> None:
        self.release[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._wait(name, tenant, priority))
        await asyncio.sleep(0)

    async def _wait(self, name: str, tenant: str, priority: int) -> None:
        async with self.queue.turn(tenant, priority):
            self.served.append(name)
            await self.release[name].wait()

    async def end(self, name: str) -> None:
        self.release[name].set()
        await self.tasks[name]
        await asyncio.sleep(0)

    async def end_all(self) -> None:
        while len(self.served) < len(self.tasks):
            for name in list(self.served):
                self.release[name].set()
            await asyncio.sleep(0)
        for name in self.tasks:
            await self.end(name)


async def test_who_asks_an_idle_queue_has_its_turn_at_once() -> None:
    clients = Clients(Queue(ONE))
    await clients.ask("a", "acme")
    assert (clients.served, clients.queue.running, clients.queue.waiting) == (["a"], 1, 0)
    await clients.end("a")
    assert (clients.queue.running, clients.queue.waiting) == (0, 0)


async def test_the_higher_priority_comes_first_and_then_who_came_first() -> None:
    clients = Clients(Queue(ONE))
    await clients.ask("now", "acme")
    for name, priority in (("low", 1), ("first", 5), ("second", 5), ("high", 9)):
        await clients.ask(name, "acme", priority)
    await clients.end_all()
    assert clients.served == ["now", "high", "first", "second", "low"]


async def test_a_tenant_with_a_thousand_calls_delays_another_by_one_turn() -> None:
    clients = Clients(Queue(QueueRules(1, 1, 2000, 2000, 2000)))
    for number in range(1000):
        await clients.ask(f"a{number}", "acme", 9)
    await clients.ask("b", "rival", 0)
    await clients.end("a0")
    assert clients.served == ["a0", "b"]
    await clients.end_all()


async def test_a_tenant_has_its_share_of_turns_and_no_more() -> None:
    clients = Clients(Queue(QueueRules(4, 2, 100, 100, 100)))
    for number in range(4):
        await clients.ask(f"a{number}", "acme")
    assert clients.served == ["a0", "a1"]
    await clients.ask("b", "rival")
    assert clients.served[-1] == "b"
    await clients.end_all()


async def test_who_gives_up_is_passed_over_and_a_turn_that_had_just_come_is_given_back() -> None:
    clients = Clients(Queue(ONE))
    for name in ("a", "b", "c"):
        await clients.ask(name, "acme")
    clients.tasks["b"].cancel()
    await asyncio.gather(clients.tasks["b"], return_exceptions=True)
    assert clients.queue.waiting == 1
    # The turn comes to c, which is cancelled before it can take it.
    clients.release["a"].set()
    await asyncio.sleep(0)
    clients.tasks["c"].cancel()
    await asyncio.gather(*clients.tasks.values(), return_exceptions=True)
    assert (clients.queue.running, clients.queue.waiting) == (0, 0)
    await clients.ask("d", "acme")
    assert clients.served[-1] == "d"
    await clients.end("d")


@pytest.mark.parametrize("others", ["acme", "rival"])
async def test_a_turn_that_ends_in_the_moment_in_which_the_next_one_gives_up_goes_to_the_one_after(others: str) -> None:
    clients = Clients(Queue(ONE))
    await clients.ask("a", "acme")
    for name in ("b", "c"):
        await clients.ask(name, others)
    # b's wait is over at once, and b itself comes to that after a.
    clients.release["a"].set()
    clients.tasks["b"].cancel()
    ended = await asyncio.gather(clients.tasks["a"], clients.tasks["b"], return_exceptions=True)
    assert ended[0] is None
    assert isinstance(ended[1], asyncio.CancelledError)
    assert clients.served == ["a", "c"]
    assert (clients.queue.running, clients.queue.waiting) == (1, 0)
    await clients.end("c")
    assert (clients.queue.running, clients.queue.waiting) == (0, 0)


@given(
    st.lists(st.tuples(st.sampled_from(["ask", "leave", "cancel", "late", "step"]), st.integers(0, 11)), max_size=40),
    st.integers(1, 2),
)
def test_whoever_leaves_or_gives_up_in_whichever_moment_no_turn_is_lost(acts: list[tuple[str, int]], most: int) -> None:
    async def play() -> None:
        queue = Queue(QueueRules(most, 1, 1000, 1000, 1000))
        leaves: list[asyncio.Event] = []
        tasks: list[asyncio.Task[None]] = []

        async def one(number: int, leave: asyncio.Event) -> None:
            async with queue.turn("ab"[number % 2], number % 3):
                assert queue.running <= most
                await leave.wait()

        for act, number in acts:
            if act == "ask":
                leaves.append(asyncio.Event())
                tasks.append(asyncio.create_task(one(number, leaves[-1])))
            elif act == "step":
                await asyncio.sleep(0)
            elif tasks and act == "leave":
                leaves[number % len(tasks)].set()
            elif tasks and act == "cancel":
                tasks[number % len(tasks)].cancel()
            elif tasks:  # as a timeout does it: between two steps of others
                asyncio.get_running_loop().call_soon(tasks[number % len(tasks)].cancel)
        for leave in leaves:
            leave.set()
        async with asyncio.timeout(5):
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ended} <= {type(None), asyncio.CancelledError}
        assert (queue.running, queue.waiting) == (0, 0)

    asyncio.run(play())


@pytest.mark.parametrize(
    ("rules", "share"),
    [
        (QueueRules(1, 1, 2, 100, 100), "Too many"),
        (QueueRules(1, 1, 100, 2, 100), "This tenant"),
        (QueueRules(1, 1, 100, 100, 2), "This agent"),
    ],
)
def test_no_more_are_kept_than_there_are_places(rules: QueueRules, share: str) -> None:
    queue = Queue(rules)
    with ExitStack() as places:
        for _ in range(2):
            places.enter_context(queue.place(LOADER))
        with pytest.raises(CallError, match=share) as caught, queue.place(LOADER):
            pass
        assert caught.value.reason is Reason.OVERLOADED
        assert caught.value.retry_after_ms
        # What the record has already is never turned away.
        places.enter_context(queue.place(LOADER, owed=True))
    with queue.place(LOADER):
        pass


def test_an_agent_that_fills_its_share_leaves_places_to_others_of_its_tenant_and_its_name() -> None:
    queue = Queue(QueueRules(1, 1, 100, 100, 2))
    with ExitStack() as places:
        for _ in range(2):
            places.enter_context(queue.place(LOADER))
        for other in (Caller("acme", "reader"), Caller("rival", "loader")):
            places.enter_context(queue.place(other))


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=30), st.integers(1, 4), st.integers(1, 3)
)
def test_every_turn_comes_once_and_the_bounds_hold(asks: list[tuple[str, int]], most: int, share: int) -> None:
    async def play() -> None:
        queue = Queue(QueueRules(most, share, 1000, 1000, 1000))
        served: list[int] = []
        at_once: dict[str, int] = dict.fromkeys("abc", 0)

        async def one(number: int, tenant: str, priority: int) -> None:
            async with queue.turn(tenant, priority):
                at_once[tenant] += 1
                assert queue.running <= most
                assert at_once[tenant] <= share
                served.append(number)
                await asyncio.sleep(0)
                at_once[tenant] -= 1

        async with asyncio.TaskGroup() as group:
            for number, (tenant, priority) in enumerate(asks):
                group.create_task(one(number, tenant, priority))
        assert sorted(served) == list(range(len(asks)))
        assert (queue.running, queue.waiting) == (0, 0)

    asyncio.run(play())
