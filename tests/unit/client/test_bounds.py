import pytest

from callgate import _bounds
from callgate.operating import Breaker, Stop, Stopped
from callgate.task import Amounts, NewTask, Task
from callgate_proto.v1 import gateway_pb2 as pb


def test_a_wish_is_sent_as_it_is_meant() -> None:
    request = _bounds.task_request("x", {"a.b": {"const": 2**53 + 1}, "c.d": {}}, 60, Amounts(calls=3))
    assert dict(request.grant.tools_json) == {"a.b": b'{"const": 9007199254740993}', "c.d": b"{}"}
    assert (request.budget.calls, request.budget.HasField("cpu_s"), request.lifetime_s) == (3, False, 60)
    assert not _bounds.task_request("x", {}, 60, None).budget.HasField("calls")


@pytest.mark.parametrize(("schema", "error"), [({"const": float("nan")}, ValueError), ({"const": {1, 2}}, TypeError)])
def test_what_json_cannot_hold_is_not_sent(schema: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        _bounds.task_request("x", {"a.b": schema}, 60, None)


def test_what_arrives_is_read_as_it_is() -> None:
    message = pb.Task(
        task_id="t1", name="x", agent="bot", grant=pb.Grant(tools_json={"a.b": b"{}"}), spent=pb.Budget(calls=0, cost=1)
    )
    assert _bounds.task(message) == Task("t1", "x", "bot", {"a.b": {}}, Amounts(), Amounts(calls=0, cost=1))
    assert _bounds.new_task(pb.CreateTaskResponse(task=message, token="t")) == NewTask(_bounds.task(message), "t")
    stopped = pb.StopResponse(stopped=pb.Stopped(agent="bot", by="root"), cancelled=2)
    assert _bounds.stopped(stopped) == Stopped(Stop("bot", "", None, "root"), 2)
    assert _bounds.breaker(pb.Breaker(name="engine", state="open", calls=5)) == Breaker("engine", "open", 5, 0, 0)
    for left_ms in (0, 12_300):
        assert _bounds.breaker(pb.Breaker(name="x", retry_after_ms=left_ms)) == Breaker("x", "", retry_after_ms=left_ms)


@pytest.mark.parametrize("document", [b"[]", b"{", b"NaN"])
def test_a_grant_that_is_none_is_not_guessed(document: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        _bounds.task(pb.Task(grant=pb.Grant(tools_json={"a.b": document})))
