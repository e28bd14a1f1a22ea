"""What the gateway's share is compared with does what it says."""

from contextlib import closing
from pathlib import Path

from floor import DurableWrites, empty_calls


def test_an_empty_call_is_answered_by_a_server_of_its_own() -> None:
    with empty_calls() as call:
        call()
        call()


def test_durable_writes_go_over_what_was_written_and_the_file_stays_as_large(tmp_path: Path) -> None:
    path = tmp_path / "written"
    with closing(DurableWrites(path)) as written:
        size = path.stat().st_size
        for _ in range(200):
            written()
    assert path.stat().st_size == size
    assert path.read_bytes() == b"w" * size
