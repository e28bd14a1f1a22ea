from pathlib import Path
from typing import Any

import pytest

from callgate_server.backends.api_keys import ApiKeys, create
from callgate_server.backends.telemetry import Telemetry
from callgate_server.execution.sandbox import Health
from callgate_server.health import HealthBoard
from support.cedar_catalog import NOON


class Working:
    """A part of which everything works: it stands for the engine, the record and the calls that run."""

    draining = False

    async def health(self) -> dict[str, Health]:
        return {"engine": Health(ok=True, detail=""), "runtime": Health(ok=True, detail="")}

    async def probe(self) -> None:
        pass

    async def census(self) -> dict[str, int]:
        return {}


@pytest.mark.parametrize("only_keys", [True, False])
async def test_a_key_file_that_refuses_everybody_is_a_component_that_fails_and_essential_where_nothing_else_lets_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], only_keys: bool
) -> None:
    file = tmp_path / "keys.json"
    create(file, tenant="acme", agent="bot", purpose="production", now=NOON)
    working: Any = Working()
    telemetry = Telemetry("warning")
    board = HealthBoard(working, [ApiKeys(file)], working, working, telemetry, only_keys=only_keys)
    await board.look()
    assert (await board.readiness()).components["api_keys"]
    file.chmod(0o644)
    await board.look()
    failing = await board.readiness()
    assert (failing.components["api_keys"], failing.ready) == (False, not only_keys)
    assert str(file) in capsys.readouterr().err
    file.chmod(0o600)
    await board.look()
    assert (await board.readiness()).ready
