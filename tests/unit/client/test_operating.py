from datetime import UTC, datetime

from callgate.operating import Breaker, Stop, Stopped

NOW = datetime.now(UTC)


def test_the_documents_are_those_of_the_gateway() -> None:
    stop = {"agent": "bot", "reason": "it loops", "at": NOW.isoformat(), "by": "root"}
    assert Stop("bot", "it loops", NOW, "root").to_json() == stop
    assert Stop("bot").to_json()["at"] is None
    assert Stopped(Stop("bot", "it loops", NOW, "root"), 2).to_json() == {"stopped": stop, "cancelled": 2}
    assert Breaker("engine", "open", 5, 3, 1).to_json() == {
        "name": "engine", "state": "open", "calls": 5, "failures": 3, "slow": 1, "retry_after_ms": None,
    }  # fmt: skip
    assert Breaker("engine", "open", retry_after_ms=900).to_json()["retry_after_ms"] == 900
