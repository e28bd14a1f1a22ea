import os
from dataclasses import replace

import pytest

from callgate_server.backends.sqlite.spool import SPOOL_BYTES, Spool
from callgate_server.model.sealed import Sealed
from callgate_server.model.spending import Amounts, Charge, Scope
from support.records import never_started, success

KEY = Sealed(b"k" * 32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db.spool"


@pytest.fixture
def spool(path):
    spool = Spool.open(path, KEY)
    yield spool
    spool.close()


def reopened(path, key=KEY):
    """What a next process finds."""
    spool = Spool.open(path, key)
    waiting = spool.waiting()
    spool.close()
    return waiting


ONE = replace(success("c1", bytes(range(256))), sandbox="s1", message="ä", fallback="constant")
TWO = never_started("c2")


def test_what_was_kept_is_there_for_the_next_process_in_its_order(spool, path):
    spool.keep(ONE)
    spool.keep(TWO)
    assert spool.waiting() == reopened(path) == (ONE, TWO)
    assert (spool.find("c2"), spool.find("c3")) == (TWO, None)


def test_all_the_room_is_taken_when_it_is_made_and_nobody_else_may_read_it(spool, path):
    assert path.stat().st_blocks * 512 >= SPOOL_BYTES
    spool.keep(ONE)
    assert path.stat().st_size == SPOOL_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(PermissionError, match="chmod 600"):
        Spool.open(path, KEY)


def test_what_was_moved_is_forgotten_with_the_last_one(spool, path):
    spool.keep(ONE)
    spool.keep(TWO)
    spool.moved("c1")
    assert spool.waiting() == (TWO,)
    spool.moved("c2")
    spool.moved("c2")
    assert spool.waiting() == reopened(path) == ()


def test_what_older_entries_left_behind_is_no_entry(spool, path):
    for number in range(3):
        spool.keep(replace(ONE, call_id=f"old-{number}"))
    for number in range(3):
        spool.moved(f"old-{number}")
    new = replace(ONE, call_id="new-0")
    spool.keep(new)
    assert reopened(path) == (new,)


def test_a_call_has_one_outcome(spool):
    spool.keep(ONE)
    with pytest.raises(ValueError, match="one outcome"):
        spool.keep(replace(TWO, call_id="c1"))


def test_what_does_not_fit_is_refused_and_what_follows_may_fit(spool, path):
    with pytest.raises(ValueError, match="no room"):
        spool.keep(success("large", b"x" * SPOOL_BYTES))
    spool.keep(ONE)
    assert reopened(path) == (ONE,)


@pytest.mark.parametrize("at", [0, 3, 4, 35, 36, 100])
def test_an_entry_that_was_cut_short_or_changed_is_the_end(spool, path, at):
    spool.keep(ONE)
    size = spool._end
    spool.keep(TWO)
    with path.open("r+b") as file:
        file.seek(size + at)
        changed = bytes(byte ^ 0xFF for byte in file.read(1))
        file.seek(size + at)
        file.write(changed)
    assert reopened(path) == (ONE,)


def test_an_entry_under_another_key_is_none(spool, path):
    spool.keep(ONE)
    assert reopened(path, Sealed(b"x" * 32)) == ()


def test_a_link_is_refused(path, tmp_path):
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="symbolic link"):
        Spool.open(path, KEY)
    assert not os.path.lexists(tmp_path / "elsewhere")


def test_what_a_call_spent_is_kept_with_its_outcome(spool, path):
    charges = (Charge(Scope("acme", "bot"), 7, Amounts(-1, 2, 3, -4)), Charge(Scope("acme"), 0, Amounts(cpu_us=5)))
    spent = replace(success("c1"), charges=charges)
    spool.keep(spent)
    assert reopened(path) == (spent,)
