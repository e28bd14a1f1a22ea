import asyncio

import pytest

from callgate_server.execution import faults
from callgate_server.execution.breaker import BreakerRules, Outcome, Refused, State, Why
from callgate_server.execution.breakers import ENGINE, KINDS, SECRETS, BreakerKey, Breakers, Change, Passage, report
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State as CallState
from support.stages import tool
from unit.server.execution.test_faults import answer

RULES = BreakerRules(window=4, min_calls=2, failure_rate=0.5, slow_s=1, open_s=7.5, probes=1)


class Desk:
    def __init__(self, most: int = 256) -> None:
        self.now = 0.0
        self.changes: list[Change] = []
        rules = dict.fromkeys(KINDS, RULES)
        self.breakers = Breakers(rules, self.changes.append, most=most, clock=lambda: self.now)

    def open(self, key: BreakerKey = ENGINE) -> None:
        for _ in range(2):
            self.breakers.failed(key)
        assert self.state(key) is State.OPEN

    def state(self, key: BreakerKey = ENGINE) -> State:
        return self.breakers.list()[str(key)].state

    async def body(self, *errors: BaseException | None, key: BreakerKey = ENGINE) -> None:
        for error in errors:
            try:
                async with self.breakers.guard(key, faults.ENGINE):
                    if error is not None:
                        raise error
            except BaseException as raised:
                if raised is not error:
                    raise


def unavailable() -> CallError:
    return CallError(Reason.SANDBOX_UNAVAILABLE, "no")


async def test_failures_of_its_own_kind_open_it_and_the_rest_passes_through():
    desk = Desk()
    await desk.body(*(CallError(reason, "no") for reason in (Reason.IMAGE_MISSING, Reason.RUNTIME_MISSING)))
    await desk.body(CallError(Reason.DEADLINE_EXCEEDED, "no"), asyncio.CancelledError(), OSError(), KeyboardInterrupt())
    assert desk.breakers.list()["engine"].calls == 0
    await desk.body(None, unavailable())
    assert desk.state() is State.OPEN


async def test_what_an_engine_that_works_refuses_to_one_alone_keeps_it_open_to_all():
    desk = Desk()
    await desk.body(*[CallError(Reason.SANDBOX_UNAVAILABLE, "no", particular=True)] * 5)
    assert (desk.state(), desk.breakers.list()["engine"].calls) == (State.CLOSED, 0)


async def test_who_meets_an_open_breaker_is_told_when_to_come_again_and_nothing_is_tried():
    desk = Desk()
    desk.open()
    desk.now = 2.25
    with pytest.raises(CallError) as refused:
        async with desk.breakers.guard(ENGINE, faults.ENGINE):
            raise AssertionError("nothing is tried")
    assert (refused.value.reason, refused.value.retry_after_ms) == (Reason.CIRCUIT_OPEN, 5250)
    assert desk.breakers.refusals == {"engine": 1, "secrets": 0, "tool": 0, "upstream": 0}


def test_who_looks_is_told_how_long_it_stays_open_by_itself_as_who_meets_it_is():
    desk = Desk()
    desk.open()
    desk.now = 2.25
    assert desk.breakers.list()["engine"].retry_after_s == 5.25
    assert desk.breakers.open("engine").retry_after_s is None
    assert desk.breakers.close("engine").retry_after_s is None


async def test_a_cancelled_probe_lets_the_next_one_try():
    desk = Desk()
    desk.open()
    desk.now = 8
    began = asyncio.Event()

    async def probe() -> None:
        async with desk.breakers.guard(ENGINE, faults.ENGINE) as passage:
            assert passage.probe
            began.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(probe())
    await began.wait()
    with pytest.raises(CallError, match="try again"):
        await desk.body(None)
    task.cancel()
    await asyncio.wait([task])
    await desk.body(None)
    assert desk.state() is State.CLOSED


def test_an_attempt_counts_once_and_what_is_left_without_a_report_not_at_all():
    desk = Desk()
    passage = desk.breakers.enter(ENGINE)
    with passage:
        passage.report(Outcome.SUCCEEDED)
        passage.report(Outcome.FAILED)
    with desk.breakers.enter(ENGINE):
        pass
    view = desk.breakers.list()["engine"]
    assert (view.calls, view.failures) == (1, 0)


def test_a_call_is_as_slow_as_the_beginning_of_its_answer():
    desk = Desk()
    for waited_s, then_s in ((0.5, 60.0), (1.0, 0.0)):
        passage = desk.breakers.enter(ENGINE)
        desk.now += waited_s
        passage.answered()
        desk.now += then_s
        passage.answered()
        passage.report(Outcome.SUCCEEDED)
    view = desk.breakers.list()["engine"]
    assert (view.calls, view.slow) == (2, 1)


def test_a_probe_has_seen_enough_when_its_answer_begins():
    desk = Desk()
    desk.open()
    desk.now = 8
    probe = desk.breakers.enter(ENGINE)
    probe.answered()
    assert desk.state() is State.CLOSED
    assert not desk.breakers.enter(ENGINE).probe


def test_every_change_is_told_with_its_cause():
    desk = Desk()
    desk.open()
    desk.now = 8
    desk.breakers.enter(ENGINE).report(Outcome.SUCCEEDED)
    desk.breakers.open("engine", by="ops")
    desk.breakers.open("engine", by="ops")
    desk.breakers.close("engine", by="root")
    assert desk.changes == [
        Change(ENGINE, State.CLOSED, State.OPEN, Why.FAILURES),
        Change(ENGINE, State.OPEN, State.HALF_OPEN, Why.WAITED),
        Change(ENGINE, State.HALF_OPEN, State.CLOSED, Why.RECOVERED),
        Change(ENGINE, State.CLOSED, State.FORCED_OPEN, Why.OPENED_BY_HAND, "ops"),
        Change(ENGINE, State.FORCED_OPEN, State.CLOSED, Why.CLOSED_BY_HAND, "root"),
    ]


def test_opened_by_hand_it_refuses_all_and_says_that_it_was_a_hand():
    desk = Desk()
    name = "tool:acme/text.echo"
    assert desk.breakers.open(name).state is State.FORCED_OPEN
    desk.now = 1e9
    with pytest.raises(CallError, match="operator") as refused:
        desk.breakers.tool("acme", tool())
    assert refused.value.reason is Reason.CIRCUIT_OPEN
    assert desk.breakers.close(name).state is State.CLOSED
    desk.breakers.tool("acme", tool())


def test_only_a_hand_stops_what_asks_for_no_leave():
    desk = Desk()
    desk.open()
    desk.breakers.refuse_if_stopped(ENGINE)
    desk.breakers.open("engine")
    with pytest.raises(CallError, match="operator") as refused:
        desk.breakers.refuse_if_stopped(ENGINE)
    assert (refused.value.reason, refused.value.retry_after_ms) == (Reason.CIRCUIT_OPEN, 7500)


@pytest.mark.parametrize(
    "key",
    [
        ENGINE,
        SECRETS,
        BreakerKey("tool", "acme", "text.diff"),
        BreakerKey("upstream", "acme", "api.example.com:443"),
        BreakerKey("upstream", "acme", "*.api.example.com:443/0123456789ab"),
        BreakerKey("upstream", "acme", "2606:4700::1111:443"),
    ],
)
def test_a_name_is_read_as_it_is_written(key):
    assert BreakerKey.parse(str(key)) == key


@pytest.mark.parametrize(
    "text",
    ["", "engines", "engine:acme/x", "tool", "tool:acme", "tool:/x", "tool:a/", "lane:a/b", "tool:a/b\n", "engine\n"],
)
def test_other_names_are_of_nobody(text):
    with pytest.raises(ValueError, match="named like"):
        BreakerKey.parse(text)
    desk = Desk()
    with pytest.raises(ValueError, match="named like"):
        desk.breakers.open(text)
    assert desk.breakers.list() == {}


def test_a_tenants_failures_are_its_own():
    desk = Desk()
    desk.open(BreakerKey("tool", "acme", "text.echo"))
    with pytest.raises(CallError):
        desk.breakers.tool("acme", tool())
    desk.breakers.tool("rival", tool())


def test_a_tool_whose_manifest_wants_none_has_no_breaker():
    desk = Desk()
    free = tool(breaker=False)
    for _ in range(9):
        passage = desk.breakers.tool("acme", free)
        report(passage, free, answer(Reason.OUT_OF_MEMORY, CallState.FAILED))
    assert desk.breakers.list() == {}


def test_an_operators_hand_stops_also_a_tool_whose_manifest_wants_no_breaker():
    desk = Desk()
    free = tool(breaker=False)
    desk.breakers.open("tool:acme/text.echo")
    with pytest.raises(CallError, match="operator"):
        desk.breakers.tool("acme", free)
    desk.breakers.tool("rival", free)
    desk.breakers.close("tool:acme/text.echo")
    desk.breakers.tool("acme", free)


def test_a_tools_answers_are_counted_by_what_they_say_of_it():
    desk = Desk()
    one = tool()
    for reason, state in ((Reason.TOOL_FAILED, CallState.FAILED), (Reason.CANCELLED, CallState.CANCELLED)):
        report(desk.breakers.tool("acme", one), one, answer(reason, state))
    assert desk.breakers.list()["tool:acme/text.echo"].calls == 1
    report(desk.breakers.tool("acme", one), one, answer(Reason.INVALID_RESULT, CallState.FAILED))
    assert desk.state(BreakerKey("tool", "acme", "text.echo")) is State.OPEN


# --- how many are kept ---------------------------------------------------------------------------------------------


def upstream(number: int, tenant: str = "acme") -> BreakerKey:
    return BreakerKey("upstream", tenant, f"{number}.example.com:443")


def test_the_closed_one_that_nobody_asked_for_longest_is_forgotten():
    desk = Desk(most=3)
    for number in (1, 2, 3, 1, 4):
        desk.breakers.enter(upstream(number)).report(Outcome.SUCCEEDED)
    assert set(desk.breakers.list()) == {str(upstream(number)) for number in (1, 3, 4)}


def test_open_ones_are_kept_before_closed_ones_and_those_of_a_hand_before_all():
    desk = Desk(most=3)
    desk.breakers.open(str(upstream(1)))
    desk.open(upstream(2))
    for number in (3, 4):
        desk.breakers.enter(upstream(number))
    assert set(desk.breakers.list()) == {str(upstream(number)) for number in (1, 2, 4)}
    desk.open(upstream(4))
    desk.open(upstream(5))
    assert set(desk.breakers.list()) == {str(upstream(number)) for number in (1, 4, 5)}
    for number in (6, 7, 8):
        desk.breakers.open(str(upstream(number)))
    assert len(desk.breakers.list()) == 3


def test_one_tenants_many_push_out_no_others():
    desk = Desk(most=2)
    desk.breakers.enter(upstream(1, "rival"))
    desk.breakers.enter(ENGINE)
    for number in range(50):
        desk.breakers.enter(upstream(number))
    assert len(desk.breakers.list()) == 4
    assert {"engine", str(upstream(1, "rival"))} < set(desk.breakers.list())


def test_what_is_forgotten_says_nothing_any_more():
    desk = Desk(most=1)
    late = [desk.breakers.enter(upstream(1)) for _ in range(2)]
    desk.breakers.enter(upstream(2))
    for passage in late:
        passage.report(Outcome.FAILED)
    assert desk.changes == []
    assert isinstance(desk.breakers.ask(upstream(1)), Passage)


def test_a_refusal_can_be_had_without_an_error():
    desk = Desk()
    desk.open(upstream(1))
    assert desk.breakers.ask(upstream(1)) == Refused(7.5)
