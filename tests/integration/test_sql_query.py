"""`sql.query` and `sql.execute` the whole way: a gateway, a lease of OpenBao's database engine, the egress gate, PostgreSQL.

A role of the database exists for one call and is gone after it; the caller names neither it nor the database.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from callgate_server.backends.openbao_dev import free_port
from support.gateway import Deployment, RunningGateway
from support.live import eventually, refusal
from support.openbao import ConfiguredServer
from support.postgres import Postgres
from support.secrecy import everything_written

pytestmark = pytest.mark.timeout(300)

TOOLS = ("sql.query", "sql.execute")
LOOPBACK = ["127.0.0.0/8", "::1/128"]


@pytest.fixture(scope="module")
def orders(database: Postgres) -> Iterator[Postgres]:
    database.query("CREATE TABLE orders (id int PRIMARY KEY, total numeric)")
    database.query("INSERT INTO orders SELECT n, n * 1.10 FROM generate_series(1, 5000) AS n")
    yield database
    eventually(lambda: gone(database), within_s=40)
    database.query("DROP TABLE orders")


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory, orders: Postgres) -> Iterator[ConfiguredServer]:
    with ConfiguredServer(tmp_path_factory.mktemp("bao")) as server:
        server.operator.enable_kv()
        orders.lend_to(server.operator, "acme-read", "SELECT ON orders")
        orders.lend_to(server.operator, "acme-write", "SELECT, INSERT, UPDATE, DELETE ON orders")
        yield server


def settings(port: int) -> dict[str, Any]:
    rule = {"scheme": "tcp", "host": "localhost", "port": port, "local_port": 5432}
    return {
        "egress": {"authority_dir": "egress", "internal": [{"host": "localhost", "networks": LOOPBACK}]},
        "tools": {name: {"egress": [dict(rule)], "fixed": {"database": "postgres"}} for name in TOOLS},
    }


@pytest.fixture(scope="module")
def sql(tmp_path_factory: pytest.TempPathFactory, bao: ConfiguredServer, orders: Postgres) -> Iterator[RunningGateway]:
    deployment = Deployment(tmp_path_factory.mktemp("sql"), bao, settings=settings(orders.port))  # type: ignore[arg-type]
    with deployment.start() as running:
        yield running
        deployment.wait_until_clean()
    assert deployment.verify().fault is None


def gone(database: Postgres) -> None:
    assert database.leased_roles() == set()


def asked(
    gateway: RunningGateway, statement: str, *parameters: Any, tool: str = "sql.query", **more: Any
) -> dict[str, Any]:
    answer: dict[str, Any] = gateway.post(tool, {"sql": statement, "parameters": list(parameters), **more}).json()
    return answer


def test_a_query_answers_as_a_user_that_exists_for_this_call_alone(sql: RunningGateway, orders: Postgres) -> None:
    # An answer does not wait for its role to go: one of a test before this may be on its way out.
    eventually(lambda: gone(orders))
    before = orders.leased_roles()
    answer = asked(sql, "SELECT id, total FROM orders WHERE id = $1", 7)
    assert answer["state"] == "succeeded", answer
    assert answer["result"] == {
        "columns": [{"name": "id", "type": "int4"}, {"name": "total", "type": "numeric"}],
        "rows": [[7, "7.70"]],
        "truncated": False,
    }
    assert answer["usage"]["egress_bytes"] > 0
    eventually(lambda: gone(orders))
    assert before == set()


def test_the_user_is_another_one_in_each_call_and_nobody_learns_its_name(sql: RunningGateway, orders: Postgres) -> None:
    digests = set()
    for _ in range(2):
        answer = asked(sql, "SELECT md5(current_user::text), current_user::text")
        [[digest, shown]] = answer["result"]["rows"]
        digests.add(digest)
        assert shown == "[REDACTED:username]"
    assert len(digests) == 2
    assert b"v-" + b"approle" not in everything_written(sql.deployment)


def test_the_record_says_who_was_reached_and_how_much_and_not_what_was_asked(sql: RunningGateway) -> None:
    answer = asked(sql, "SELECT 'a-word-of-the-statement'")
    events = eventually(lambda: _ended(sql, answer["call_id"]))
    kinds = [event["kind"] for event in events]
    assert kinds.index("secret_leased") < kinds.index("egress_allowed") < kinds.index("egress_closed")
    allowed = next(event for event in events if event["kind"] == "egress_allowed")
    assert (allowed["scheme"], allowed["host"]) == ("tcp", "localhost")
    assert "a-word-of-the-statement" not in str(events)


def _ended(gateway: RunningGateway, call_id: str) -> list[dict[str, Any]]:
    events = gateway.deployment.events(call_id)
    assert "secret_revoked" in [event["kind"] for event in events]
    return events


def test_the_database_is_the_operators_choice(sql: RunningGateway) -> None:
    refused = sql.post("sql.query", {"sql": "SELECT 1", "database": "template1"})
    assert refusal(refused) == (422, "invalid_arguments")
    with sql.web() as web:
        shown = web.get("/v1/tools/sql.query").json()["input"]
    assert "database" not in shown["properties"]
    assert shown["required"] == ["sql"]


@pytest.mark.parametrize(
    ("statement", "state"),
    [
        ("DELETE FROM orders", "25006"),
        ("WITH gone AS (DELETE FROM orders RETURNING 1) SELECT count(*) FROM gone", "25006"),
        ("CREATE TABLE mine ()", "25006"),
        ("SELECT 1; DELETE FROM orders", "42601"),
        ("SELECT pg_read_file('/etc/passwd')", "42501"),
    ],
)
def test_a_query_cannot_write(sql: RunningGateway, orders: Postgres, statement: str, state: str) -> None:
    answer = asked(sql, statement)
    assert (answer["state"], answer["error"]["reason"]) == ("failed", "tool_failed")
    assert f"SQLSTATE {state}" in answer["stderr"]["text"]
    assert orders.query("SELECT count(*) FROM orders") == "5000"


def test_the_reading_role_cannot_write_even_where_a_transaction_could(sql: RunningGateway, orders: Postgres) -> None:
    answer = asked(sql, "SELECT has_table_privilege('orders', 'DELETE'), has_table_privilege('orders', 'SELECT')")
    assert answer["result"]["rows"] == [[False, True]]


def test_a_change_is_made_once_and_only_by_the_tool_for_it(sql: RunningGateway, orders: Postgres) -> None:
    insert = "INSERT INTO orders VALUES ($1, $2) RETURNING total"
    answer = asked(sql, insert, 9001, "1.25", tool="sql.execute")
    assert answer["state"] == "succeeded", answer
    assert (answer["result"]["affected"], answer["result"]["rows"]) == (1, [["1.25"]])
    again = asked(sql, insert, 9001, "1.25", tool="sql.execute")
    assert "SQLSTATE 23505" in again["stderr"]["text"]
    assert asked(sql, "DELETE FROM orders WHERE id = 9001", tool="sql.execute")["result"]["affected"] == 1


def test_rows_are_capped_and_say_so(sql: RunningGateway) -> None:
    few = asked(sql, "SELECT id FROM orders ORDER BY id", max_rows=3)["result"]
    assert (few["rows"], few["truncated"]) == ([[1], [2], [3]], True)
    wide = asked(sql, "SELECT repeat('x', 500000), generate_series(1, 100)")["result"]
    assert (len(wide["rows"]), wide["truncated"]) == (4, True)


def test_a_call_whose_time_is_up_leaves_neither_its_statement_nor_its_role(
    sql: RunningGateway, orders: Postgres
) -> None:
    answer = sql.post("sql.query", {"sql": "SELECT pg_sleep(45) /* of the test */"}, deadline_ms=8000).json()
    assert answer["state"] == "timed_out", answer
    eventually(lambda: gone(orders), within_s=40)
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(45)%' AND state = 'active'"

    def ended() -> None:
        assert orders.query(running) == "0"

    eventually(ended)


def test_a_database_that_the_gate_cannot_reach_is_away_for_now(tmp_path: Path, bao: ConfiguredServer) -> None:
    deployment = Deployment(tmp_path / "gateway", bao, settings=settings(free_port()))  # type: ignore[arg-type]
    with deployment.start() as gateway:
        for tool in TOOLS:
            answer = asked(gateway, "SELECT 1", tool=tool)
            assert (answer["state"], answer["error"]["reason"]) == ("failed", "tool_unavailable"), answer
            assert answer["stderr"]["text"] == "The database cannot be reached for now; try again later.\n"
    deployment.wait_until_clean()


def test_without_the_secret_store_it_fails_by_name_and_tools_without_secrets_go_on(
    sql: RunningGateway, bao: ConfiguredServer
) -> None:
    bao.stop()
    try:
        refused = sql.post("sql.query", {"sql": "SELECT 1"})
        assert refusal(refused) == (503, "secrets_unavailable")
        assert "username" in refused.json()["detail"]
        assert sql.post("text.diff", {"before": "a", "after": "b"}).json()["state"] == "succeeded"
    finally:
        bao.start()
        bao.unseal()

    def works() -> None:
        assert asked(sql, "SELECT 1").get("result", {}).get("rows") == [[1]]

    eventually(works, within_s=60)


def test_another_tenants_role_is_not_lent(sql: RunningGateway) -> None:
    refused = sql.post("sql.query", {"sql": "SELECT 1"}, tenant="rival")
    assert refusal(refused) == (424, "secret_refused")
