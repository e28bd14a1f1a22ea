import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callgate_server.execution.lane_board import (
    Action,
    End,
    Give,
    LaneBoard,
    LaneKey,
    LaneRules,
    Phase,
    Slot,
    Start,
    Waiter,
)
from callgate_server.execution.sandbox import LaneTerms
from callgate_server.model.manifest import Limits, Run, SecretRef

TERMS = LaneTerms("sha256:1", Run(command=("/bin/true",)), ())
KEY = LaneKey("acme", "sha256:2", None, Limits(), TERMS)
SECRET = SecretRef.model_validate({"name": "key", "from": "kv/data/{tenant}/a#b", "deliver": "file"})
OTHERS = {
    "tenant": replace(KEY, tenant="rival"),
    "image": replace(KEY, image_digest="sha256:3"),
    "runtime": replace(KEY, runtime="runsc"),
    "limits": replace(KEY, limits=Limits(pids=8)),
    "tool or version": replace(KEY, terms=replace(TERMS, tool_digest="sha256:4")),
    "program": replace(KEY, terms=replace(TERMS, run=Run(command=("/bin/false",)))),
    "secrets": replace(KEY, terms=replace(TERMS, secrets=(SECRET,))),
}


def actions(board: LaneBoard) -> list[Action]:
    found = []
    while (action := board.next_action()) is not None:
        found.append(action)
    return found


def waiter(key: LaneKey = KEY, deadline_s: float = 10, memory_mb: int = 100) -> Waiter:
    return Waiter(key, memory_mb, deadline_s)


def board_of(**rules: int) -> LaneBoard:
    return LaneBoard(LaneRules(**{"lanes": 4, "memory_mb": 1000, "per_key": 2, "waiting": 8, **rules}))


def idle_lane(board: LaneBoard, key: LaneKey = KEY, *, since_s: float = 0, memory_mb: int = 100) -> Slot:
    board.join(waiter(key, memory_mb=memory_mb))
    (start,) = actions(board)
    assert isinstance(start, Start)
    board.leave(start.waiter)
    board.idle(start.slot, since_s)
    return start.slot


def test_the_first_call_starts_a_lane_and_gets_it_when_it_is_ready() -> None:
    board = board_of()
    first = waiter()
    board.join(first)
    (start,) = actions(board)
    assert isinstance(start, Start)
    assert start.slot.key == KEY
    board.idle(start.slot, 1)
    assert actions(board) == [Give(start.slot, first)]
    assert (start.slot.phase, start.slot.calls, board.waiting) == (Phase.BUSY, 1, 0)


def test_an_idle_lane_is_used_before_another_is_started() -> None:
    board = board_of()
    lane = idle_lane(board)
    second = waiter()
    board.join(second)
    assert actions(board) == [Give(lane, second)]


def test_the_lane_used_last_is_used_first() -> None:
    board = board_of()
    old = idle_lane(board, since_s=1)
    old.phase = Phase.BUSY
    new = idle_lane(board, since_s=2)
    board.idle(old, 1)
    board.join(waiter())
    (give,) = actions(board)
    assert isinstance(give, Give)
    assert give.slot is new


@pytest.mark.parametrize("difference", OTHERS)
def test_a_lane_serves_no_call_of_another_key(difference: str) -> None:
    board = board_of()
    lane = idle_lane(board)
    board.join(waiter(OTHERS[difference]))
    (start,) = actions(board)
    assert isinstance(start, Start)
    assert start.slot is not lane


def test_what_is_coming_is_waited_for() -> None:
    board = board_of()
    lane = idle_lane(board)
    board.between(lane)
    board.join(waiter())
    assert actions(board) == []
    board.join(waiter())
    assert [type(action) for action in actions(board)] == [Start]


def test_lanes_of_one_key_are_bounded_and_calls_beyond_wait_by_deadline() -> None:
    board = board_of(per_key=1)
    lane = idle_lane(board)
    late, soon, first = waiter(deadline_s=30), waiter(deadline_s=20), waiter(deadline_s=99)
    board.join(first)
    actions(board)
    for one in (late, soon):
        board.join(one)
    assert actions(board) == []
    served = []
    for _ in range(2):
        board.idle(lane, 0)
        (give,) = actions(board)
        assert isinstance(give, Give)
        served.append(give.waiter)
    assert served == [soon, late]


def test_without_room_the_lane_that_idles_longest_has_to_go() -> None:
    board = board_of(lanes=2)
    old = idle_lane(board, OTHERS["tenant"], since_s=1)
    idle_lane(board, OTHERS["secrets"], since_s=2)
    board.join(waiter())
    assert actions(board) == [End(old)]
    board.gone(old)
    assert [type(action) for action in actions(board)] == [Start]


def test_room_that_is_coming_free_is_waited_for() -> None:
    board = board_of(lanes=2)
    old = idle_lane(board, OTHERS["tenant"], since_s=1)
    kept = idle_lane(board, OTHERS["secrets"], since_s=2)
    board.ending(old)
    board.join(waiter())
    assert actions(board) == []
    assert kept.phase is Phase.IDLE


def test_memory_is_room_too() -> None:
    board = board_of(memory_mb=300)
    small = idle_lane(board, OTHERS["tenant"], memory_mb=200)
    board.join(waiter(memory_mb=250))
    assert actions(board) == [End(small)]
    board.gone(small)
    assert [type(action) for action in actions(board)] == [Start]


def test_no_more_are_started_at_once_than_may_and_the_next_when_one_is_there_or_gone() -> None:
    board = board_of(lanes=8, starts=2)
    for number in range(4):
        board.join(waiter(replace(KEY, tenant=f"tenant{number}"), deadline_s=number))
    first, second = actions(board)
    assert isinstance(first, Start)
    assert isinstance(second, Start)
    assert [start.slot.key.tenant for start in (first, second)] == ["tenant0", "tenant1"]
    board.idle(first.slot, 0)
    given, third = actions(board)
    assert isinstance(given, Give)
    assert isinstance(third, Start)
    assert third.slot.key.tenant == "tenant2"
    board.gone(second.slot)
    board.leave(second.waiter)
    (fourth,) = actions(board)
    assert isinstance(fourth, Start)
    assert fourth.slot.key.tenant == "tenant3"


def test_a_lane_between_two_calls_is_not_being_started() -> None:
    board = board_of(starts=1)
    lane = idle_lane(board)
    board.join(waiter())
    (given,) = actions(board)
    assert isinstance(given, Give)
    board.between(lane)
    board.join(waiter(OTHERS["tenant"]))
    (start,) = actions(board)
    assert isinstance(start, Start)


def test_a_busy_lane_never_has_to_go() -> None:
    board = board_of(lanes=1)
    lane = idle_lane(board, OTHERS["tenant"])
    board.join(waiter(OTHERS["tenant"]))
    actions(board)
    board.join(waiter())
    assert actions(board) == []
    assert lane.phase is Phase.BUSY


def test_a_small_call_does_not_overtake_a_large_one_that_waits_for_room() -> None:
    board = board_of(memory_mb=400)
    busy = idle_lane(board, OTHERS["tenant"], memory_mb=200)
    busy.phase = Phase.BUSY
    board.join(waiter(deadline_s=1, memory_mb=300))
    board.join(waiter(OTHERS["secrets"], deadline_s=2, memory_mb=100))
    assert actions(board) == []


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_tenant_with_short_deadlines_delays_another_by_one_turn(lanes: int) -> None:
    """Each call takes a second; one tenant has calls for every lane waiting all the time, the other one has one."""
    board = board_of(lanes=lanes, per_key=lanes, waiting=128)
    victim = waiter(OTHERS["tenant"], deadline_s=30)
    for now in range(4):
        for slot in board.slots:
            board.idle(slot, now)
        while board.waiting < 64:
            board.join(waiter(deadline_s=now + 3))
        if now == 1:
            board.join(victim)
        while done := actions(board):
            if any(isinstance(action, Give) and action.waiter is victim for action in done):
                return
            for action in done:
                if isinstance(action, Start):
                    board.idle(action.slot, now)
                elif isinstance(action, End):
                    board.gone(action.slot)
    pytest.fail("the other tenant had no turn")


def test_tenants_that_keep_equally_many_lanes_busy_keep_them() -> None:
    board = board_of(lanes=2)
    lanes = [idle_lane(board, key) for key in (KEY, OTHERS["tenant"])]
    for now in range(8):
        for key in (KEY, OTHERS["tenant"]):
            board.join(waiter(key, deadline_s=now))
        board.idle(lanes[now % 2], now)
        assert all(isinstance(action, Give) for action in actions(board))
    assert list(board.slots) == lanes


def test_no_more_wait_than_may() -> None:
    board = board_of(waiting=3)
    for tenant in ("acme", "rival", "third"):
        board.join(waiter(replace(KEY, tenant=tenant)))
    with pytest.raises(OverflowError):
        board.join(waiter(replace(KEY, tenant="fourth")))


def test_a_tenant_leaves_half_of_the_places_to_wait_to_others() -> None:
    board = board_of(waiting=5)
    for _ in range(3):
        board.join(waiter())
    with pytest.raises(OverflowError):
        board.join(waiter())
    board.join(waiter(OTHERS["tenant"]))


def test_who_leaves_is_forgotten() -> None:
    board = board_of()
    gone, stays = waiter(), waiter(deadline_s=20)
    for one in (gone, stays):
        board.join(one)
    board.leave(gone)
    board.leave(gone)
    assert board.first(KEY) is stays
    assert board.first(OTHERS["tenant"]) is None


def test_lanes_age() -> None:
    board = board_of(idle_s=10, calls=1)
    lane = idle_lane(board, since_s=5)
    assert board.expired(15) == []
    assert board.expired(15.1) == [lane]
    assert not board.worn(lane)
    board.join(waiter())
    actions(board)
    assert board.worn(lane)
    assert board.expired(99) == []


class Life:
    """A random life of a board: calls come, lanes move on or stay as they are."""

    keys = (KEY, OTHERS["tenant"], OTHERS["secrets"])

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.board = board_of(lanes=3, memory_mb=400, waiting=100, starts=2)
        self.waiting: set[Waiter] = set()

    def arrive(self) -> None:
        memory_mb = self.chance.choice([50, 100, 200])
        one = waiter(self.chance.choice(self.keys), self.chance.random() * 100, memory_mb)
        self.board.join(one)
        self.waiting.add(one)
        self.act()

    def act(self) -> None:
        for action in actions(self.board):
            if isinstance(action, Give):
                assert action.slot.key == action.waiter.key
                self.waiting.remove(action.waiter)
        lanes = self.board.slots
        assert len(lanes) <= 3
        assert sum(slot.memory_mb for slot in lanes) <= 400
        assert sum(not slot.started for slot in lanes) <= 2
        live = [slot.key for slot in lanes if slot.phase is not Phase.ENDING]
        assert all(live.count(key) <= 2 for key in self.keys)

    def pass_time(self, now: int) -> None:
        for slot in self.board.slots:
            if self.chance.random() < 0.5:
                self.move(slot, now)
                self.act()

    def move(self, slot: Slot, now: int) -> None:
        match slot.phase:
            case Phase.COMING:
                self.board.idle(slot, now)
            case Phase.ENDING:
                self.board.gone(slot)
            case Phase.BUSY:
                self.chance.choice([self.board.between, self.board.ending])(slot)


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32))
def test_whatever_happens_bounds_hold_and_nobody_is_forgotten(seed: int) -> None:
    """In the end everybody was served, by a lane of their own key."""
    life = Life(seed)
    for now in range(60):
        if life.chance.random() < 0.4:
            life.arrive()
        life.pass_time(now)
    for now in range(60, 600):
        life.pass_time(now)
    assert not life.waiting
