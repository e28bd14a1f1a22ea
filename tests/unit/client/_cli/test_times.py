from datetime import UTC, datetime, timedelta

import pytest

from callgate._cli.times import age, duration, until


@pytest.mark.parametrize(
    ("ago", "shown"), [({"seconds": 5}, "5s"), ({"minutes": 3}, "3m"), ({"hours": 30}, "1d"), ({"days": -1}, "0s")]
)
def test_an_age_has_its_largest_unit(ago: dict[str, int], shown: str) -> None:
    assert age(datetime.now(UTC) - timedelta(**ago)) == shown
    assert age(None) == "?"


def test_a_moment_to_come_says_how_far_off_it_is() -> None:
    assert until(datetime.now(UTC) + timedelta(hours=2, minutes=5)).endswith("UTC (in 2h)")
    assert until(datetime(2026, 1, 2, 3, 4, tzinfo=UTC) - timedelta(days=9999)).endswith("UTC (over)")
    assert until(None) == "?"


def test_a_duration_has_a_unit_that_fits() -> None:
    assert (duration(12.4), duration(1234)) == ("12 ms", "1.2 s")
