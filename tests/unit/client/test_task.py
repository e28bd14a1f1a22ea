from datetime import UTC, datetime, timedelta

from callgate.task import Amounts, NewTask, Task

NOW = datetime.now(UTC)


def test_a_task_is_over_when_it_was_ended_or_its_time_has_passed() -> None:
    assert not Task("t1", expires_at=NOW + timedelta(hours=1)).is_over
    assert Task("t1", expires_at=NOW - timedelta(seconds=1)).is_over
    assert Task("t1", expires_at=NOW + timedelta(hours=1), ended_at=NOW).is_over


def test_the_document_is_that_of_the_gateway() -> None:
    task = Task("t1", "x", "bot", {"a.b": {}}, Amounts(calls=3), Amounts(0, 0.5, 0, 1.0), NOW, NOW)
    assert task.to_json() == {
        "task_id": "t1",
        "name": "x",
        "agent": "bot",
        "grant": {"tools": {"a.b": {}}},
        "budget": {"calls": 3, "cpu_s": None, "egress_bytes": None, "cost": None},
        "spent": {"calls": 0, "cpu_s": 0.5, "egress_bytes": 0, "cost": 1.0},
        "created_at": NOW.isoformat(),
        "expires_at": NOW.isoformat(),
        "ended_at": None,
    }
    assert NewTask(task, "cgt_secret").to_json()["token"] == "cgt_secret"
    assert "cgt_secret" not in repr(NewTask(task, "cgt_secret"))
