import inspect

import pytest

from callgate_server.backends.sqlite.register import SqliteRegister
from callgate_server.ledger.register import Register

METHODS = [name for name, _ in inspect.getmembers(Register, inspect.isfunction) if not name.startswith("_")]


def test_the_contract_has_methods():
    assert {"create_task", "end_task", "stop", "resume", "spending"} <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_embedded_register_keeps_the_contracts_signature(name):
    ours, theirs = getattr(SqliteRegister, name), getattr(Register, name)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)
