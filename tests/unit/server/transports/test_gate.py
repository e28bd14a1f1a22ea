from callgate_server.approvals import Approvals
from callgate_server.breakers import Breakers
from callgate_server.dead_letters import DeadLetters
from callgate_server.pipeline import Pipeline
from callgate_server.queries import Queries
from callgate_server.stops import Stops
from callgate_server.tasks import Tasks
from callgate_server.transports.gate import (
    Access,
    Approving,
    BreakerDesk,
    Calls,
    Failures,
    Gate,
    Lookups,
    Readiness,
    StopDesk,
    TaskDesk,
)

PARTS = (
    *((Calls, Pipeline), (Lookups, Queries), (Approving, Approvals), (Failures, DeadLetters)),
    *((TaskDesk, Tasks), (StopDesk, Stops), (BreakerDesk, Breakers)),
)


def _is_calls(pipeline: Pipeline) -> Calls:
    return pipeline


def _is_lookups(queries: Queries) -> Lookups:
    return queries


def test_the_pipeline_and_the_queries_have_every_method_that_a_transport_uses() -> None:
    for wanted, given in PARTS:
        names = [name for name in vars(wanted) if not name.startswith("_")]
        assert names
        for name in names:
            offered = vars(given)[name].__code__
            assert (
                vars(wanted)[name].__code__.co_varnames
                == offered.co_varnames[: offered.co_argcount + offered.co_kwonlyargcount]
            )


async def test_without_an_access_log_a_request_is_not_noted() -> None:
    async def ready() -> Readiness:
        return Readiness(True, {})

    gate = Gate(None, None, None, None, ready, bytes, lambda _id, _error: None)  # type: ignore[arg-type]
    assert gate.accessed(Access("http", "GET", "/healthz", "200", 0.1)) is None  # type: ignore[func-returns-value]
