import pytest

from callgate_server.admission.fruitless import Fruitless, TooFruitlessError
from callgate_server.admission.rates import Rate
from callgate_server.model.call import Caller
from callgate_server.model.errors import Reason
from callgate_server.model.spending import Scope

BOT, OTHER = Caller("acme", "bot"), Caller("acme", "other")


def spent() -> Fruitless:
    fruitless = Fruitless(Rate(3, 30))
    for _ in range(3):
        fruitless.refuse_beyond(BOT, 100.0)
        fruitless.count(BOT, 100.0)
    return fruitless


def test_who_asks_for_nothing_too_often_is_told_how_long_to_wait() -> None:
    fruitless = spent()
    with pytest.raises(TooFruitlessError) as caught:
        fruitless.refuse_beyond(BOT, 100.0)
    assert caught.value.reason is Reason.RATE_LIMITED
    assert 9_999 <= (caught.value.retry_after_ms or 0) <= 10_002


def test_asking_on_does_not_make_the_wait_longer() -> None:
    fruitless = spent()
    for _ in range(50):
        with pytest.raises(TooFruitlessError):
            fruitless.refuse_beyond(BOT, 105.0)
    fruitless.refuse_beyond(BOT, 110.1)


def test_it_is_each_agents_own_and_its_tasks_count_with_it() -> None:
    fruitless = spent()
    fruitless.refuse_beyond(OTHER, 100.0)
    with pytest.raises(TooFruitlessError):
        fruitless.refuse_beyond(Caller("acme", "bot", ("x",), "task-1"), 100.0)


def test_what_was_refused_beyond_is_told_once_as_a_sum() -> None:
    fruitless = spent()
    for _ in range(4):
        with pytest.raises(TooFruitlessError):
            fruitless.refuse_beyond(BOT, 100.0)
    assert fruitless.take_beyond() == [(Scope("acme", "bot"), 4)]
    assert fruitless.take_beyond() == []
