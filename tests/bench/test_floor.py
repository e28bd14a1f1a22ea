"""What the gateway's share is compared with does what it says."""

from pathlib import Path

from floor import DurableWrites, empty_calls


def test_an_empty_call_is_answered_by_a_server_of_its_own() -> None:
    with empty_calls() as call:
        call()
        call()


def test_durable_writes_are_appended(tmp_path: Path) -> None:
    written = DurableWrites(tmp_path / "written")
    written()
    written()
    assert (tmp_path / "written").stat().st_size == 4 * 16 * 1024
