import sqlite3
import threading
from concurrent.futures import Future
from datetime import UTC, datetime

import pytest

from callgate_server.backends.sqlite import schema, writer
from callgate_server.backends.sqlite.files import LedgerFiles
from callgate_server.backends.sqlite.writer import Writer
from callgate_server.ledger.chain import Event, Keys, check
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.sealed import Sealed

KEYS = Keys.derive(Sealed(b"k" * 32))
TIMEOUT_S = 30


class Bench:
    """A writer on a real file, with a gate to make items wait for each other."""

    def __init__(self, path):
        self.path = path
        self.files = LedgerFiles.hold(path)
        connection = schema.open_writer(path)
        schema.migrate(connection)
        connection.close()
        self.writer = Writer(self.files, KEYS, lambda: datetime.now(UTC))
        self.gate = threading.Event()

    def submit(self, work, *, owed):
        """Queue an item; the future gets what the writer tells."""
        future = Future()

        def tell(outcome):
            if isinstance(outcome, CallError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self.writer.submit(work, tell, owed=owed)
        return future

    def append(self, kind="note", *, owed=False):
        return self.submit(lambda transaction: transaction.append("c", kind, {}), owed=owed)

    def hold(self):
        """Occupy the writer until `gate` is set, so that what follows is written as one group."""
        entered = threading.Event()

        def work(transaction):
            entered.set()
            assert self.gate.wait(TIMEOUT_S)

        future = self.submit(work, owed=True)
        assert entered.wait(TIMEOUT_S)
        return future

    def events(self):
        connection = schema.open_reader(self.path)
        try:
            return [Event(*values) for values in connection.execute("SELECT * FROM events ORDER BY seq")]
        finally:
            connection.close()

    def close(self):
        self.gate.set()
        self.writer.close()
        self.files.release()


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path / "ledger.db")
    yield bench
    bench.close()


def reason(future):
    error = future.exception(TIMEOUT_S)
    assert isinstance(error, CallError)
    return error.reason


def test_an_acknowledged_item_is_in_the_file(bench):
    assert bench.append().result(TIMEOUT_S) == 1
    assert [event.seq for event in bench.events()] == [1]


def test_what_waits_is_written_in_one_transaction_and_in_order(bench):
    bench.hold()
    futures = [bench.append(f"kind-{number}") for number in range(20)]
    assert not any(future.done() for future in futures)
    bench.gate.set()
    assert [future.result(TIMEOUT_S) for future in futures] == list(range(1, 21))
    events = bench.events()
    assert [event.kind for event in events] == [f"kind-{number}" for number in range(20)]
    assert len({event.at for event in events}) == 1
    assert check(KEYS.chain, events).fault is None


FAULTS = pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (CallError(Reason.POLICY_DENIED, "no"), Reason.POLICY_DENIED),
        (ValueError("no"), Reason.INTERNAL),
        (TypeError("no"), Reason.INTERNAL),
        (sqlite3.IntegrityError("no"), Reason.INTERNAL),
        (sqlite3.OperationalError("disk"), Reason.AUDIT_UNAVAILABLE),
        (OSError("disk"), Reason.AUDIT_UNAVAILABLE),
        (MemoryError(), Reason.AUDIT_UNAVAILABLE),
    ],
)


def failing_with(fault):
    def work(transaction):
        transaction.append("c", "bad", {})
        raise fault

    return work


@FAULTS
def test_a_bad_item_fails_alone_and_leaves_nothing(bench, fault, expected):
    bench.hold()
    before = bench.append("before")
    bad = bench.submit(failing_with(fault), owed=False)
    after = bench.append("after")
    bench.gate.set()
    assert reason(bad) is expected
    assert (before.result(TIMEOUT_S), after.result(TIMEOUT_S)) == (1, 2)
    assert [event.kind for event in bench.events()] == ["before", "after"]
    assert check(KEYS.chain, bench.events()).fault is None


@FAULTS
def test_a_bad_item_that_shares_with_nobody_leaves_nothing(bench, fault, expected):
    before = bench.append("before").result(TIMEOUT_S)
    assert reason(bench.submit(failing_with(fault), owed=False)) is expected
    after = bench.append("after").result(TIMEOUT_S)
    assert (before, after) == (1, 2)
    assert [event.kind for event in bench.events()] == ["before", "after"]
    assert check(KEYS.chain, bench.events()).fault is None


def forge(path):
    """Append an event as another program would."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("INSERT INTO events SELECT max(seq) + 1, 'now', 'c', 'forged', '{}', 'none' FROM events")
    other.close()


@pytest.mark.parametrize("items", [1, 3])
def test_events_of_another_program_lose_nothing_and_are_told_of(bench, items):
    assert bench.append().result(TIMEOUT_S) == 1
    forge(bench.path)
    bench.hold()
    futures = [bench.append("ours") for _ in range(items)]
    bench.gate.set()
    assert [future.result(TIMEOUT_S) for future in futures] == list(range(3, 3 + items))
    fault = check(KEYS.chain, bench.events()).fault
    assert fault is not None
    assert "event 2" in fault


def test_an_event_that_cannot_be_one_fails_alone_and_the_ledger_goes_on(bench):
    bench.hold()
    before, bad, after = bench.append(), bench.append(None), bench.append()
    bench.gate.set()
    assert reason(bad) is Reason.INTERNAL
    assert (before.result(TIMEOUT_S), after.result(TIMEOUT_S)) == (1, 2)
    assert check(KEYS.chain, bench.events()).fault is None


def test_an_item_that_ends_its_own_transaction_is_not_told_that_it_is_written(bench):
    def work(transaction):
        transaction.append("c", "note", {})
        transaction.connection.execute("ROLLBACK")

    assert reason(bench.submit(work, owed=False)) is Reason.AUDIT_UNAVAILABLE
    assert bench.append().result(TIMEOUT_S) == 1
    assert check(KEYS.chain, bench.events()).fault is None


def test_a_file_that_went_away_refuses_writes_until_it_is_back(bench, tmp_path):
    assert bench.append().result(TIMEOUT_S) == 1
    away = bench.path.rename(tmp_path / "away.db")
    assert reason(bench.append()) is Reason.AUDIT_UNAVAILABLE
    assert not bench.path.exists()
    away.rename(bench.path)
    assert bench.append().result(TIMEOUT_S) == 2
    assert check(KEYS.chain, bench.events()).fault is None


def test_a_file_open_to_others_refuses_writes_until_it_is_closed(bench, caplog):
    bench.path.chmod(0o644)
    assert reason(bench.append()) is Reason.AUDIT_UNAVAILABLE
    assert reason(bench.append()) is Reason.AUDIT_UNAVAILABLE
    bench.path.chmod(0o600)
    assert bench.append().result(TIMEOUT_S) == 1
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_another_program_holding_the_database_is_a_refusal_and_not_a_hang(bench):
    other = sqlite3.connect(bench.path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        assert reason(bench.append()) is Reason.AUDIT_UNAVAILABLE
        other.execute("ROLLBACK")
        assert bench.append().result(TIMEOUT_S) == 1
    finally:
        other.close()


def test_when_too_many_wait_new_work_is_refused_and_owed_work_is_taken(bench, monkeypatch):
    monkeypatch.setattr(writer, "MAX_WAITING", 3)
    bench.hold()
    waiting = [bench.append() for _ in range(3)]
    with pytest.raises(CallError) as refusal:
        bench.append()
    assert refusal.value.reason is Reason.AUDIT_UNAVAILABLE
    owed = bench.append(owed=True)
    bench.gate.set()
    assert [future.result(TIMEOUT_S) for future in [*waiting, owed]] == [1, 2, 3, 4]


def test_closing_writes_what_waits_and_refuses_what_comes_later(bench):
    bench.hold()
    futures = [bench.append() for _ in range(5)]
    bench.gate.set()
    bench.writer.close()
    bench.writer.close()
    assert [future.result(0) for future in futures] == [1, 2, 3, 4, 5]
    with pytest.raises(CallError) as refusal:
        bench.append(owed=True)
    assert refusal.value.reason is Reason.AUDIT_UNAVAILABLE


def test_a_defect_of_ours_refuses_writes_and_does_not_end_the_thread(bench, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(writer, "timestamp", lambda _: 1 // 0)
        assert reason(bench.append()) is Reason.AUDIT_UNAVAILABLE
    assert bench.append().result(TIMEOUT_S) == 1


def test_a_group_larger_than_the_limit_is_written_in_parts(bench, monkeypatch):
    monkeypatch.setattr(writer, "MAX_GROUP", 4)
    bench.hold()
    futures = [bench.append() for _ in range(10)]
    bench.gate.set()
    assert [future.result(TIMEOUT_S) for future in futures] == list(range(1, 11))
