"""A full pool holds from its start what it will ever hold."""

import threading
import time

from callgate_server.backends.threads import full_pool


def names() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("full"))


def test_all_threads_are_there_before_any_work() -> None:
    with full_pool(3, "full"):
        assert names() == ["full_0", "full_1", "full_2"]
    assert names() == []


def test_a_burst_starts_no_more_and_all_of_it_is_done() -> None:
    with full_pool(3, "full") as pool:
        assert list(pool.map(lambda number: time.sleep(0.001) or number, range(30))) == list(range(30))
        assert len(names()) == 3
