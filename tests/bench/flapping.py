"""A tool against an upstream that comes and goes: what its circuit breaker lets through, phase by phase.

The requests come at an even pace, whatever became of the ones before, through a real gate to a real server on
loopback. `make flapping` prints the table.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from callgate_server.execution.breaker import BreakerRules
from callgate_server.execution.breakers import Breakers, Change
from callgate_server.execution.egress import EgressBudget
from support.egress_rig import internal, rig, rule
from support.upstreams import Upstream

RULES: Final = BreakerRules(window=20, min_calls=10, failure_rate=0.5, slow_s=0.2, slow_rate=0.5, open_s=0.4, probes=2)
REQUESTS: Final = 80
EVERY_S: Final = 0.025
# The name of a phase, and how the upstream answers in it.
PHASES: Final = (
    ("good", ""),
    ("every third 503", "every_third_is_unavailable"),
    ("503", "unavailable"),
    ("good again", ""),
    ("hangs up", "hang_up"),
    ("good again", ""),
    ("slow, 300 ms", "slow"),
    ("good again", ""),
)
_BUDGET: Final = EgressBudget(bytes=1 << 30, connections=4000, requests=100_000, concurrent=16)


@dataclass
class Row:
    """One phase. `reached` counts what the upstream saw, `after` is the breaker's state at the end."""

    phase: str
    outcomes: Counter[str] = field(default_factory=Counter)
    reached: int = 0
    refused_ms: list[float] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    first_good_ms: float | None = None
    after: str = ""


async def measure(folder: Path, requests: int = REQUESTS) -> list[Row]:
    """Go through the phases and return a row for each."""
    changes: list[Change] = []
    breakers = Breakers({"upstream": RULES}, changes.append)
    rows: list[Row] = []
    with Upstream() as upstream:
        url = f"http://localhost:{upstream.port}/bytes?n=1"
        rules = [rule("localhost", upstream.port, scheme="http")]
        options = {"internal": [internal("localhost")], "budget": _BUDGET, "breakers": breakers}
        async with rig(folder, rules, **options) as gate:
            limits = httpx.Limits(max_connections=16)
            async with httpx.AsyncClient(proxy=gate.proxy, trust_env=False, limits=limits, timeout=30) as client:
                for phase, mood in PHASES:
                    row = Row(phase)
                    rows.append(row)
                    upstream.mood = mood
                    seen, known = len(upstream.seen), len(changes)
                    await _requests(client, url, requests, row)
                    row.reached = len(upstream.seen) - seen
                    row.changes = changes[known:]
                    (row.after,) = {str(view.state) for view in breakers.list().values()}
    return rows


async def _requests(client: httpx.AsyncClient, url: str, count: int, row: Row) -> None:
    began_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            await asyncio.sleep(max(0.0, began_s + number * EVERY_S - time.monotonic()))
            group.create_task(_request(client, url, began_s, row))


async def _request(client: httpx.AsyncClient, url: str, phase_began_s: float, row: Row) -> None:
    began_s = time.monotonic()
    answer = await client.get(url)
    took_ms = (time.monotonic() - began_s) * 1000
    outcome = _outcome(answer)
    row.outcomes[outcome] += 1
    if outcome == "refused":
        row.refused_ms.append(took_ms)
    if outcome == "answered" and row.first_good_ms is None:
        row.first_good_ms = (time.monotonic() - phase_began_s) * 1000


def _outcome(answer: httpx.Response) -> str:
    if answer.status_code == httpx.codes.OK:
        return "answered"
    refused = answer.headers.get("content-type") == "application/json" and json.loads(answer.content)
    if refused and refused["why"] == "circuit_open":
        return "refused"
    return "failed"


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| upstream | sent | reached it | answered | failed | refused at once | p50 of a refusal | first answer after "
        "| the breaker |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        refused_ms = f"{statistics.median(row.refused_ms):.1f} ms" if row.refused_ms else "-"
        first = "-" if row.first_good_ms is None else f"{row.first_good_ms:.0f} ms"
        story = " → ".join([str(change.after) for change in row.changes]) or f"stays {row.after}"
        outcomes = [row.outcomes[name] for name in ("answered", "failed", "refused")]
        cells = [row.phase, sum(outcomes), row.reached, *outcomes, refused_ms, first, _shortened(story)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _shortened(story: str, most: int = 6) -> str:
    words = story.split(" → ")
    return story if len(words) <= most else " → ".join([*words[:3], f"… {len(words) - 5} more …", *words[-2:]])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(Path(folder)))
    sys.stdout.write(
        f"{REQUESTS} requests a phase, one every {EVERY_S * 1000:.0f} ms; {RULES.window} calls count, it opens at "
        f"{RULES.failure_rate:.0%} failures or {RULES.slow_rate:.0%} over {RULES.slow_s * 1000:.0f} ms, for "
        f"{RULES.open_s * 1000:.0f} ms; {RULES.probes} probes.\n\n{table(rows)}"
    )


if __name__ == "__main__":
    main()
