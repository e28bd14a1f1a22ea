import signal

import pytest

from callgate._cli.interrupts import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_is_kept_back_until_it_can_be_obeyed(number: signal.Signals) -> None:
    with Interrupts() as interrupts:
        assert not interrupts.came
        signal.raise_signal(number)
        assert interrupts.came
        with pytest.raises(KeyboardInterrupt):
            interrupts.release()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_a_second_one_is_not_kept_back() -> None:
    with Interrupts():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_without_one_nothing_happens_and_the_handlers_are_what_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        interrupts.release()
    assert signal.getsignal(signal.SIGTERM) is before
