"""A gateway whose secret store fails. Only calls that need it fail, by name and within seconds, and
when it is back they work again without a restart. And secrets that exist for one call only."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.gateway import Deployment, RunningGateway, canary
from support.live import CLOSED, OPEN, breaker, eventually, live, refusal
from support.openbao import ConfiguredServer
from support.postgres import Postgres
from support.toxic import ToxicProxy

SOON_S = 40
UNAVAILABLE = (503, "secrets_unavailable")
# The shape of what the tool got; the values would be redacted.
SHAPE = "secrets_shape = {name: [len(value) > 15, value.isprintable()] for name, value in secrets.items()}\n"


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory, database: Postgres) -> Iterator[ConfiguredServer]:
    """A store that keeps what it knows on disk, with an audit device, a KV engine and a database engine."""
    with ConfiguredServer(tmp_path_factory.mktemp("bao"), audited=True) as server:
        operator = server.operator
        operator.enable_kv()
        operator.write("kv/data/acme/webhooks", {"key": canary()})
        database.lend_to(operator, "probe")
        yield server


@pytest.fixture(scope="module")
def proxy(bao: ConfiguredServer) -> Iterator[ToxicProxy]:
    with ToxicProxy(int(bao.address.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def leased(
    tmp_path_factory: pytest.TempPathFactory, bao: ConfiguredServer, proxy: ToxicProxy
) -> Iterator[RunningGateway]:
    """A gateway that reaches the store through the proxy."""
    deployment = Deployment(tmp_path_factory.mktemp("leased"), bao, settings=_settings(proxy))  # type: ignore[arg-type]
    with deployment.start() as running:
        yield running
        deployment.wait_until_clean()
    assert deployment.verify().fault is None


def _settings(proxy: ToxicProxy) -> dict[str, object]:
    return {"secrets": {"address": proxy.address}, "breakers": {"secrets": {"open_s": 2}}}


def signs(gateway: RunningGateway) -> None:
    answer = gateway.post("webhooks.sign", {"payload": "x"}).json()
    assert answer.get("state") == "succeeded", answer


def refuses_by_name_and_serves_the_rest(gateway: RunningGateway) -> str:
    """Return what the caller is told."""
    began_s = time.monotonic()
    refused = gateway.post("webhooks.sign", {"payload": "x"})
    assert refusal(refused) == UNAVAILABLE
    assert int(refused.headers["retry-after"]) >= 1
    assert gateway.post("text.diff", {"before": "a", "after": "b"}).json()["state"] == "succeeded"
    assert time.monotonic() - began_s < SOON_S
    kinds = [event["kind"] for event in gateway.deployment.events(refused.json()["call_id"])]
    assert kinds == ["intent", "outcome"]
    eventually(lambda: says_so(gateway, "failing"))
    return str(refused.json()["detail"])


def says_so(gateway: RunningGateway, state: str) -> None:
    """Readiness names the store; the gateway is ready all the same, since it can serve other tools."""
    with gateway.web() as web:
        response = web.get("/readyz")
    assert (response.status_code, response.json()["components"]["secret_store"]) == (200, state)


def recovers(gateway: RunningGateway) -> None:
    eventually(lambda: signs(gateway))
    eventually(lambda: says_so(gateway, "ok"))


def test_a_sealed_store(leased: RunningGateway, bao: ConfiguredServer) -> None:
    signs(leased)
    bao.seal()
    try:
        assert "sealed" in refuses_by_name_and_serves_the_rest(leased)
    finally:
        bao.unseal()
    recovers(leased)


def test_a_store_that_is_down(leased: RunningGateway, bao: ConfiguredServer) -> None:
    bao.stop()
    try:
        refuses_by_name_and_serves_the_rest(leased)
    finally:
        bao.start()
        bao.unseal()
    recovers(leased)


def test_a_store_that_takes_ten_seconds_for_an_answer(leased: RunningGateway, proxy: ToxicProxy) -> None:
    proxy.latency_s = 10
    try:
        assert "no answer" in refuses_by_name_and_serves_the_rest(leased)
    finally:
        proxy.latency_s = 0
    recovers(leased)


def test_a_store_whose_audit_device_is_broken(leased: RunningGateway, bao: ConfiguredServer) -> None:
    bao.break_audit()
    try:
        refuses_by_name_and_serves_the_rest(leased)
    finally:
        bao.mend_audit()
    recovers(leased)


def left_alone(gateway: RunningGateway) -> None:
    refused = gateway.post("webhooks.sign", {"payload": "x"})
    assert refusal(refused) == (503, "circuit_open")
    assert 1 <= int(refused.headers["retry-after"]) <= 2


@pytest.mark.parametrize("how", ["sealed", "down", "slow"])
def test_a_store_that_stays_away_is_left_alone_until_it_is_back(
    leased: RunningGateway, bao: ConfiguredServer, proxy: ToxicProxy, how: str
) -> None:
    signs(leased)
    assert breaker(leased, "secrets") == CLOSED
    before = len(leased.deployment.events(""))
    {"sealed": bao.seal, "down": bao.stop, "slow": lambda: setattr(proxy, "latency_s", 10)}[how]()
    try:
        eventually(lambda: left_alone(leased), within_s=60)
        assert breaker(leased, "secrets") == OPEN
        assert leased.post("text.diff", {"before": "a", "after": "b"}).json()["state"] == "succeeded"
    finally:
        proxy.latency_s = 0
        if how == "down":
            bao.start()
        if how != "slow":
            bao.unseal()
    recovers(leased)
    # As many probes as it wants.
    signs(leased)
    assert breaker(leased, "secrets") == CLOSED
    eventually(lambda: tells_of_the_breaker(leased, before))


def tells_of_the_breaker(gateway: RunningGateway, before: int) -> None:
    changes = [event for event in gateway.deployment.events("")[before:] if event["kind"] == "breaker_changed"]
    assert {event["breaker"] for event in changes} == {"secrets"}
    assert (changes[0]["from"], changes[0]["to"], changes[0]["why"]) == ("closed", "open", "failures")
    assert (changes[-1]["to"], changes[-1]["why"]) == ("closed", "recovered")


def test_a_token_that_was_revoked_is_replaced_without_anybody_noticing(
    leased: RunningGateway, bao: ConfiguredServer
) -> None:
    signs(leased)
    bao.operator.request("put", "sys/leases/revoke-prefix/auth/approle/login")
    signs(leased)


def test_a_gateway_that_the_store_no_longer_knows_is_let_in_again(
    leased: RunningGateway, bao: ConfiguredServer
) -> None:
    role = f"auth/approle/role/{leased.deployment.instance}"
    secret_id = leased.deployment.folder / f"{leased.deployment.instance}.secret_id"
    bao.operator.request("post", f"{role}/secret-id/destroy", {"secret_id": secret_id.read_text()})
    bao.operator.request("put", "sys/leases/revoke-prefix/auth/approle/login")
    told = refuses_by_name_and_serves_the_rest(leased)
    assert secret_id.read_text() not in told
    secret_id.write_text(bao.operator.request("post", f"{role}/secret-id")["data"]["secret_id"])
    recovers(leased)


def test_a_forbidden_secret_is_not_an_outage(leased: RunningGateway, bao: ConfiguredServer) -> None:
    refused = leased.post("webhooks.sign", {"payload": "x"}, tenant="rival")
    assert refusal(refused) == (424, "secret_refused")
    assert leased.post("probe.secret", {"code": "1"}, tenant="rival").json()["reason"] == "secret_refused"


# --- secrets that exist for one call ---------------------------------------------------------------------------


def gone(database: Postgres) -> None:
    assert database.leased_roles() == set()


def tells_the_whole_story(gateway: RunningGateway, call_id: str) -> None:
    kinds = sorted(event["kind"] for event in gateway.deployment.events(call_id))
    assert kinds == ["intent", "outcome", "secret_leased", "secret_revoked"]


def test_database_credentials_live_as_long_as_their_call(leased: RunningGateway, database: Postgres) -> None:
    code = SHAPE + "print('ready', flush=True)\nimport time; time.sleep(4)\nresult = [secrets_shape, secrets]"
    assert database.leased_roles() == set()
    with live(leased, "probe.dynamic", code) as call:
        call.until_printed("ready")
        (role,) = database.leased_roles()
        answer = call.answer()
    shape, shown = answer["result"]
    assert shape == {"username": [True, True], "password": [True, True]}
    assert shown == {"username": "[REDACTED:username]", "password": "[REDACTED:password]"}
    eventually(lambda: gone(database))
    eventually(lambda: tells_the_whole_story(leased, call.call_id))
    assert role not in leased.deployment.log_text()


def test_credentials_end_with_a_call_that_is_cancelled(leased: RunningGateway, database: Postgres) -> None:
    with live(leased, "probe.dynamic") as call, leased.web() as web:
        call.until_printed("ready")
        assert len(database.leased_roles()) == 1
        assert web.post(f"/v1/calls/{call.call_id}/cancel").json()["state"] == "cancelled"
    eventually(lambda: gone(database))


def test_a_store_that_dies_in_mid_call_does_not_take_the_call_along_and_its_lease_is_revoked_later(
    leased: RunningGateway, bao: ConfiguredServer, database: Postgres
) -> None:
    code = "print('ready', flush=True)\nimport time; time.sleep(8)\nresult = 'done'"
    with live(leased, "probe.dynamic", code) as call:
        call.until_printed("ready")
        bao.stop()
        try:
            began_s = time.monotonic()
            assert call.answer()["result"] == "done"
            assert time.monotonic() - began_s < SOON_S
            assert len(database.leased_roles()) == 1
        finally:
            bao.start()
            bao.unseal()
    eventually(lambda: gone(database), within_s=40)
    recovers(leased)


def test_a_gateway_that_starts_while_the_store_is_away_serves_the_rest_and_finds_it_later(
    tmp_path: Path, bao: ConfiguredServer, proxy: ToxicProxy
) -> None:
    deployment = Deployment(tmp_path / "gateway", bao, settings={"secrets": {"address": proxy.address}})  # type: ignore[arg-type]
    deployment.write_config()
    proxy.latency_s = 10
    try:
        with deployment.start() as running:
            refuses_by_name_and_serves_the_rest(running)
            proxy.latency_s = 0
            recovers(running)
    finally:
        proxy.latency_s = 0
