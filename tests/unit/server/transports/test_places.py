from contextlib import contextmanager

import pytest

from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.transports.limits import TransportLimits
from callgate_server.transports.places import Edge, Place, Places


class Callers:
    """A credential is `tenant/agent`; agents called root administer their tenant."""

    asked = 0

    async def identify(self, token: str | None) -> Caller:
        if token is None:
            raise CallError(Reason.UNAUTHENTICATED, "Who?")
        tenant, _, agent = token.partition("/")
        return Caller(tenant, agent)

    def operates(self, caller: Caller) -> bool:
        self.asked += 1
        return caller.agent == "root"


def places(**limits: int) -> Places:
    return Places(TransportLimits(**limits), Callers())


async def request(
    of: Places, token: str | None = "acme/bot", edge: Edge = "http", *, operating: bool = False, streams: bool = False
) -> Place:
    """One that is being handled, or was refused and left nothing."""
    place = of.at(edge, operating=operating)
    try:
        place.enter()
        await place.identified(token)
        if streams:
            place.stream()
    except CallError:
        place.leave()
        raise
    return place


@contextmanager
def overloaded(text: str = "."):
    with pytest.raises(CallError, match=text) as refused:
        yield
    assert (refused.value.reason, refused.value.retry_after_ms) == (Reason.OVERLOADED, 1000)


async def test_one_agent_has_a_share_at_both_edges_together_and_others_have_theirs() -> None:
    one = places(concurrent_requests=8, requests_per_agent=2)
    held = [await request(one), await request(one, edge="grpc")]
    for edge in ("http", "grpc"):
        with overloaded("2 requests open"):
            await request(one, edge=edge)  # type: ignore[arg-type]
    held += [await request(one, "acme/other"), await request(one, "rival/bot")]
    held.pop(0).leave()
    held.append(await request(one))
    for place in held:
        place.leave()
    assert len(one) == 0


async def test_without_a_setting_an_agent_has_half_of_an_edges_places_and_a_quarter_of_these_for_streams() -> None:
    limits = TransportLimits(concurrent_requests=256)
    assert (limits.agent_requests, limits.agent_streams) == (128, 32)
    least = TransportLimits(concurrent_requests=1)
    assert (least.agent_requests, least.agent_streams) == (1, 1)


async def test_an_edge_is_full_for_everybody_and_the_other_one_is_not() -> None:
    one = places(concurrent_requests=2, requests_per_agent=9)
    for agent in ("acme/a", "acme/b"):
        await request(one, agent)
    with overloaded("at once"):
        await request(one, "acme/c")
    await request(one, "acme/c", "grpc")


async def test_event_streams_leave_an_agent_places_for_the_rest() -> None:
    one = places(requests_per_agent=4, streams_per_agent=2)
    held = [await request(one, streams=True) for _ in range(2)]
    with overloaded("2 event streams open"):
        await request(one, streams=True)
    await request(one)
    await request(one, "acme/other", streams=True)
    held[0].leave()
    await request(one, streams=True)


async def test_who_is_not_known_is_bounded_and_counts_for_no_agent() -> None:
    one = places(concurrent_requests=2)
    strangers = [one.at("http") for _ in range(3)]
    for place in strangers[:2]:
        place.enter()
    with overloaded():
        strangers[2].enter()
    with pytest.raises(CallError) as refused:
        await strangers[0].identified(None)
    assert refused.value.reason is Reason.UNAUTHENTICATED
    with overloaded():
        strangers[1].stream()
    for place in strangers:
        place.leave()
        place.leave()
    assert len(one) == 0


async def test_an_operator_has_places_where_agents_hold_all_others_and_what_anybody_gets_of_the_reserve() -> None:
    one = places(concurrent_requests=4, requests_per_agent=4, operator_requests=8)
    agents = [await request(one) for _ in range(4)]
    # Every agent asks for the operators' pages as often as it can, and is slow about it.
    slow = [await request(one, f"acme/bot{number}", operating=True) for number in range(4)]
    for agent in ("acme/bot0", "acme/bot9"):
        with overloaded("also of those that operators make"):
            await request(one, agent, operating=True)
    operators = [await request(one, "acme/root", operating=True) for _ in range(2)]
    # Nor does one administrator take it from those of other tenants.
    with overloaded():
        await request(one, "acme/root", operating=True)
    operators += [await request(one, "rival/root", operating=True) for _ in range(2)]
    with overloaded():
        await request(one, "third/root", operating=True)
    with overloaded("at once"):
        await request(one, "acme/root")
    for place in (*agents, *slow, *operators):
        place.leave()
    assert len(one) == 0


async def test_strangers_whose_credentials_take_long_to_look_at_hold_nothing_of_the_reserve() -> None:
    one = places(concurrent_requests=1, operator_requests=2)
    agent = await request(one)
    strangers = [one.at("http", operating=True) for _ in range(5)]
    for place in strangers:
        place.enter()
    operator = await request(one, "acme/root", operating=True)
    for place in (agent, operator, *strangers):
        place.leave()
    assert len(one) == 0


async def test_an_operator_that_has_used_its_own_share_can_still_do_what_operators_do() -> None:
    one = places(concurrent_requests=8, requests_per_agent=2)
    held = [await request(one, "acme/root") for _ in range(2)]
    with overloaded("2 requests open"):
        await request(one, "acme/root")
    held.append(await request(one, "acme/root", operating=True))
    # It has left the general places to others.
    held += [await request(one, f"acme/bot{number}") for number in range(6)]
    for place in held:
        place.leave()
    assert len(one) == 0


async def test_policy_is_asked_only_where_the_reserve_is() -> None:
    one = places()
    await request(one, operating=True)
    assert one.callers.asked == 0  # type: ignore[attr-defined]
