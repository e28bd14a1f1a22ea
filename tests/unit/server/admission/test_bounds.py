from callgate_server.admission.bounds import Bounds, BoundTable
from callgate_server.admission.rates import Rate
from callgate_server.model.call import Caller
from callgate_server.model.spending import Budget, Scope

USUAL = Bounds(Rate(1, 1), 8, Budget(calls=10, window_h=24))
TABLE = BoundTable(
    per_agent=USUAL,
    per_task=Bounds(concurrent=2),
    tenants={"acme": Bounds(concurrent=64)},
    agents={"acme/importer": Bounds(Rate(100, 1))},
)
BOT = Caller("acme", "bot", ("r",), "t1")


def test_nothing_said_is_nothing_bounded():
    assert [bounds for _, bounds in BoundTable().of(BOT)] == [Bounds(), Bounds()]


def test_what_is_decided_by_name_goes_over_what_is_usual_as_far_as_it_says_something():
    found = dict(TABLE.of(Caller("acme", "importer")))
    assert found[Scope("acme")] == Bounds(concurrent=64)
    assert found[Scope("acme", "importer")] == Bounds(Rate(100, 1), 8, USUAL.budget)


def test_an_agent_of_the_same_name_in_another_tenant_is_another():
    assert dict(TABLE.of(Caller("rival", "importer")))[Scope("rival", "importer")] == USUAL


def test_a_task_of_ours_has_its_own_budget_and_a_label_has_none():
    assert dict(TABLE.of(BOT, Budget(calls=3)))[Scope("acme", "bot", "t1")] == Bounds(None, 2, Budget(calls=3))
    assert len(TABLE.of(BOT)) == 2


def test_the_budget_of_a_scope_is_found_again():
    assert TABLE.budget(Scope("acme", "bot")) == USUAL.budget
    assert TABLE.budget(Scope("acme")) is None
