"""Who calls, what they may, and what they cannot make of it, on a production gateway."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from callgate.errors import CallRefused
from support.gateway import PERMIT_DEVELOPERS, Deployment, RunningGateway
from support.live import eventually, live, refusal

DIFF = {"before": "a\n", "after": "b\n"}
POLICIES = (
    PERMIT_DEVELOPERS
    + """
@id("differs") permit(principal in Role::"differ", action == Action::"call:text.diff", resource);
@id("careful-differs") permit(principal in Role::"careful", action == Action::"call:text.diff", resource)
when { context.arguments.before == "allowed" };
// Cedar evaluates neither: by its own rules an error counts as if the policy were not there.
@id("broken-forbid") forbid(principal in Role::"unlucky", action == Action::"call:text.diff", resource)
when { 9223372036854775807 + 1 > 0 };
"""
)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    deployment = Deployment(tmp_path_factory.mktemp("guarded"), policies=POLICIES)
    for agent, roles in {"differ": ["differ"], "careful": ["careful"], "unlucky": ["developer", "unlucky"]}.items():
        deployment.tokens[agent] = deployment.key("acme", agent, *roles)
    deployment.tokens["colleague"] = deployment.key("acme", "colleague", "developer")
    with deployment.start() as running:
        yield running
        deployment.wait_until_clean()
    assert deployment.verify().fault is None


def own(folder: Path, **settings: Any) -> Deployment:
    return Deployment(folder / "gateway", settings=settings)


# --- errors are denials ------------------------------------------------------------------------------------------


def test_a_policy_that_cannot_be_evaluated_denies_and_alarms(guarded: RunningGateway) -> None:
    """The permit of `developer` alone would allow it, and did for Cedar itself."""
    refused = guarded.post("text.diff", DIFF, tenant="unlucky")
    assert refusal(refused) == (403, "policy_error")
    assert refused.json()["policies"] == ["broken-forbid"]
    assert "policy could not be evaluated for text.diff" in guarded.deployment.log_text()
    assert guarded.deployment.events(refused.json()["call_id"])[0]["reason"] == "policy_error"


def test_a_refusal_names_the_policy_that_decided_and_an_argument_decides(guarded: RunningGateway) -> None:
    nobody = guarded.post("text.diff", DIFF, tenant="guest")
    assert (refusal(nobody), nobody.json()["policies"]) == ((403, "policy_denied"), [])
    assert refusal(guarded.post("text.diff", DIFF, tenant="careful")) == (403, "policy_denied")
    allowed = guarded.post("text.diff", {**DIFF, "before": "allowed"}, tenant="careful").json()
    assert (allowed["state"], allowed["decision"]["policies"]) == ("succeeded", ["careful-differs"])


# --- broken policies ---------------------------------------------------------------------------------------------


def test_a_broken_set_leaves_the_old_one_live_and_the_mended_one_is_taken_up(tmp_path: Path) -> None:
    deployment = own(tmp_path)
    broken = '@id("typo") permit(principal in Role::"visitor", action in Action::"call", resource)\nwhen { resource.rsik == "low" };\n'
    with deployment.start() as gateway:
        answer = gateway.post("text.diff", DIFF, headers={"Idempotency-Key": "k"}).json()
        assert answer["state"] == "succeeded"
        deployment.write_policies(broken, "second.cedar")
        eventually(lambda: _logged(deployment, "policies were not reloaded", "second.cedar:1"))
        assert gateway.post("text.diff", DIFF).json()["state"] == "succeeded"
        assert refusal(gateway.post("text.diff", DIFF, tenant="guest")) == (403, "policy_denied")
        deployment.write_policies(
            broken.replace("resource.rsik", "resource.image").replace("low", "python"), "second.cedar"
        )
        eventually(lambda: _allowed(gateway, "guest"))
        # Who lost the right to a tool reads no old answer of it: not by id, and not by its key.
        deployment.write_policies("")
        eventually(lambda: _denied(gateway, "acme"))
        assert refusal(gateway.post("text.diff", DIFF, headers={"Idempotency-Key": "k"})) == (403, "policy_denied")
        with gateway.web() as web:
            assert refusal(web.get(f"/v1/calls/{answer['call_id']}")) == (404, "unknown_call")
        assert _allowed(gateway, "guest") is None
    versions = {event["policy_version"] for event in deployment.events() if event["kind"] == "intent"}
    assert len(versions) == 3


def _logged(deployment: Deployment, *texts: str) -> None:
    log = deployment.log_text()
    assert all(text in log for text in texts)


def _allowed(gateway: RunningGateway, tenant: str) -> None:
    assert gateway.post("text.diff", DIFF, tenant=tenant).json().get("state") == "succeeded"


def _denied(gateway: RunningGateway, tenant: str) -> None:
    assert gateway.post("text.diff", DIFF, tenant=tenant).status_code == 403


# --- other callers -----------------------------------------------------------------------------------------------


def tools_by_http(gateway: RunningGateway, who: str) -> set[str]:
    with gateway.web(who) as web:
        return {tool["tool"] for tool in web.get("/v1/tools").json()["tools"]}


def tools_by_grpc(gateway: RunningGateway, who: str) -> set[str]:
    with gateway.sdk(who) as client:
        return {tool.tool for tool in client.tools()}


@pytest.mark.parametrize("listed", [tools_by_http, tools_by_grpc])
def test_a_caller_sees_only_the_tools_it_could_be_allowed(listed: Any, guarded: RunningGateway) -> None:
    assert listed(guarded, "guest") == set()
    assert listed(guarded, "differ") == {"text.diff"}
    assert listed(guarded, "careful") == {"text.diff"}
    assert {"python.run", "webhooks.sign", "probe.secret"} < listed(guarded, "acme")


def test_a_hidden_tool_answers_like_one_that_does_not_exist(guarded: RunningGateway) -> None:
    with guarded.web("differ") as web:
        hidden, absent = web.get("/v1/tools/python.run"), web.get("/v1/tools/python.walk")
    assert refusal(hidden) == (404, "unknown_tool")
    assert hidden.content == absent.content


@pytest.mark.parametrize("who", ["rival", "colleague", "guest"])
def test_the_call_of_another_answers_like_one_that_does_not_exist(who: str, guarded: RunningGateway) -> None:
    with live(guarded, "probe.run", "print('ready', flush=True)\nimport time; time.sleep(2)\nresult = 1") as call:
        call.until_printed("ready")
        with guarded.web(who) as web:
            for method, path in (("GET", "/v1/calls/{}"), ("POST", "/v1/calls/{}/cancel")):
                theirs = web.request(method, path.format(call.call_id))
                absent = web.request(method, path.format("01890000-0000-7000-8000-000000000000"))
                assert refusal(theirs) == (404, "unknown_call")
                assert (theirs.content, theirs.headers.keys()) == (absent.content, absent.headers.keys())
            assert call.call_id not in web.get("/v1/calls").text
        with guarded.sdk(who) as client:
            for ask in (client.get, client.cancel):
                with pytest.raises(CallRefused) as refused:
                    ask(call.call_id)
                assert refused.value.reason == "unknown_call"
        # And nobody has ended it.
        assert call.answer()["state"] == "succeeded"


def test_an_idempotency_key_belongs_to_its_caller(guarded: RunningGateway) -> None:
    arguments = {"code": "import os; result = os.urandom(8).hex()"}
    key = {"Idempotency-Key": "shared by chance"}
    answers = [
        guarded.post("probe.run", arguments, tenant=who, headers=key).json() for who in ("acme", "rival", "colleague")
    ]
    assert len({answer["result"] for answer in answers}) == 3
    assert [answer["replayed"] for answer in answers] == [False] * 3


# --- a caller chooses nothing about policy, limits or identity ---------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        {"image": "debian"}, {"runtime": "runc"}, {"timeout": 1e9}, {"env": {"LD_PRELOAD": "/x.so"}}, {"net": "*"},
        {"limits": {"memory_mb": 10**6}}, {"secrets": ["kv/data/rival/webhooks#key"]}, {"__proto__": {}}, {"": 1},
    ],
)  # fmt: skip
def test_arguments_that_the_tool_does_not_declare_are_refused(extra: dict[str, Any], guarded: RunningGateway) -> None:
    refused = guarded.post("python.run", {"code": "print(1)", **extra})
    assert refusal(refused) == (422, "invalid_arguments")
    assert refused.json()["violations"]
    with guarded.sdk() as client, pytest.raises(CallRefused) as by_grpc:
        client.call("python.run", {"code": "print(1)", **extra})
    assert by_grpc.value.reason == "invalid_arguments"


@pytest.mark.parametrize("key", ["tenant", "agent", "roles", "image", "runtime", "limits", "env", "isolation"])
def test_a_body_says_nothing_about_identity_or_the_sandbox(key: str, guarded: RunningGateway) -> None:
    with guarded.web("guest") as web:
        refused = web.post("/v1/tools/text.diff/calls", json={"arguments": DIFF, key: "acme"})
    assert refusal(refused) == (400, "invalid_request")
    assert f"`{key}`" in refused.json()["detail"]


def test_a_task_in_a_body_is_one_of_the_callers_own_or_none(guarded: RunningGateway) -> None:
    with guarded.web() as web:
        refused = web.post("/v1/tools/text.diff/calls", json={"arguments": DIFF, "task": "acme"})
    assert refusal(refused) == (404, "unknown_task")


def test_headers_say_nothing_about_identity(guarded: RunningGateway) -> None:
    headers = {"X-Tenant": "acme", "X-Callgate-Tenant": "acme", "X-Forwarded-User": "bot", "X-Roles": "developer"}
    assert refusal(guarded.post("text.diff", DIFF, tenant="guest", headers=headers)) == (403, "policy_denied")


def test_a_deadline_beyond_the_tools_own_is_cut_to_it(guarded: RunningGateway) -> None:
    answer = guarded.post("probe.run", {"code": "result = 1"}, deadline_ms=24 * 3600 * 1000).json()
    (intent,) = [event for event in guarded.deployment.events(answer["call_id"]) if event["kind"] == "intent"]
    moments = [datetime.fromisoformat(intent[name]) for name in ("received_at", "deadline_at")]
    assert moments[1] - moments[0] == timedelta(seconds=20)
    for beyond in (24 * 3600 * 1000 + 1, 10**12, 1e9, -1, 0, True, "5"):
        refused = guarded.post("probe.run", {"code": "result = 1"}, deadline_ms=beyond)
        assert refusal(refused) == (400, "invalid_request")


# --- what looks like an option, a command or a path --------------------------------------------------------------


def test_arguments_of_a_command_stay_arguments(guarded: RunningGateway) -> None:
    hostile = [
        "-rf",
        "--upload-pack=id",
        ";",
        "a;id",
        "$(id)",
        "`id`",
        "line\nid\n",
        "|id",
        "&& id",
        "*",
        "~",
        "${HOME}",
        "",
    ]
    answer = guarded.post("shell.run", {"argv": ["printf", "[%s]", *hostile]}).json()
    assert answer["stdout"]["text"] == "".join(f"[{each}]" for each in hostile)
    for argv in (["-c", "id"], ["id; id"], ["$(id)"], ["\nid"]):
        answer = guarded.post("shell.run", {"argv": argv}).json()
        assert (answer["state"], answer["exit"]["code"]) == ("failed", 127)
        assert "uid=" not in answer["stdout"]["text"]


@pytest.mark.parametrize("tool", ["python.run", "shell.run"])
def test_names_of_files_are_names_and_never_paths(tool: str, guarded: RunningGateway) -> None:
    program: dict[str, Any] = {"code": "1"} if tool == "python.run" else {"argv": ["true"]}
    names = [
        "../x",
        "/etc/passwd",
        "a/b",
        "..",
        ".",
        "",
        "%2e%2e%2fx",
        "..\\x",
        "a\0b",
        "a\n",
        ".hidden",
        "é",
        "x" * 101,
    ]
    for name in names:
        refused = guarded.post(tool, {**program, "files": [{"name": name, "content": "x"}]})
        assert refusal(refused) == (422, "invalid_arguments"), name
        assert refused.json()["violations"][0]["path"].startswith("/files/0")
