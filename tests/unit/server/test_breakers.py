from dataclasses import dataclass, field

import pytest

from callgate_server.admission.authenticate import Authentication
from callgate_server.admission.authorize import Administration, Operation
from callgate_server.breakers import Breakers
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.verdict import Ruling, Verdict
from support.stages import Rulings, Tokens


@dataclass
class View:
    state: str = "closed"
    calls: int = 5
    failures: int = 1
    slow: int = 0
    retry_after_s: float | None = None


@dataclass
class Set:
    """Two tenants' breakers and a shared one."""

    views: dict[str, View] = field(
        default_factory=lambda: {name: View() for name in ("tool:acme/text.echo", "tool:rival/text.echo", "engine")}
    )
    by: list[str] = field(default_factory=list)

    def list(self) -> dict[str, View]:
        return self.views

    def open(self, name: str, by: str = "") -> View:
        return self._set(name, "forced_open", by)

    def close(self, name: str, by: str = "") -> View:
        return self._set(name, "closed", by)

    def _set(self, name: str, state: str, by: str) -> View:
        if name.startswith("nonsense"):
            raise ValueError("no breaker")
        self.by.append(by)
        self.views[name] = View(state)
        return self.views[name]


class OwnOnly(Rulings):
    """Permits everything but what all tenants share."""

    def may_administer(self, caller: Caller, operation: Operation) -> Verdict:
        return Verdict(Ruling.DENY if operation == "shared_breakers" else self.ruling, (), "v1")


async def unrecorded(kind: str, body: object) -> None:
    """Keep no record."""


def desk(ruling: Ruling = Ruling.ALLOW, policy: type[Rulings] = Rulings) -> tuple[Breakers, Set]:
    breakers = Set()
    administration = Administration(policy([], ruling), unrecorded)
    return Breakers(Authentication(Tokens()), administration, breakers, {"text.echo", "text.diff"}), breakers


async def reason(awaitable: object) -> Reason:
    with pytest.raises(CallError) as refused:
        await awaitable  # type: ignore[misc]
    return refused.value.reason


async def test_an_administrator_sees_its_tenants_and_the_shared_ones() -> None:
    breakers, _ = desk()
    assert [shown["name"] for shown in await breakers.list("agent")] == ["engine", "tool:acme/text.echo"]
    assert (await breakers.list("other"))[1] == {
        "name": "tool:rival/text.echo", "state": "closed", "calls": 5, "failures": 1, "slow": 0,
        "retry_after_ms": None,
    }  # fmt: skip


@pytest.mark.parametrize(("left_s", "shown"), [(12.3, 12300), (0.0001, 1), (0.0, 0), (None, None)])
async def test_how_long_one_stays_open_by_itself_is_shown_and_never_too_short(
    left_s: float | None, shown: int | None
) -> None:
    breakers, known = desk()
    known.views["engine"] = View("open", retry_after_s=left_s)
    assert (await breakers.list("agent"))[0]["retry_after_ms"] == shown


async def test_a_breaker_is_opened_and_closed_by_name_and_it_is_known_by_whom() -> None:
    breakers, known = desk()
    assert (await breakers.set("agent", "tool:acme/text.echo", open_it=True))["state"] == "forced_open"
    assert (await breakers.set("agent", "engine", open_it=False))["state"] == "closed"
    assert known.by == ["acme/bot", "acme/bot"]


async def test_another_tenants_breaker_answers_like_none() -> None:
    breakers, known = desk()
    for name in ("tool:rival/text.echo", "tool:nobody/x.y", "nonsense", "nonsense:acme/x"):
        assert await reason(breakers.set("agent", name, open_it=True)) is Reason.NOT_POSSIBLE
    assert known.by == []


async def test_a_tool_that_does_not_exist_has_no_breaker_to_open() -> None:
    breakers, known = desk()
    for open_it in (True, False):
        with pytest.raises(CallError, match="List breakers and tools") as refused:
            await breakers.set("agent", "tool:acme/text.dif", open_it=open_it)
        assert refused.value.reason is Reason.NOT_POSSIBLE
    assert known.by == []


async def test_what_was_never_called_or_is_no_tool_can_be_stopped_and_a_tool_that_went_can_be_let_go() -> None:
    breakers, known = desk()
    known.views["tool:acme/text.gone"] = View("forced_open")
    for name in ("tool:acme/text.diff", "upstream:acme/api.example:443", "secrets"):
        assert (await breakers.set("agent", name, open_it=True))["state"] == "forced_open"
    assert (await breakers.set("agent", "tool:acme/text.gone", open_it=False))["state"] == "closed"


async def test_what_all_tenants_share_needs_a_permit_of_its_own() -> None:
    breakers, known = desk(policy=OwnOnly)
    assert await reason(breakers.set("agent", "engine", open_it=True)) is Reason.POLICY_DENIED
    await breakers.set("agent", "tool:acme/text.echo", open_it=True)
    assert known.views["engine"].state == "closed"


async def test_who_is_no_administrator_sees_and_sets_nothing() -> None:
    breakers, known = desk(Ruling.DENY)
    assert await reason(breakers.list("agent")) is Reason.POLICY_DENIED
    assert await reason(breakers.set("agent", "engine", open_it=True)) is Reason.POLICY_DENIED
    assert known.by == []
