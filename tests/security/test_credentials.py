"""Credentials on a production gateway, and the configurations with which it does not start."""

import json
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from callgate import Callgate
from callgate.errors import CallRefused
from callgate_server.backends import api_keys
from support.gateway import CALLGATED, Deployment, RunningGateway

DIFF = {"before": "a\n", "after": "b\n"}


def own(folder: Path, **settings: Any) -> Deployment:
    return Deployment(folder / "gateway", settings=settings)


def statuses(gateway: RunningGateway, token: str | None) -> tuple[int, int, str]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=f"http://{gateway.http}", headers=headers, trust_env=False) as web:
        listed, called = web.get("/v1/tools"), web.post("/v1/tools/text.diff/calls", json={"arguments": DIFF})
    with Callgate(gateway.grpc, token=token) as client:
        try:
            by_grpc = client.call("text.diff", DIFF).state
        except CallRefused as refused:
            by_grpc = refused.reason
    return listed.status_code, called.status_code, by_grpc


ADMITTED = (200, 200, "succeeded")
REFUSED = (401, 401, "unauthenticated")


def test_a_revoked_or_expired_key_is_refused_from_the_next_call_on(gateway: RunningGateway) -> None:
    keys, now = gateway.deployment.folder / "keys.json", datetime.now(UTC)
    made = api_keys.create(keys, tenant="acme", agent="fired", roles=("developer",), purpose="production", now=now)
    assert statuses(gateway, made.key.reveal().decode()) == ADMITTED
    api_keys.revoke(keys, made.id)
    assert statuses(gateway, made.key.reveal().decode()) == REFUSED
    now = datetime.now(UTC)
    expires_at = now + timedelta(seconds=10)
    short = api_keys.create(
        keys, tenant="acme", agent="guest", roles=("developer",), purpose="production", now=now, expires_at=expires_at
    )
    assert statuses(gateway, short.key.reveal().decode()) == ADMITTED
    time.sleep(max(0, (expires_at - datetime.now(UTC)).total_seconds() + 0.2))
    assert statuses(gateway, short.key.reveal().decode()) == REFUSED


def test_without_a_credential_only_health_is_open(gateway: RunningGateway) -> None:
    assert statuses(gateway, None) == REFUSED
    with httpx.Client(base_url=f"http://{gateway.http}", trust_env=False) as web:
        assert {web.get(page).status_code for page in ("/healthz", "/readyz")} == {200}
        assert {web.get(page).status_code for page in ("/metrics", "/openapi.json", "/v1/calls")} == {401}
        assert {web.get(page).status_code for page in ("/docs", "/redoc", "/debug", "/v1/../docs")} == {404}
    with grpc.insecure_channel(gateway.grpc) as channel:
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.RpcError) as refused:
            list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]), timeout=10))
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_tokens_of_an_identity_provider(tmp_path: Path) -> None:
    key, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    rules = {"issuer": "https://id.example", "audience": "callgate", "jwks_file": "jwks.json"}
    deployment = own(tmp_path, auth={"jwt": rules})
    public = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key())) | {"kid": "one"}
    jwks = deployment.folder / "jwks.json"
    jwks.write_text(json.dumps({"keys": [public]}))
    jwks.chmod(0o600)
    good = {
        "iss": "https://id.example", "aud": "callgate", "sub": "bot", "tenant": "acme", "roles": ["developer"],
        "exp": datetime.now(UTC) + timedelta(minutes=5),
    }  # fmt: skip

    def token(signer: Any = key, algorithm: str = "EdDSA", kid: str = "one", **claims: Any) -> str:
        return jwt.encode({**good, **claims}, signer, algorithm=algorithm, headers={"kid": kid})

    with deployment.start() as gateway:
        assert statuses(gateway, token()) == ADMITTED
        assert statuses(gateway, deployment.tokens["acme"]) == ADMITTED
        assert statuses(gateway, token(roles=["visitor"])) == (200, 403, "policy_denied")
        with httpx.Client(headers={"Authorization": f"Bearer {token(task='t-1')}"}, trust_env=False) as web:
            call = web.post(f"http://{gateway.http}/v1/tools/text.diff/calls", json={"arguments": DIFF}).json()
        (intent, _) = deployment.events(call["call_id"])
        assert (intent["tenant"], intent["agent"], intent["task"]) == ("acme", "bot", "t-1")
        for wrong in (
            token(stranger), token(kid="two"), token(aud="other"), token(iss="https://evil.example"),
            token(exp=datetime.now(UTC) - timedelta(minutes=5)), token(tenant="../rival"), token(tenant=None),
            token("", "none"), token(b"k" * 32, "HS256"), token() + "x",
        ):  # fmt: skip
            assert statuses(gateway, wrong) == REFUSED
        jwks.write_text(json.dumps({"keys": []}))
        assert statuses(gateway, token()) == REFUSED


# --- starting --------------------------------------------------------------------------------------------------


def refused_start(deployment: Deployment) -> str:
    """What `callgated serve` says when it does not start."""
    if not deployment.config.exists():
        deployment.write_config()
    command = [*CALLGATED, "serve", "--config", str(deployment.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ('@id("a") permit(principal, action, resource) when { resource.rsik == "low" };', "rsik"),
        ('@id("a") permit(principal, action, resource) when { resource.effect > 3 };', "policies.cedar:2"),
        ('@id("a") permit(principal, action == Action::"call:text.dif", resource);', "text.dif"),
        ("permit(principal, action, resource);", "@id"),
    ],
)
def test_a_set_that_is_broken_at_the_start_refuses_to_start(tmp_path: Path, policy: str, said: str) -> None:
    deployment = own(tmp_path)
    deployment.write_policies("// A line before.\n" + policy)
    told = refused_start(deployment)
    assert "policies.cedar:2" in told
    assert said in told


def test_production_refuses_development_keys(tmp_path: Path) -> None:
    deployment = own(tmp_path, auth={"api_keys_file": "dev-keys.json"})
    api_keys.create(
        deployment.folder / "dev-keys.json", tenant="dev", agent="dev", roles=(), purpose="dev", now=datetime.now(UTC)
    )
    assert "holds keys for dev, and this gateway is for production" in refused_start(deployment)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"auth": {"api_keys_file": None}}, "auth"),
        ({"auth": {"api_keys": "keys.json"}}, "auth.api_keys"),
        ({"sandbox": {"disabled": True}}, "sandbox"),
        ({"http": {"listen": "0.0.0.0:8080"}}, "http"),
        ({"limits": {"calls": 0}}, "limits.calls"),
        ({"secrets": {"address": "http://vault.example:8200", "auth": {"token_file": "t"}}}, "secrets.address"),
        ({"secrets": {"address": "https://vault.example", "auth": {"token": "s.verysecret"}}}, "secrets.auth.token"),
        ({"engine": {"pull": True}}, "engine.pull"),
    ],
)
def test_a_mistake_in_the_configuration_is_named_and_its_value_is_not_shown(
    settings: dict[str, Any], named: str, tmp_path: Path
) -> None:
    told = refused_start(own(tmp_path, **settings))
    assert f"  {named}: " in told
    assert "verysecret" not in told


def test_a_stranger_is_counted_and_leaves_nothing_in_the_record(gateway: RunningGateway) -> None:
    def counted(web: httpx.Client) -> float:
        line = 'callgate_refusals_total{reason="unauthenticated",tool=""} '
        found = [row.removeprefix(line) for row in web.get("/metrics").text.splitlines() if row.startswith(line)]
        return float(found[0]) if found else 0.0

    with gateway.web() as web:
        before, events = counted(web), len(gateway.deployment.events())
        assert web.get("/v1/tools", headers={"Authorization": "Bearer stranger"}).status_code == 401
        assert counted(web) == before + 1
    assert len(gateway.deployment.events()) == events
