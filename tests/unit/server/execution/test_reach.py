import pytest

from callgate_server.execution.reach import reach
from callgate_server.execution.sandbox import Sandbox
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.run import Cause, RunOutcome
from support.stages import ScriptedSandbox

GONE = CallError(Reason.SANDBOX_UNAVAILABLE, "gone")


class Way:
    """Gives sandboxes, and runs in them as told: an error, or the end of a tool."""

    def __init__(self, *ends: CallError | None, sandboxes: int = 9, refusal: CallError | None = None) -> None:
        self.journal: list[str] = []
        self._ends = list(ends)
        self._sandboxes = sandboxes
        self._refusal = refusal

    async def acquire(self) -> Sandbox | None:
        self.journal.append("acquire")
        if self._sandboxes == 0:
            if self._refusal is not None:
                raise self._refusal
            return None
        self._sandboxes -= 1
        return ScriptedSandbox(self.journal, [], None)

    async def run(self, sandbox: Sandbox) -> RunOutcome:
        self.journal.append("run")
        end = self._ends.pop(0)
        if end is not None:
            raise end
        return RunOutcome(Cause.EXITED, "")


async def test_a_run_that_reaches_its_sandbox_has_one() -> None:
    way = Way(None)
    reached = await reach(way.acquire, way.run)
    assert reached is not None
    assert reached[1].cause is Cause.EXITED
    assert way.journal == ["acquire", "run"]


async def test_a_sandbox_that_was_gone_before_is_removed_and_another_one_taken() -> None:
    way = Way(GONE, None)
    reached = await reach(way.acquire, way.run)
    assert reached is not None
    assert reached[1].cause is Cause.EXITED
    assert way.journal == ["acquire", "run", "destroy", "acquire", "run"]


async def test_the_second_one_is_the_last() -> None:
    way = Way(GONE, GONE, None)
    with pytest.raises(CallError) as refused:
        await reach(way.acquire, way.run)
    assert refused.value.reason is Reason.SANDBOX_UNAVAILABLE
    assert way.journal == ["acquire", "run", "destroy", "acquire", "run"]


@pytest.mark.parametrize("reason", [Reason.DEADLINE_EXCEEDED, Reason.SECRET_REFUSED, Reason.REQUEST_TOO_LARGE])
async def test_what_another_sandbox_would_not_mend_is_told(reason: Reason) -> None:
    way = Way(CallError(reason, "no"), None)
    with pytest.raises(CallError) as refused:
        await reach(way.acquire, way.run)
    assert refused.value.reason is reason
    assert way.journal == ["acquire", "run"]


async def test_a_loss_is_an_outcome_and_never_tried_again() -> None:
    way = Way()

    async def lost(_: Sandbox) -> RunOutcome:
        way.journal.append("run")
        return RunOutcome(Cause.LOST, "")

    reached = await reach(way.acquire, lost)
    assert reached is not None
    assert reached[1].cause is Cause.LOST
    assert way.journal == ["acquire", "run"]


@pytest.mark.parametrize("sandboxes", [0, 1])
async def test_one_that_cannot_be_opened_is_told_at_once(sandboxes: int) -> None:
    way = Way(GONE, sandboxes=sandboxes, refusal=CallError(Reason.SANDBOX_UNAVAILABLE, "the engine is down"))
    with pytest.raises(CallError, match="engine is down"):
        await reach(way.acquire, way.run)
    assert way.journal.count("acquire") == sandboxes + 1


@pytest.mark.parametrize("sandboxes", [0, 1])
async def test_a_call_that_gives_up_meanwhile_gets_none(sandboxes: int) -> None:
    way = Way(GONE, sandboxes=sandboxes)
    assert await reach(way.acquire, way.run) is None
