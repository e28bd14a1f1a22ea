from collections.abc import Mapping

from callgate_server.execution.sandbox import Health, SandboxRequest
from callgate_server.execution.trial import ForkTrial
from callgate_server.model.catalog import Tool
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.manifest import Manifest
from support.stages import ScriptedSandbox

TOOL = Tool.pin(
    Manifest.model_validate(
        {
            "tool": "a.b",
            "version": "1.0.0",
            "summary": "Does something",
            "image": "python",
            "run": {"python": "module:function"},
            "input": {"type": "object", "additionalProperties": False},
            "output": {},
            "effect": "read",
            "isolation": "fork",
            "limits": {"memory_mb": 99},
        }
    ),
    "sha256:" + "a" * 64,
)


class Lanes:
    """Opens lanes, or is refused them, as the test says."""

    def __init__(self) -> None:
        self.refusal: CallError | None = None
        self.healthy = True
        self.requests: list[SandboxRequest] = []
        self.opened: list[ScriptedSandbox] = []
        self.journal: list[str] = []

    async def open(self, request: SandboxRequest) -> ScriptedSandbox:
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal
        self.opened.append(ScriptedSandbox(self.journal, [], None))
        return self.opened[-1]

    async def reap(self) -> int:
        return 0

    async def health(self) -> Mapping[str, Health]:
        return {"lanes": Health(ok=self.healthy, detail="")}

    async def close(self) -> None:
        return


async def test_a_lane_is_tried_once_and_given_back() -> None:
    lanes = Lanes()
    trial = ForkTrial(lanes, TOOL)
    for _ in range(3):
        await trial.look()
    (lane,) = lanes.opened
    assert lanes.journal == ["destroy"]
    assert lane.received == []


async def test_it_is_as_a_calls_of_the_tool_and_no_callers() -> None:
    lanes = Lanes()
    await ForkTrial(lanes, TOOL).look()
    (request,) = lanes.requests
    assert request.isolation == "fork"
    assert (request.tenant, request.tool, request.image_digest) == ("", "a.b", TOOL.image_digest)
    assert request.limits == TOOL.manifest.limits
    assert request.lane is not None
    assert (request.lane.tool_digest, request.lane.run) == (TOOL.digest, TOOL.manifest.run)


async def test_what_could_not_be_opened_is_tried_again_until_it_can() -> None:
    lanes = Lanes()
    trial = ForkTrial(lanes, TOOL)
    lanes.refusal = CallError(Reason.RUNTIME_MISSING, "refused")
    await trial.look()
    await trial.look()
    assert len(lanes.requests) == 2
    lanes.refusal = None
    await trial.look()
    await trial.look()
    assert (len(lanes.requests), len(lanes.opened)) == (3, 1)


async def test_a_host_that_refuses_later_is_tried_again() -> None:
    lanes = Lanes()
    trial = ForkTrial(lanes, TOOL)
    await trial.look()
    lanes.healthy = False
    await trial.look()
    assert len(lanes.opened) == 2
