import re
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from callgate_server.admission.bounds import Bounds
from callgate_server.admission.loops import LoopRule
from callgate_server.admission.rates import Rate
from callgate_server.backends.catalog.lock import Lock, write_lock
from callgate_server.backends.catalog.manifests import declarations, image_folders
from callgate_server.config import Settings, deployed_catalog, environment, load
from callgate_server.execution.breaker import BreakerRules
from callgate_server.model.call import Caller
from callgate_server.model.egress import InternalService
from callgate_server.model.spending import Budget, Scope
from support.unbuilt import PLAIN

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


def settings_of(model: type[BaseModel], at: str = "") -> Iterator[str]:
    """The path of every setting, through sections, lists and mappings."""
    for name, field in model.model_fields.items():
        yield f"{at}{field.alias or name}"
        inner = [field.annotation]
        while inner:
            kind = inner.pop()
            inner += get_args(kind)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from settings_of(kind, f"{at}{name}.")


def test_the_shipped_example_names_every_setting() -> None:
    example = (ROOT / "deploy" / "callgate.yaml").read_text()
    named = set(re.findall(r"\b([a-z_]+):", example))
    paths = list(settings_of(Settings))
    assert len(paths) > 100
    assert [path for path in paths if path.rpartition(".")[2] not in named] == []


def test_the_isolation_level_that_the_shipped_example_offers_loads(tmp_path: Path) -> None:
    example = (ROOT / "deploy" / "callgate.yaml").read_text()
    assert "python.run" not in load(written(tmp_path, example)).tools
    settings = load(written(tmp_path, example.replace("\n  # python.run:", "\n  python.run:")))
    assert settings.tools["python.run"].isolation == "fork"


def test_the_shipped_example_fits_the_shipped_tools(tmp_path: Path) -> None:
    settings = load(ROOT / "deploy" / "callgate.yaml")
    folders = image_folders([ROOT / "sandbox_images"])
    manifests = [each.manifest() for each in declarations(folders.values())]
    write_lock(tmp_path / "catalog.lock", Lock.of(manifests, dict.fromkeys(folders, "sha256:" + "0" * 64)))
    pinned = settings.catalog.model_copy(update={"lock": tmp_path / "catalog.lock"})
    catalog = deployed_catalog(settings.model_copy(update={"catalog": pinned}))
    assert catalog.tools["http.request"].manifest.rules[0].secret == "example"


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"polcy": {}}, "polcy: no such setting; did you mean `policy`?"),
        ({"limits": {"call": 3}}, "limits.call: no such setting; did you mean `calls`?"),
        ({"limits": {"agents": {"a/b": {"concurent": 3}}}}, "did you mean `concurrent`?"),
        ({"tools": {"a.b": {"secrets": [{"form": "x"}]}}}, "did you mean `from`?"),
        ({"limits": {"zzz": 3}}, "limits.zzz: no such setting\n"),
        ({"limits": {"calls": 0}}, "limits.calls"),
        ({"limits": {"per_agent": {"rate": {"calls": 1}}}}, "limits.per_agent.rate.per_s"),
        ({"limits": {"per_agent": {"budget": {"window_h": 24}}}}, "bounds at least one"),
        ({"limits": {"per_agent": {"budget": {"calls": 1, "window_h": 1000}}}}, "window_h"),
        ({"limits": {"per_task": {"budget": {"calls": 1}}}}, "limits.per_task.budget"),
        ({"limits": {"agents": {"bot": {"concurrent": 1}}}}, "tenant/agent"),
        ({"limits": {"tenants": {"a/b": {"concurrent": 1}}}}, "no tenant"),
        ({"auth": {}}, "auth"),
        ({"http": None, "grpc": None}, "off"),
        ({"http": {"listen": "8080"}}, "http.listen"),
        ({"http": {"listen": "127.0.0.1"}}, "http.listen: write address:port, like 127.0.0.1:8080"),
        ({"http": {"listen": "localhost:8080"}}, "http.listen: write address:port"),
        ({"http": {"listen": "127.0.0.1:99999"}}, "http.listen: write address:port"),
        ({"http": {"listen": "0.0.0.0:8080"}}, "tls"),
        ({"secrets": {"address": "http://vault.internal:8200", "auth": {"token_file": "t"}}}, "https"),
        ({"secrets": {"address": "https://vault", "auth": {}}}, "secrets.auth"),
        ({"secrets": {"address": "https://vault", "auth": {"role_id_file": "r"}}}, "secrets.auth"),
        ({"secrets": {"address": "https://vault", "auth": {"token": "hvs.x"}}}, "secrets.auth.token"),
        ({"auth": {"jwt": {"issuer": "i", "audience": "a"}}}, "jwks"),
        ({"instance": "Not OK"}, "instance"),
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
        ({"engine": {"socket": "tcp://127.0.0.1:2375"}}, "engine.socket"),
        ({"egress": {}}, "egress.authority_dir"),
        ({"egress": {"authority_dir": "a", "interal": []}}, "egress.interal"),
        ({"egress": {"authority_dir": "a", "idle_s": 0}}, "egress.idle_s"),
        ({"tools": {"a.b": {"egress": "configured"}}}, "tools.a.b.egress"),
        ({"tools": {"a.b": {"egress": [{"host": "API.example.com"}]}}}, "tools.a.b.egress.0.host"),
        ({"tools": {"a.b": {"secrets": [{"name": "k", "from": "kv/data/x#y"}]}}}, "tools.a.b.secrets.0.deliver"),
        ({"tools": {"a.b": {"isolation": "vm"}}}, "tools.a.b.isolation"),
    ],
)
def test_a_mistake_names_its_key(tmp_path: Path, change: dict[str, object], names: str) -> None:
    assert names in fault(tmp_path, MINIMAL | change) + "\n"


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


@pytest.mark.parametrize(("text", "says"), [("", "is empty"), ("# nothing yet\n", "is empty"), ("- a\n", "is no conf")])
def test_a_file_without_settings_is_told_what_to_write(tmp_path: Path, text: str, says: str) -> None:
    assert says in fault(tmp_path, text)
    assert "`auth`, `policy`, `catalog` and `ledger`" in fault(tmp_path, text)


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


def internal(tmp_path: Path, *hosts: dict[str, object]) -> dict[str, object]:
    return MINIMAL | {"egress": {"authority_dir": "egress", "internal": list(hosts)}}


def test_the_way_out_is_closed_unless_it_is_configured(tmp_path: Path) -> None:
    assert load(written(tmp_path, MINIMAL)).egress is None
    settings = load(written(tmp_path, MINIMAL | {"egress": {"authority_dir": "egress"}}))
    assert settings.egress is not None
    assert settings.egress.authority_dir == tmp_path / "egress"
    assert settings.internal_services == ()


def test_services_of_ones_own_have_a_host_and_networks(tmp_path: Path) -> None:
    host = {"host": "db", "port": 5432, "networks": ["10.1.0.0/16", "fd00::/8"]}
    services = load(written(tmp_path, internal(tmp_path, host))).internal_services
    assert services == (InternalService("db", 5432, (ip_network("10.1.0.0/16"), ip_network("fd00::/8"))),)
    assert load(written(tmp_path, internal(tmp_path, {"host": "db", "networks": ["::1/128"]}))).internal_services


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"host": "*.corp.example"}, "egress.internal.0.host"),
        ({"host": "127.1"}, "egress.internal.0.host"),
        ({"port": 0}, "egress.internal.0.port"),
        ({"networks": []}, "egress.internal.0.networks"),
        ({"networks": ["10.0.0.1/8"]}, "write networks like 10.1.0.0/16"),
        ({"networks": ["0.0.0.0/0"]}, "everybody's"),
        ({"networks": ["::/0"]}, "everybody's"),
        ({"networks": ["169.254.169.254/32"]}, "metadata services"),
        ({"networks": ["fe80::/64"]}, "metadata services"),
    ],
)
def test_a_service_that_would_open_more_than_itself_is_refused(
    tmp_path: Path, change: dict[str, object], says: str
) -> None:
    assert says in fault(tmp_path, internal(tmp_path, {"host": "db", "networks": ["10.1.0.0/16"]} | change))


KEY = {"name": "key", "from": "kv/data/{tenant}/app#key", "deliver": "egress"}


def deployment(tmp_path: Path, declared: str, **sections: object) -> Path:
    """A configuration whose catalog is one locked tool with this declaration of egress."""
    folder = tmp_path / "images/probe"
    (folder / "tools").mkdir(parents=True, exist_ok=True)
    (folder / "Dockerfile").write_text("FROM scratch\n")
    (folder / "tools/probe.reach.yaml").write_text(PLAIN + declared)
    manifests = [each.manifest() for each in declarations(image_folders([tmp_path / "images"]).values())]
    write_lock(tmp_path / "catalog.lock", Lock.of(manifests, {"probe": "sha256:" + "0" * 64}))
    return written(tmp_path, MINIMAL | sections)


OUT = {"authority_dir": "egress", "internal": [{"host": "own", "networks": ["127.0.0.0/8"]}]}


def test_a_tool_with_egress_needs_the_section_and_is_told_what_to_write(tmp_path: Path) -> None:
    declared = "egress: [{host: api.example.com}]\n"
    with pytest.raises(ValueError, match=r"probe\.reach may reach api\.example\.com:443.*`egress: \{authority_dir"):
        deployed_catalog(load(deployment(tmp_path, declared)))
    catalog = deployed_catalog(load(deployment(tmp_path, declared, egress=OUT)))
    assert [rule.host for rule in catalog.tools["probe.reach"].manifest.rules] == ["api.example.com"]


def test_a_tool_that_leaves_its_destinations_open_loads_without_any_and_gets_those_of_the_configuration(
    tmp_path: Path,
) -> None:
    catalog = deployed_catalog(load(deployment(tmp_path, "egress: configured\n")))
    assert catalog.tools["probe.reach"].manifest.rules == ()
    tools = {"probe.reach": {"egress": [{"host": "api.example.com", "secret": "key"}], "secrets": [KEY]}}
    catalog = deployed_catalog(load(deployment(tmp_path, "egress: configured\n", egress=OUT, tools=tools)))
    assert catalog.tools["probe.reach"].manifest.rules[0].secret == "key"
    assert catalog.tools["probe.reach"].manifest.secrets[0].header == "Authorization"


@pytest.mark.parametrize(
    ("declared", "tool", "says"),
    [
        ("", {"egress": [{"host": "a.example"}]}, r"tools\.probe\.reach: its manifest does not say `egress: configured`"),
        ("egress: configured", {"isolation": "fork", "egress": [{"host": "a.example"}]}, "needs `isolation: container`"),
        ("egress: configured", {"egress": [{"host": "a.example", "secret": "key"}]}, "there is no secret key"),
        ("egress: configured", {"egress": [{"host": "a.example"}], "secrets": [KEY]}, "no rule of `egress` names key"),
        (
            "egress: configured",
            {"egress": [{"host": "a.example", "scheme": "http", "secret": "key"}], "secrets": [KEY]},
            r"^tools\.probe\.reach\.egress\.0\.scheme: the secret would travel to a\.example:80 in clear",
        ),
        (
            "egress: configured",
            {"egress": [{"host": "a.example", "secret": "key"}, {"host": "*.example.com"}, {"host": "a.example"}],
             "secrets": [KEY]},
            r"^tools\.probe\.reach\.egress\.2: rule 0 allows some of the same requests",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_catalog_is_refused_with_what_to_change(
    tmp_path: Path, declared: str, tool: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        deployed_catalog(load(deployment(tmp_path, declared + "\n", egress=OUT, tools={"probe.reach": tool})))


def test_a_secret_may_travel_in_clear_to_a_service_of_ones_own(tmp_path: Path) -> None:
    tool = {"egress": [{"host": "own", "scheme": "http", "port": 8080, "secret": "key"}], "secrets": [KEY]}
    path = deployment(tmp_path, "egress: configured\n", egress=OUT, tools={"probe.reach": tool})
    assert deployed_catalog(load(path)).tools["probe.reach"].manifest.rules[0].host == "own"


def test_a_setting_for_a_tool_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tools\.probe\.raech: no manifest declares this tool"):
        deployed_catalog(load(deployment(tmp_path, "", tools={"probe.raech": {"isolation": "fork"}})))


def test_a_fixed_argument_is_taken_from_callers_and_must_fit_what_the_tool_takes(tmp_path: Path) -> None:
    tools = {"probe.reach": {"fixed": {"name": "own"}}}
    found = deployed_catalog(load(deployment(tmp_path, "", tools=tools))).tools["probe.reach"].manifest
    assert (found.input["properties"], found.fixed) == ({}, {"name": "own"})
    for value in ("other", 7):
        tools = {"probe.reach": {"fixed": {"name": value}}}
        with pytest.raises(ValueError, match=r"tools\.probe\.reach\.fixed\.name: does not fit") as caught:
            deployed_catalog(load(deployment(tmp_path, "", tools=tools)))
        assert str(value) not in str(caught.value)


def test_without_a_word_nothing_is_bounded_by_itself_and_no_loop_is_stopped(tmp_path: Path) -> None:
    limits = load(written(tmp_path, MINIMAL)).limits
    assert [bounds for _, bounds in limits.bounds.of(Caller("acme", "bot"))] == [Bounds(), Bounds()]
    assert limits.loop_rule is None


def test_bounds_are_as_they_are_written(tmp_path: Path) -> None:
    written_bounds = {
        "per_agent": {
            "rate": {"calls": 60, "per_s": 10},
            "concurrent": 32,
            "budget": {"calls": 10, "cpu_s": 1.5, "egress_mb": 2, "cost": 0.1},
        },
        "agents": {"acme/bot": {"concurrent": 4}},
        "loop": {"failures": 3},
    }
    limits = load(written(tmp_path, MINIMAL | {"limits": written_bounds})).limits
    found = dict(limits.bounds.of(Caller("acme", "bot")))[Scope("acme", "bot")]
    assert found == Bounds(Rate(60, 10), 4, Budget(10, 1_500_000, 2 * 1024 * 1024, 100_000, 24))
    assert limits.loop_rule == LoopRule(3, 300)


def test_breakers_have_sensible_rules_of_their_own_and_keep_those_that_are_not_given(tmp_path: Path) -> None:
    breakers = load(written(tmp_path, MINIMAL | {"breakers": {"engine": {"window": 50}}})).breakers
    assert breakers.engine.rules == BreakerRules(window=50, min_calls=5, failure_rate=0.5, open_s=5, probes=2)
    assert breakers.secrets.rules == breakers.upstream.rules == BreakerRules(open_s=15)
    assert breakers.tool.rules == BreakerRules(min_calls=10)


def test_slow_calls_count_where_somebody_says_what_is_slow(tmp_path: Path) -> None:
    given = {"breakers": {"upstream": {"slow_s": 3, "slow_rate": 0.8}}}
    rules = load(written(tmp_path, MINIMAL | given)).breakers.upstream.rules
    assert (rules.slow_s, rules.slow_rate) == (3, 0.8)


@pytest.mark.parametrize(
    ("breakers", "names"),
    [
        ({"engine": {"min_calls": 21}}, "min_calls"),
        ({"tool": {"failure_rate": 0}}, "failure_rate"),
        ({"upstream": {"probes": 0}}, "probes"),
        ({"database": {}}, "database"),
        ({"secrets": {"open_ms": 3}}, "open_ms"),
    ],
)
def test_a_breaker_that_could_never_open_is_a_mistake(tmp_path: Path, breakers: object, names: str) -> None:
    assert names in fault(tmp_path, MINIMAL | {"breakers": breakers})


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"requests_per_agent": 8, "streams_per_agent": 9}, "of which they are a part"),
        ({"requests_per_agent": 21, "concurrent_requests": 10}, "both edges"),
    ],
)
def test_shares_that_cannot_be_used_are_refused(tmp_path: Path, limits: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        load(written(tmp_path, yaml.safe_dump(MINIMAL | {"limits": limits})))
