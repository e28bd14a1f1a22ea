from hypothesis import given
from hypothesis import strategies as st

from callgate_server.observe.lag import LATE_S, REMEMBERED_S, LoopLag


def test_a_loop_that_keeps_its_time_has_no_stall() -> None:
    lag = LoopLag()
    for second in range(100):
        lag.woken(float(second), second + LATE_S / 2)
    assert (lag.stalls, lag.worst_s(100.0)) == (0, 0.0)


def test_a_stall_is_remembered_for_a_while() -> None:
    lag = LoopLag()
    lag.woken(1.0, 1.5)
    assert (lag.stalls, lag.worst_s(1.6)) == (1, 0.5)
    assert lag.worst_s(1.5 + REMEMBERED_S) == 0.0


def test_the_worst_of_what_is_remembered_counts() -> None:
    lag = LoopLag()
    lag.woken(1.0, 3.0)
    lag.woken(4.0, 4.5)
    assert lag.worst_s(5.0) == 2.0
    lag.woken(100.0, 100.5)
    assert (lag.worst_s(100.6), lag.stalls) == (0.5, 3)


@given(st.floats(0, 1e6), st.floats(-10, 10))
def test_it_is_never_negative(due_s: float, late_s: float) -> None:
    lag = LoopLag()
    lag.woken(due_s, due_s + late_s)
    assert lag.worst_s(due_s + late_s) >= 0
