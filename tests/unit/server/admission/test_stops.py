from datetime import UTC, datetime

import pytest

from callgate_server.admission.stops import StopList
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.task import Stop

BOT = Caller("acme", "bot")


def stop(agent: str, tenant: str = "acme") -> Stop:
    return Stop(tenant, agent, "it loops", "root", datetime.now(UTC))


@pytest.mark.parametrize("agent", ["bot", ""])
def test_who_is_stopped_is_refused_and_goes_on_when_the_stop_is_lifted(agent):
    stops = StopList()
    stops.put(stop(agent))
    with pytest.raises(CallError) as refused:
        stops.refuse(BOT)
    assert refused.value.reason is Reason.STOPPED
    assert "it loops" not in refused.value.message
    stops.lift("acme", agent)
    stops.refuse(BOT)


def test_nobody_else_is():
    stops = StopList()
    stops.put(stop("bot"))
    stops.refuse(Caller("acme", "other"))
    stops.refuse(Caller("rival", "bot"))


def test_an_agent_stays_stopped_when_only_its_tenant_goes_on():
    stops = StopList()
    stops.put(stop("bot"))
    stops.put(stop(""))
    stops.lift("acme", "")
    with pytest.raises(CallError):
        stops.refuse(BOT)


def test_a_tenants_stops_are_listed_oldest_first():
    stops, first, second = StopList(), stop("bot"), stop("")
    for each in (second, first, stop("bot", "rival")):
        stops.put(each)
    assert stops.of("acme") == [first, second]
