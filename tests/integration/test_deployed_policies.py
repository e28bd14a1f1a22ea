"""The policies that come with the repository, on the tools that come with it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from callgate_server.backends.catalog.manifests import declarations, image_folders, load_yaml
from callgate_server.backends.cedar.cases import parse_cases, run_cases
from callgate_server.backends.cedar.directory import PolicyDirectory
from callgate_server.backends.json_schema import CompiledSchemas
from callgate_server.config import load
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Catalog, Tool

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    declared = declarations(image_folders([ROOT / "sandbox_images"]).values())
    return Catalog.of(*(Tool.pin(declaration.manifest(), "sha256:" + "0" * 64) for declaration in declared))


def live(directory: Path, catalog: Catalog) -> PolicyDirectory:
    alarms: list[str] = []
    return PolicyDirectory(directory, catalog, alarms.append, lambda: datetime(2026, 3, 2, tzinfo=UTC))


@pytest.mark.parametrize("name", ["policies", "policies-dev"])
def test_shipped_policies_load_and_rule_as_their_cases_say(name: str, catalog: Catalog) -> None:
    directory = ROOT / "deploy" / name
    if name == "policies":
        # They go with the configuration beside them, and what it decides for single tools.
        tools = load(ROOT / "deploy/callgate.yaml").tools
        catalog = catalog.adjusted({tool: settings.adjustment for tool, settings in tools.items()})
    cases = parse_cases(load_yaml(directory / "cases.yaml"))
    results = list(run_cases(cases, live(directory, catalog), CompiledSchemas.of(catalog), catalog))
    assert len(results) >= 7
    assert [result for result in results if result.fault] == []


def test_caller_sees_only_tools_that_a_role_could_reach(catalog: Catalog) -> None:
    policy = live(ROOT / "deploy/policies", catalog)

    def listed(*roles: str) -> list[str]:
        return [tool.name for tool in catalog if policy.could_allow(Caller("acme", "bot", roles), tool)]

    assert listed() == []
    assert listed("analyst") == ["python.run", "sql.query", "text.diff", "web.fetch"]
    assert listed("integrator") == ["webhooks.sign"]
    assert listed("shell") == ["shell.run"]
