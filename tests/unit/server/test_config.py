from pathlib import Path

import pytest
import yaml

from callgate_server.config import environment, load

MINIMAL = {
    "auth": {"api_keys_file": "keys.json"},
    "policy": {"directory": "policies"},
    "catalog": {"directories": ["images"], "lock": "catalog.lock"},
    "ledger": {"file": "ledger/calls.db", "key_file": "ledger/key"},
}
ROOT = Path(__file__).resolve().parents[3]


def written(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "callgate.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def fault(tmp_path: Path, document: object) -> str:
    with pytest.raises(ValueError, match=r"callgate\.yaml") as caught:
        load(written(tmp_path, document))
    return str(caught.value)


def test_a_minimal_file_gets_safe_defaults_and_paths_relative_to_itself(tmp_path: Path) -> None:
    settings = load(written(tmp_path, MINIMAL))
    assert settings.auth.api_keys_file == tmp_path / "keys.json"
    assert settings.catalog.directories == (tmp_path / "images",)
    assert settings.ledger.key_file == tmp_path / "ledger/key"
    assert settings.http is not None
    assert settings.http.host == "127.0.0.1"
    assert settings.grpc is not None
    assert settings.grpc.reflection is False
    assert settings.secrets is None


@pytest.mark.parametrize("example", sorted((ROOT / "deploy").glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_examples_load(example: Path) -> None:
    assert load(example).instance


def test_there_is_a_shipped_example() -> None:
    assert (ROOT / "deploy" / "callgate.yaml").exists()


def test_the_isolation_level_that_the_shipped_example_offers_loads(tmp_path: Path) -> None:
    example = (ROOT / "deploy" / "callgate.yaml").read_text()
    assert load(written(tmp_path, example)).tools == {}
    settings = load(written(tmp_path, example.replace("\n# tools:", "\ntools:")))
    assert settings.tools["python.run"].isolation == "fork"


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"polcy": {}}, "polcy"),
        ({"limits": {"call": 3}}, "limits.call"),
        ({"limits": {"calls": 0}}, "limits.calls"),
        ({"auth": {}}, "auth"),
        ({"http": None, "grpc": None}, "off"),
        ({"http": {"listen": "8080"}}, "http.listen"),
        ({"http": {"listen": "0.0.0.0:8080"}}, "tls"),
        ({"secrets": {"address": "http://vault.internal:8200", "auth": {"token_file": "t"}}}, "https"),
        ({"secrets": {"address": "https://vault", "auth": {}}}, "secrets.auth"),
        ({"secrets": {"address": "https://vault", "auth": {"role_id_file": "r"}}}, "secrets.auth"),
        ({"secrets": {"address": "https://vault", "auth": {"token": "hvs.x"}}}, "secrets.auth.token"),
        ({"auth": {"jwt": {"issuer": "i", "audience": "a"}}}, "jwks"),
        ({"instance": "Not OK"}, "instance"),
        ({"tools": {"python.run": {}}}, "tools.python.run.isolation: Field required"),
        (
            {"tools": {"python.run": {"isolation": "none"}}},
            "tools.python.run.isolation: Input should be 'container' or",
        ),
        ({"tools": {"python.run": {"isolation": "fork", "limits": {}}}}, "tools.python.run.limits"),
        ({"tools": ["python.run"]}, "tools"),
        ({"execution": {"lane": {}}}, "execution.lane"),
        ({"execution": {"lanes": {"call": 3}}}, "execution.lanes.call"),
        ({"execution": {"lanes": {"calls": 0}}}, "execution.lanes.calls"),
        ({"execution": {"lanes": {"idle_s": 0}}}, "execution.lanes.idle_s"),
        ({"execution": {"lanes": {"most": 0}}}, "execution.lanes.most"),
        ({"execution": {"lanes": {"memory_mb": 63}}}, "execution.lanes.memory_mb"),
        ({"execution": {"lanes": {"per_tool": -1}}}, "execution.lanes.per_tool"),
        ({"execution": {"lanes": {"waiting": -1}}}, "execution.lanes.waiting"),
    ],
)
def test_a_mistake_names_its_key(tmp_path: Path, change: dict[str, object], names: str) -> None:
    assert names in fault(tmp_path, MINIMAL | change)


def test_tools_get_the_isolation_level_that_the_operator_chose(tmp_path: Path) -> None:
    assert load(written(tmp_path, MINIMAL)).tools == {}
    tools = {"python.run": {"isolation": "fork"}, "shell.run": {"isolation": "container"}}
    lanes = {"calls": 7, "idle_s": 60, "most": 4, "memory_mb": 1024, "per_tool": 2, "waiting": 0}
    settings = load(written(tmp_path, MINIMAL | {"tools": tools, "execution": {"lanes": lanes}}))
    assert {name: tool.isolation for name, tool in settings.tools.items()} == {
        "python.run": "fork",
        "shell.run": "container",
    }
    assert settings.execution.lanes.model_dump() == lanes
    assert settings.execution.pool.enabled


def test_a_value_is_never_shown(tmp_path: Path) -> None:
    secrets = {"address": "https://vault", "auth": {"token": "hvs.CANARY"}}
    assert "CANARY" not in fault(tmp_path, MINIMAL | {"secrets": secrets})


def test_a_repeated_key_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    assert "twice" in fault(tmp_path, yaml.safe_dump(MINIMAL) + "instance: a\ninstance: b\n")
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path / "absent.yaml")


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:8080"])
def test_loopback_needs_no_tls(tmp_path: Path, listen: str) -> None:
    assert load(written(tmp_path, MINIMAL | {"http": {"listen": listen}})).http is not None


def test_elsewhere_needs_tls_or_a_proxy_that_ends_it(tmp_path: Path) -> None:
    public = {"listen": "0.0.0.0:8080"}
    for more in ({"tls": {"cert_file": "c.pem", "key_file": "k.pem"}}, {"tls_ends_upstream": True}):
        assert load(written(tmp_path, MINIMAL | {"http": public | more})).http is not None


def test_a_child_process_sees_only_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "x")
    monkeypatch.setenv("LANG", "C.UTF-8")
    assert "CANARY" not in environment()
    assert environment()["LANG"] == "C.UTF-8"
