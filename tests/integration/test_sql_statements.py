"""The SQL tools against a real PostgreSQL: one statement, exact values, bounds, and what a reader cannot do.

Without a sandbox: what the gate and the leases add is in test_sql_query.py.
"""

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from callgate_server.backends.openbao_dev import free_port
from support.postgres import Postgres
from support.tools import Ended, call
from support.web_server import silent_server

PASSWORD = "a-password-of-the-suite"
SSL_REQUEST = (80877103).to_bytes(4, "big")
Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def tables(database: Postgres) -> Iterator[Postgres]:
    for statement in (
        "CREATE TABLE kept (id int PRIMARY KEY, word text)",
        "INSERT INTO kept SELECT n, 'word ' || n FROM generate_series(1, 3000) AS n",
        *(f"CREATE ROLE suite_{role} LOGIN PASSWORD '{PASSWORD}'" for role in ("reader", "writer")),
        "GRANT SELECT ON kept TO suite_reader",
        "GRANT ALL ON kept TO suite_writer",
        # Even a role that may write does not in `sql.query`.
        "GRANT suite_writer TO suite_reader",
    ):
        database.query(statement)
    yield database
    database.query("DROP TABLE kept")
    database.query("DROP ROLE suite_reader, suite_writer")


@pytest.fixture
def run(tables: Postgres, tmp_path: Path) -> Run:
    def one(tool: str, sql: str, *parameters: Any, **arguments: Any) -> Ended:
        role = {"query": "suite_reader", "execute": "suite_writer"}[tool]
        document = {
            "sql": sql,
            "database": "postgres",
            "parameters": list(parameters),
            "secrets": {"username": role, "password": PASSWORD},
        }
        return call(f"sql:{tool}", "sql", tmp_path, document | arguments, packages=True, database__PORT=tables.port)

    return one


def value(ended: Ended) -> Any:
    assert ended.result is not None, ended.stderr
    [[only]] = ended.result["rows"]
    return only


def test_rows_come_with_their_columns(run: Run) -> None:
    result = run("query", "SELECT id, word FROM kept WHERE id < 3 ORDER BY id").result
    assert result == {
        "columns": [{"name": "id", "type": "int4"}, {"name": "word", "type": "text"}],
        "rows": [[1, "word 1"], [2, "word 2"]],
        "truncated": False,
    }


def test_no_rows_have_columns_too(run: Run) -> None:
    result = run("query", "SELECT id FROM kept WHERE false").result
    assert (result["columns"], result["rows"]) == ([{"name": "id", "type": "int4"}], [])


VALUES = {
    "NULL": None,
    "true": True,
    "32767::int2": 32767,
    "9223372036854775807": 9223372036854775807,
    "1.10": "1.10",
    "1e-20::numeric": "0.00000000000000000001",
    "'NaN'::numeric": "NaN",
    "0.1::float8": 0.1,
    "'NaN'::float8": "NaN",
    "'-infinity'::float8": "-Infinity",
    "'zürich'": "zürich",
    "E'a\\nb'": "a\nb",
    "'\\xdead00'::bytea": "3q0A",
    "DATE '2024-02-29'": "2024-02-29",
    "DATE 'infinity'": "infinity",
    "DATE '0044-03-15 BC'": "0044-03-15 BC",
    "TIMESTAMPTZ '2024-01-01 01:00+02'": "2023-12-31 23:00:00+00",
    "TIME '01:02:03.5'": "01:02:03.5",
    "INTERVAL '1 month -2 days 3 hours'": "P1M-2DT3H",
    "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    '\'{"b": [1, 2.5, null], "a": "x"}\'::jsonb': {"a": "x", "b": [1, 2.5, None]},
    "'[1e400]'::jsonb": "[1" + "0" * 400 + "]",
    '\'{"a": 1, "a": 2}\'::json': '{"a": 1, "a": 2}',
    "'null'::jsonb": None,
    "ARRAY[1, NULL, 3]": [1, None, 3],
    "ARRAY[[1, 2], [3, 4]]": [[1, 2], [3, 4]],
    "ARRAY[1.50]": ["1.50"],
    "ARRAY['a,b', 'c\"d']": ["a,b", 'c"d'],
    "ARRAY[DATE '2024-01-01']": ["2024-01-01"],
    "ARRAY['\\xff'::bytea]": ["/w=="],
    "int4range(1, 5)": "[1,5)",
    "'10.0.0.1/8'::inet": "10.0.0.1/8",
    "point(1, 2)": "(1,2)",
    "ROW(1, 'a')": "(1,a)",
    "'12.50'::money": "$12.50",
}


def test_values_arrive_exactly(run: Run) -> None:
    result = run("query", "SELECT " + ", ".join(VALUES)).result
    assert dict(zip(VALUES, result["rows"][0], strict=True)) == VALUES


def test_types_are_named_as_postgresql_names_them(run: Run) -> None:
    result = run("query", "SELECT 1.5 AS a, ARRAY['x'] AS b, NULL::kept AS c, now() AS d").result
    assert [column["type"] for column in result["columns"]] == ["numeric", "text[]", "other", "timestamptz"]


@pytest.mark.parametrize(
    ("expression", "parameter", "shown"),
    [
        ("pg_typeof($1)::text || $1", 7, "integer7"),
        ("pg_typeof($1)::text || $1", 2**40, f"bigint{2**40}"),
        ("pg_typeof($1)::text || $1", 2**70, f"numeric{2**70}"),
        ("pg_typeof($1)::text || $1", 0.1, "double precision0.1"),
        ("pg_typeof($1)::text || $1", True, "booleantrue"),
        ("$1::numeric", "1.10", "1.10"),
        ("$1::text", "'; DROP TABLE kept; --", "'; DROP TABLE kept; --"),
        ("$1::jsonb -> 'a'", '{"a": [1]}', [1]),
        ("coalesce($1, 'none')", None, "none"),
        ("'100%' || $1", "%s", "100%%s"),
    ],
)
def test_parameters_have_the_type_of_their_value(run: Run, expression: str, parameter: Any, shown: Any) -> None:
    assert value(run("query", f"SELECT {expression}", parameter)) == shown


def test_a_second_statement_is_refused_with_or_without_parameters(run: Run) -> None:
    for parameters in ((), (1,)):
        ended = run(
            "execute", "SELECT $1::int; DELETE FROM kept" if parameters else "SELECT 1; DELETE FROM kept", *parameters
        )
        assert ended.result is None
        assert "multiple commands" in ended.stderr
    assert value(run("query", "SELECT count(*) FROM kept")) == 3000


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO kept VALUES (9001, 'x')",
        "UPDATE kept SET word = 'x'",
        "DELETE FROM kept",
        "WITH gone AS (DELETE FROM kept RETURNING id) SELECT count(*) FROM gone",
        "CREATE TABLE mine (id int)",
        "SELECT set_config('transaction_read_only', 'off', false)",
        "SET TRANSACTION READ WRITE",
        "DO $$ BEGIN COMMIT; SET TRANSACTION READ WRITE; DELETE FROM kept; END $$",
        "DO $$ BEGIN SET LOCAL transaction_read_only = off; DELETE FROM kept; END $$",
        "SELECT * FROM kept FOR UPDATE",
        "TRUNCATE kept",
        "COMMIT",
        "COPY kept TO PROGRAM 'id'",
        "COPY kept TO STDOUT",
        "COPY kept FROM STDIN",
        "SELECT pg_read_file('/etc/passwd')",
    ],
)
def test_a_query_changes_nothing_whatever_its_role_may(run: Run, tables: Postgres, sql: str) -> None:
    before = tables.query("SELECT count(*), max(word), (SELECT count(*) FROM pg_class) FROM kept")
    run("query", sql)
    assert tables.query("SELECT count(*), max(word), (SELECT count(*) FROM pg_class) FROM kept") == before


@pytest.mark.parametrize("tool", ["query", "execute"])
@pytest.mark.parametrize(
    "sql",
    [
        "PREPARE TRANSACTION 'x'",
        "prepare/**/transaction 'x'",
        " ;;\n-- a /* word\r\n\tPrepare Transaction 'x'",
        "/* a -- word */ /* /* */ * / ' /*/ */ */ PREPARE TRANSACTION 'x'",
        "/**//***/--\n;PREPARE TRANSACTION 'x'",
        "PREPARE mine AS SELECT 1",
    ],
)
def test_nothing_is_prepared_that_outlives_the_call(run: Run, tables: Postgres, tool: str, sql: str) -> None:
    ended = run(tool, sql)
    assert (ended.result, tables.query("SELECT count(*) FROM pg_prepared_xacts")) == (None, "0")
    assert ended.stderr == "PREPARE is not possible here: a transaction of this tool ends with its call.\n"


@pytest.mark.parametrize(
    "sql", ["SELECT 'prepare'", "/* prepare */ SELECT 'prepare'", "--\nSELECT 'prepare'", "(SELECT 'prepare')"]
)
def test_a_statement_may_speak_of_preparing(run: Run, sql: str) -> None:
    assert value(run("query", sql)) == "prepare"


@pytest.mark.parametrize("sql", ["/* prepare", "/*" * 50_000, "-- prepare", "prepared", "PREPARE_X"])
def test_what_only_looks_like_it_is_the_servers_to_refuse(run: Run, sql: str) -> None:
    assert "PREPARE is not possible" not in run("query", sql).stderr


def test_what_a_query_may_not_is_told_with_its_state(run: Run) -> None:
    ended = run("query", "DELETE FROM kept")
    assert ended.stderr == (
        "The database refused the statement: cannot execute DELETE in a read-only transaction (SQLSTATE 25006).\n"
    )


def test_too_many_rows_are_cut_and_not_waited_for(run: Run) -> None:
    result = run("query", "SELECT generate_series(1, 1000000000)", max_rows=10).result
    assert [row[0] for row in result["rows"]] == list(range(1, 11))
    assert result["truncated"] is True


def test_rows_that_are_too_large_are_cut(run: Run) -> None:
    result = run("query", "SELECT repeat('x', 1000000) FROM generate_series(1, 50)").result
    assert (len(result["rows"]), result["truncated"]) == (2, True)


def test_exactly_as_many_rows_as_asked_for_are_not_cut(run: Run) -> None:
    result = run("query", "SELECT id FROM kept WHERE id <= 10", max_rows=10).result
    assert (len(result["rows"]), result["truncated"]) == (10, False)


def test_a_statement_that_takes_too_long_is_ended(run: Run) -> None:
    ended = run("query", "SELECT pg_sleep(600)", timeout_s=1)
    assert ended.result is None
    assert "statement timeout (SQLSTATE 57014)" in ended.stderr


def test_a_change_is_made_whole_and_told(run: Run, tables: Postgres) -> None:
    result = run("execute", "INSERT INTO kept VALUES ($1, $2), (9002, 'y') RETURNING id, word", 9001, "x").result
    assert (result["status"], result["affected"]) == ("INSERT 0 2", 2)
    assert result["rows"] == [[9001, "x"], [9002, "y"]]
    assert tables.query("SELECT count(*) FROM kept WHERE id > 9000") == "2"
    gone = run("execute", "DELETE FROM kept WHERE id > 9000").result
    assert (gone["status"], gone["affected"], gone["rows"], gone["columns"]) == ("DELETE 2", 2, [], [])
    assert tables.query("SELECT count(*) FROM kept WHERE id > 9000") == "0"


def test_a_change_whose_rows_are_cut_is_made_all_the_same(run: Run, tables: Postgres) -> None:
    result = run("execute", "UPDATE kept SET word = word RETURNING id", max_rows=5).result
    assert (len(result["rows"]), result["truncated"], result["affected"]) == (5, True, 3000)


def test_a_change_that_fails_is_not_made_in_part(run: Run, tables: Postgres) -> None:
    ended = run(
        "execute", "INSERT INTO kept SELECT 9000 + n, 'x' FROM generate_series(1, 5) AS n UNION ALL SELECT 1, 'x'"
    )
    assert ended.result is None
    assert "SQLSTATE 23505" in ended.stderr
    assert tables.query("SELECT count(*) FROM kept WHERE id > 9000") == "0"


@pytest.mark.parametrize("sql", ["", "   ", "-- nothing", "COPY kept TO STDOUT", "COPY kept FROM STDIN"])
def test_what_gives_no_outcome_is_refused(run: Run, sql: str) -> None:
    ended = run("execute", sql)
    assert ended.result is None
    assert ended.stderr == "COPY from and to the client is not possible here, nor is an empty statement.\n"


def test_a_statement_cannot_hold_what_ends_it(run: Run) -> None:
    assert "U+0000" in run("query", "SELECT 1\0; DROP TABLE kept").stderr
    assert "U+0000" in run("query", "SELECT $1", "a\0b").stderr


def test_a_database_that_is_not_there_is_told_without_the_role(run: Run) -> None:
    ended = run("query", "SELECT 1", database="no_such")
    assert ended.result is None
    assert ended.status == 1
    assert "no connection to database `no_such`" in ended.stderr
    assert "suite_reader" not in ended.stderr
    assert PASSWORD not in ended.stderr


@pytest.mark.parametrize("tool", ["query", "execute"])
def test_a_database_that_is_full_is_away_for_now(run: Run, tables: Postgres, tool: str) -> None:
    role = {"query": "suite_reader", "execute": "suite_writer"}[tool]
    tables.query("CREATE DATABASE full_one CONNECTION LIMIT 0")
    try:
        ended = run(tool, "SELECT 1", database="full_one")
    finally:
        tables.query("DROP DATABASE full_one")
    assert (ended.status, ended.result) == (75, None)
    assert ended.stderr == "The database cannot be reached for now; try again later.\n"
    assert role not in ended.stderr


def refusing(message: str) -> bytes:
    """A server's last word before there is a connection (PostgreSQL, "Message Formats", ErrorResponse)."""
    fields = b"".join(b"%c%s\0" % (kind, text.encode()) for kind, text in ((83, "FATAL"), (86, "FATAL"), (77, message)))
    return b"E" + (len(fields) + 5).to_bytes(4, "big") + fields + b"\0"


@pytest.mark.parametrize(
    ("reply", "ends"),
    [
        (refusing("the database system is starting up"), 75),
        (refusing("the database system is shutting down"), 75),
        (refusing("sorry, too many clients already"), 75),
        (refusing('password authentication failed for user "suite_reader"'), 1),
        (b"", 75),
    ],
)
def test_a_server_that_is_away_for_now_is_told_from_one_that_refuses(tmp_path: Path, reply: bytes, ends: int) -> None:
    with closing_server(reply) as port:
        ended = connecting(tmp_path, port)
    assert (ended.status, ended.result) == (ends, None)
    assert PASSWORD not in ended.stderr


def test_a_server_that_says_nothing_in_time_is_away_for_now(tmp_path: Path) -> None:
    with silent_server() as port:
        ended = connecting(tmp_path, port, database__CONNECT_TIMEOUT_S=2)
    assert (ended.status, ended.result) == (75, None)
    assert ended.stderr == "The database cannot be reached for now; try again later.\n"


def test_a_port_that_nothing_listens_on_has_no_rule_and_that_is_said(tmp_path: Path) -> None:
    ended = connecting(tmp_path, free_port())
    assert (ended.status, "operator for a tcp rule" in ended.stderr) == (1, True)


def connecting(folder: Path, port: int, **settings: int) -> Ended:
    secrets = {"username": "suite_reader", "password": PASSWORD}
    document = {"sql": "SELECT 1", "database": "postgres", "secrets": secrets}
    return call("sql:query", "sql", folder, document, packages=True, database__PORT=port, **settings)


@contextmanager
def closing_server(reply: bytes) -> Iterator[int]:
    """A server that offers no TLS, and ends each connection with this."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            asked = self.request.recv(65536)
            if asked[4:8] == SSL_REQUEST:
                self.request.sendall(b"N")
                self.request.recv(65536)
            self.request.sendall(reply)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["postgres host=evil.test", "postgresql://evil.test/x", "a'b", ""])
def test_a_databases_name_is_nothing_but_a_name(run: Run, name: str) -> None:
    assert run("query", "SELECT 1", database=name).result is None


def test_a_statement_that_breaks_the_connection_leaves_it_open_what_happened(run: Run) -> None:
    ended = run("execute", "SELECT pg_terminate_backend(pg_backend_pid())")
    assert ended.result is None
    assert "terminating connection" in ended.stderr or "not known" in ended.stderr
