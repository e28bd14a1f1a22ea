import sqlite3

import pytest

from callgate_server.backends.sqlite import schema
from callgate_server.backends.sqlite.spending import charge, forget, read_since, read_task
from callgate_server.model.spending import Amounts, Charge, Scope

BOT, TASK = Scope("acme", "bot"), Scope("acme", "bot", "t1")


@pytest.fixture
def connection():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(connection)
    yield connection
    connection.close()


def test_what_is_spent_adds_up_by_scope_and_hour(connection):
    charge(connection, [Charge(BOT, 7, Amounts(1, 2, 3, 4)), Charge(Scope("acme"), 7, Amounts(1))])
    charge(connection, [Charge(BOT, 7, Amounts(-1, 20, 30, 40)), Charge(BOT, 8, Amounts(1))])
    assert sorted(read_since(connection, 7), key=str) == sorted(
        [Charge(BOT, 7, Amounts(0, 22, 33, 44)), Charge(Scope("acme"), 7, Amounts(1)), Charge(BOT, 8, Amounts(1))],
        key=str,
    )
    assert read_since(connection, 8) == [Charge(BOT, 8, Amounts(1))]


def test_what_is_long_over_is_forgotten_but_not_what_a_task_spent(connection):
    charge(connection, [Charge(BOT, 7, Amounts(1)), Charge(BOT, 9, Amounts(1)), Charge(TASK, 0, Amounts(5))])
    forget(connection, 8)
    assert read_since(connection, 0) == [Charge(BOT, 9, Amounts(1))]
    assert read_task(connection, TASK) == Amounts(5)


def test_a_task_that_spent_nothing_has_spent_nothing(connection):
    assert read_task(connection, TASK) == Amounts()
