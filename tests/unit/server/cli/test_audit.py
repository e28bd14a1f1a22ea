from pathlib import Path

import pytest

from callgate_server.backends.sqlite.files import load_or_create_key
from callgate_server.backends.sqlite.ledger import SqliteLedger
from support.unbuilt import callgated, prepare


async def test_a_call_that_is_not_in_the_record_is_not_shown_as_if_it_had_no_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    ledger = SqliteLedger.open(tmp_path / "ledger/calls.db", load_or_create_key(tmp_path / "ledger/key"))
    await ledger.close()
    assert callgated("audit", "show").exit_code == 0
    done = callgated("audit", "show", "--call", "01890000")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "the record has no call 01890000" in done.stderr
