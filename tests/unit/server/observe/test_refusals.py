from collections.abc import Mapping
from typing import Any

from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.strict_json import Json
from callgate_server.observe.refusals import MOST, PER_S, Allowance, Refusals

NO = CallError(Reason.POLICY_DENIED, "No.")


def test_a_few_of_each_are_taken_and_what_goes_beyond_is_counted() -> None:
    allowance = Allowance(2, 60)
    assert [allowance.take(("a",), now_s) for now_s in (0, 1, 2, 59.9)] == [0, 0, None, None]
    assert allowance.take(("b",), 59.9) == 0
    assert [allowance.take(("a",), now_s) for now_s in (60, 61)] == [2, 0]


def test_what_is_long_ago_is_forgotten() -> None:
    allowance = Allowance(1, 60)
    for number in range(1024):
        allowance.take((str(number),), 0)
    allowance.take(("late",), 60)
    assert len(allowance) == 1


class Record:
    """What was said of whom, at a time that the test moves."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Mapping[str, Json]]] = []
        self.now_s = 0.0
        self.refusals = Refusals(lambda kind, body: self.said.append((kind, body)), lambda: self.now_s)

    def refuse(self, agent: str = "bot", kind: str = "approval_refused") -> CallError:
        return self.refusals.noted(kind, Caller("acme", agent), "decide", NO, "c1")

    async def remark(self, kind: str, body: Mapping[str, Any]) -> None:
        self.said.append((kind, body))


def test_nobody_fills_the_record_and_nobody_hides_another() -> None:
    record = Record()
    assert record.refuse() is NO
    for _ in range(999):
        record.refuse()
    assert len(record.said) == MOST
    record.refuse("other")
    record.refuse(kind="dead_letter_refused")
    assert len(record.said) == MOST + 2
    record.now_s = PER_S
    record.refuse()
    assert record.said[-1][1]["left_out"] == 1000 - MOST
    assert "left_out" not in record.said[0][1]


async def test_what_is_written_at_once_is_bounded_too() -> None:
    record = Record()
    write = record.refusals.bounded(record.remark)
    for _ in range(100):
        await write("administration_refused", {"tenant": "acme", "agent": "bot", "operation": "stop"})
    assert record.said == [("administration_refused", {"tenant": "acme", "agent": "bot", "operation": "stop"})] * MOST
