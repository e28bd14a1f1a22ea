import inspect

import pytest

from callgate_server.backends.sqlite.ledger import SqliteLedger
from callgate_server.ledger.store import Ledger

METHODS = [name for name, _ in inspect.getmembers(Ledger, inspect.isfunction) if not name.startswith("_")]


def test_the_contract_has_methods():
    assert {"claim", "complete", "find", "refuse", "verify"} <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_embedded_ledger_keeps_the_contracts_signature(name):
    ours, theirs = getattr(SqliteLedger, name), getattr(Ledger, name)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)
