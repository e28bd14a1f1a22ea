"""A short version of `make soak` (tests/bench/soak.py): calls of all kinds while somebody kills, and nothing is left."""

from pathlib import Path

import pytest

import soak
from support.gateway import Deployment, canary, start_store

# The pools are full from the start; gRPC's own starts another thread where a machine is busy.
LATE_THREADS = 4


@pytest.mark.timeout(300)
def test_calls_among_kills_all_end_and_leave_nothing(tmp_path: Path) -> None:
    store = start_store(tmp_path / "store")
    try:
        store.operator.write(soak.HOOKS, {"key": canary()})
        deployment = Deployment(tmp_path / "gateway", store, soak.POLICIES, settings=soak.SETTINGS)
        with deployment.start() as gateway:
            load = soak.Soak(gateway)
            load.make_calls(60)
            before = load.at_rest()
            load.make_calls(200)
            after = load.at_rest(before)
            soak.still_serves(gateway)
    finally:
        store.stop()
    assert load.ends["succeeded"] > 100
    assert load.ends.total() == 260
    assert load.ends["no answer"] == load.ends["internal"] == 0
    assert load.kills.total() > 0
    left = after.more_than(before)
    assert left["containers left"] == left["tasks left"] == 0
    assert not after.descriptors_beyond(before)
    assert left["threads left"] <= LATE_THREADS
    assert after.memory_kb < 1.2 * before.memory_kb
    assert deployment.found() == {}
