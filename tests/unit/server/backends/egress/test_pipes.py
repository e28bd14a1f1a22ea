from callgate_server.backends.egress.pipes import FailedError, RefusedError
from callgate_server.execution.egress_rules import Why
from callgate_server.model.egress import EgressAsk


def test_neither_error_says_more_than_its_word():
    assert str(RefusedError(Why.NO_RULE, EgressAsk("https", "secret.example.com", 443))) == "no_rule"
    assert str(FailedError(Why.UNREACHABLE)) == "unreachable"
