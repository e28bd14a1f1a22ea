"""A circuit breaker between a tool and a real upstream that comes and goes, at an even pace of requests."""

from itertools import pairwise
from pathlib import Path

from callgate_server.execution.breaker import Why
from flapping import PHASES, measure, table

REQUESTS = 60


async def test_what_goes_through_is_what_the_upstream_is_good_for(tmp_path: Path) -> None:
    rows = await measure(tmp_path, REQUESTS)
    good, sometimes, failing, again, hanging, back, slow, last = rows
    assert [row.phase for row in rows] == [phase for phase, _ in PHASES]
    for row in rows:
        assert row.outcomes.total() == REQUESTS, "every request has an end"
        assert row.reached == row.outcomes["answered"] + row.outcomes["failed"], "who is refused reaches nobody"

    # Below the rates nothing is refused, however often it fails.
    assert (good.outcomes["answered"], good.changes) == (REQUESTS, [])
    assert (sometimes.outcomes["refused"], sometimes.changes) == (0, [])
    assert sometimes.outcomes["failed"] == REQUESTS // 3

    # One that fails gets what opens the breaker, and probes; the rest is refused.
    for row in (failing, hanging):
        assert row.outcomes["answered"] == 0
        assert row.outcomes["refused"] > REQUESTS // 2, row
        assert row.changes[0].why is Why.FAILURES
        assert row.after in ("open", "half_open")
    assert slow.outcomes["failed"] == 0
    assert slow.outcomes["refused"] > 0
    assert Why.SLOWNESS in {change.why for change in slow.changes}

    # One that is back is found by the probes, and serves everybody from then on.
    for row in (again, back, last):
        assert row.outcomes["failed"] == 0
        assert row.outcomes["answered"] > REQUESTS // 2, row
        assert (row.changes[-1].why, row.after) == (Why.RECOVERED, "closed")

    changes = [change for row in rows for change in row.changes]
    assert all(earlier.after is later.before for earlier, later in pairwise(changes)), "no change is missing"
    assert table(rows).count("\n") == len(PHASES) + 2
