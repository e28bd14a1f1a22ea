from collections.abc import Mapping

import pytest

from callgate_server.execution.levels import Levels
from callgate_server.execution.sandbox import Health, LaneTerms, Sandbox, SandboxRequest
from callgate_server.model.manifest import Run
from support.probe import request_for
from support.stages import ScriptedSandbox


class Level:
    def __init__(self, name: str) -> None:
        self.name = name
        self.opened: list[SandboxRequest] = []
        self.reaped = self.closed = 0

    async def open(self, request: SandboxRequest) -> Sandbox:
        self.opened.append(request)
        return ScriptedSandbox([], [], None)

    async def reap(self) -> int:
        self.reaped += 1
        return 7

    async def health(self) -> Mapping[str, Health]:
        return {self.name: Health(ok=True, detail="")}

    async def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("isolation", ["container", "fork"])
async def test_a_call_gets_the_level_of_its_tool_and_no_other(isolation: str) -> None:
    container, fork = Level("container"), Level("fork")
    lane = LaneTerms("sha256:1", Run(command=("/bin/true",)), ()) if isolation == "fork" else None
    await Levels(container, fork).open(request_for("sha256:2", lane=lane))
    assert len(container.opened) == (isolation == "container")
    assert len(fork.opened) == (isolation == "fork")


async def test_one_engine_is_cleaned_and_closed_once_and_both_are_asked_how_they_are() -> None:
    container, fork = Level("container"), Level("fork")
    levels = Levels(container, fork)
    assert await levels.reap() == 7
    assert set(await levels.health()) == {"container", "fork"}
    await levels.close()
    assert (container.reaped, container.closed, fork.reaped, fork.closed) == (1, 1, 0, 0)
