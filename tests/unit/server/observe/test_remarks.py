import asyncio
from collections.abc import Mapping

import pytest

from callgate_server.model.errors import CallError, Reason
from callgate_server.model.strict_json import Json
from callgate_server.observe import remarks
from callgate_server.observe.remarks import Remarks


class Record:
    def __init__(self) -> None:
        self.written: list[tuple[str, Mapping[str, Json]]] = []
        self.works = True
        self.slow: asyncio.Event | None = None

    async def remark(self, kind: str, body: Mapping[str, Json]) -> None:
        if not self.works:
            raise CallError(Reason.AUDIT_UNAVAILABLE, "no")
        if self.slow is not None:
            await self.slow.wait()
        self.written.append((kind, body))


async def test_remarks_are_written_in_order_and_once():
    record = Record()
    made = Remarks(record.remark)
    made.add("a", {"n": 1})
    made.add("b", {"n": 2})
    await made.write()
    await made.flush()
    assert record.written == [("a", {"n": 1}), ("b", {"n": 2})]


async def test_what_the_record_does_not_take_is_written_when_it_does():
    record = Record()
    made = Remarks(record.remark)
    record.works = False
    made.add("a", {})
    await made.write()
    assert record.written == []
    record.works = True
    made.add("b", {})
    await made.write()
    assert [kind for kind, _ in record.written] == ["a", "b"]


async def test_without_remarks_writing_waits_for_some():
    record = Record()
    made = Remarks(record.remark)
    writing = asyncio.create_task(made.write())
    await asyncio.sleep(0)
    assert not writing.done()
    made.add("a", {})
    await writing
    assert [kind for kind, _ in record.written] == ["a"]


async def test_a_remark_whose_writing_is_broken_off_is_written_again():
    record = Record()
    record.slow = asyncio.Event()
    made = Remarks(record.remark)
    made.add("a", {})
    writing = asyncio.create_task(made.write())
    await asyncio.sleep(0.01)
    writing.cancel()
    await asyncio.wait([writing])
    record.slow.set()
    await made.flush()
    assert [kind for kind, _ in record.written] == ["a"]


async def test_a_record_that_is_away_for_too_long_loses_the_oldest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remarks, "MOST_WAITING", 2)
    record = Record()
    made = Remarks(record.remark)
    for kind in ("a", "b", "c"):
        made.add(kind, {})
    await made.flush()
    assert [kind for kind, _ in record.written] == ["b", "c"]
