from callgate_server.observe.phases import PHASES, Phases


def test_time_is_summed_per_phase() -> None:
    phases = Phases()
    for _ in range(2):
        with phases.measure("ledger"):
            pass
    with phases.measure("run"):
        pass
    assert set(phases.ms) == {"ledger", "run"} <= set(PHASES)
    assert all(ms >= 0 for ms in phases.ms.values())


def test_a_phase_that_raises_is_still_measured() -> None:
    phases = Phases()
    try:
        with phases.measure("acquire"):
            raise KeyError
    except KeyError:
        pass
    assert "acquire" in phases.ms
    assert phases.since_start_ms() >= phases.ms["acquire"]
