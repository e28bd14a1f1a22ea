"""One statement in one transaction of PostgreSQL, and its rows as JSON, bounded.

The server holds the caller to one statement: the extended protocol takes no second one. Rows come one by one, so
that what is too much is never held. What a value is in JSON is said at `_shown`.
"""

import base64
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import pq
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.postgres import types
from psycopg.types.json import set_json_loads
from psycopg.types.string import TextLoader

HOST = "127.0.0.1"
# Where the deployment's tcp rule listens in the sandbox: `local_port`.
PORT = 5432
CONNECT_TIMEOUT_S = 15
# Of the rows as JSON text; the manifest's `result_kb` leaves room for the rest.
MAX_ROWS_BYTES = 2 * 1024 * 1024
MAX_JSON_DEPTH = 32
_MAX_DIGITS = 100
# EX_TEMPFAIL: nothing is wrong with the call, and another attempt may do it.
_NOT_NOW = 75
# What is said of a connection that may be had later: by libpq where the far side is gone (the gate breaks a connection
# that leads nowhere), and by the server that starts, stops or is full. One that nothing listens for has no tcp rule.
_AWAY = (
    "server closed the connection unexpectedly",
    "Connection reset by peer",
    "timeout expired",
    "the database system is ",
    "too many clients already",
    "remaining connection slots are reserved",
    "too many connections for ",
)
_EXACT = ("bool", "int2", "int4", "int8", "oid", "float4", "float8", "bytea", "json", "jsonb")
# A server whose client is gone would otherwise finish the statement first.
_SESSION = """
BEGIN {access};
SET LOCAL statement_timeout = {timeout_ms};
SET LOCAL client_connection_check_interval = '1s';
SET LOCAL TimeZone = 'UTC';
SET LOCAL DateStyle = 'ISO, YMD';
SET LOCAL IntervalStyle = 'iso_8601';
SET LOCAL bytea_output = 'hex';
"""

# As PostgreSQL reads them: what may stand before a statement, and the ends of a comment, which may hold others.
_NOTHING = re.compile(r"(?:[\s;]|--[^\n\r]*)*")
_COMMENT = re.compile(r"/\*|\*/")
_PREPARE = re.compile(r"prepare(?![\w$])", re.IGNORECASE)

Parameter = str | int | float | bool | None


@dataclass
class Outcome:
    """What a statement gave: its columns (name and type), as many rows as were to be kept, and its command tag."""

    columns: list[tuple[str, str]] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    truncated: bool = False
    status: str = ""
    affected: int = 0


def run(
    statement: str,
    parameters: Sequence[Parameter],
    *,
    database: str,
    credentials: dict[str, str],
    write: bool,
    max_rows: int,
    timeout_s: int,
) -> Outcome:
    """Run one statement in a transaction of its own. With `write` it is committed once its rows are safe.

    Raises:
        SystemExit: it failed. The text is for the caller. With status 75 there was no connection, and may be later.
    """
    _refuse_to_prepare(statement)
    with _connected(database, credentials) as connection:
        try:
            access = "READ WRITE" if write else "READ ONLY"
            connection.execute(_SESSION.format(access=access, timeout_ms=int(timeout_s * 1000)))  # type: ignore[arg-type]  # nothing in it is the caller's
            # More rows than are kept are taken from a statement that writes, or it would be undone.
            outcome = _outcome(connection, statement, parameters, max_rows, to_the_end=write)
            if write:
                connection.execute("COMMIT")
        except psycopg.Error as error:
            raise SystemExit(_said(error)) from None
        finally:
            # What is not committed is undone by the server, and what it still sends is not waited for.
            connection.close()
    return outcome


def _refuse_to_prepare(statement: str) -> None:
    """Refuse what begins with PREPARE: PREPARE TRANSACTION, in a read-only one too, would outlive call and role.

    Raises:
        SystemExit: it does. The text is for the caller.
    """
    at = _after_nothing(statement, 0)
    while statement.startswith("/*", at):
        at = _after_nothing(statement, _after_comment(statement, at))
    if _PREPARE.match(statement, at):
        raise SystemExit("PREPARE is not possible here: a transaction of this tool ends with its call.")


def _after_nothing(statement: str, at: int) -> int:
    found = _NOTHING.match(statement, at)
    return found.end() if found else at


def _after_comment(statement: str, at: int) -> int:
    depth = 0
    for mark in _COMMENT.finditer(statement, at):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(statement)


def _connected(database: str, credentials: dict[str, str]) -> psycopg.Connection:
    try:
        connection = psycopg.connect(
            host=HOST,
            port=PORT,
            dbname=database,
            user=credentials["username"],
            password=credentials["password"],
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="callgate",
            client_encoding="utf8",
            # Otherwise tried first, in connections of their own.
            gssencmode="disable",
            autocommit=True,
        )
    except psycopg.Error as error:
        if _is_away(error):
            sys.stderr.write("The database cannot be reached for now; try again later.\n")
            raise SystemExit(_NOT_NOW) from None
        raise SystemExit(
            f"There is no connection to database `{database}`; ask the gateway's operator for a tcp rule with "
            f"local_port {PORT}, and whether the role may connect to that database."
        ) from None
    _load_exactly(connection.adapters)
    set_json_loads(_json_or_text, connection)
    return connection


def _is_away(error: psycopg.Error) -> bool:
    """Whether the database is away for now.

    There is no SQLSTATE before there is a connection, so the text says it. A server that speaks another language than
    English is not understood, and its refusal is a failure like any other.
    """
    return any(words in str(error) for words in _AWAY)


def _load_exactly(adapters: AdaptersMap) -> None:
    """Have everything that JSON has no exact type for loaded as the text that PostgreSQL writes."""
    for kind in types:
        if kind.name not in _EXACT:
            adapters.register_loader(kind.oid, TextLoader)


def _outcome(
    connection: psycopg.Connection, statement: str, parameters: Sequence[Parameter], max_rows: int, *, to_the_end: bool
) -> Outcome:
    outcome, transformer, left_bytes = Outcome(), Transformer(connection), MAX_ROWS_BYTES
    wire = connection.pgconn
    oids, values = zip(*map(_sent, parameters), strict=True) if parameters else ((), ())
    wire.send_query_params(_text(statement), values, oids)
    wire.set_single_row_mode()
    while (result := wire.get_result()) is not None:
        _refuse_unless_rows(result)
        if result.nfields and not outcome.columns:
            outcome.columns = _columns(result)
        transformer.set_pgresult(result)
        for position in range(result.ntuples):
            row = [_shown(value) for value in transformer.load_row(position, list) or ()]
            left_bytes -= len(json.dumps(row, ensure_ascii=False).encode()) + 2
            if len(outcome.rows) == max_rows or left_bytes < 0:
                outcome.truncated = True
                if not to_the_end:
                    return outcome
            if not outcome.truncated:
                outcome.rows.append(row)
        outcome.status = (result.command_status or b"").decode()
        outcome.affected = result.command_tuples or 0
    return outcome


def _refuse_unless_rows(result: pq.abc.PGresult) -> None:
    if result.status == pq.ExecStatus.FATAL_ERROR:
        raise psycopg.errors.error_from_result(result)
    if result.status not in (pq.ExecStatus.SINGLE_TUPLE, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
        raise SystemExit("COPY from and to the client is not possible here, nor is an empty statement.")


def _columns(result: pq.abc.PGresult) -> list[tuple[str, str]]:
    return [
        ((result.fname(number) or b"").decode(), _type_name(result.ftype(number))) for number in range(result.nfields)
    ]


def _type_name(oid: int) -> str:
    kind = types.get(oid)
    if kind is None:
        return "other"
    return kind.name if kind.oid == oid else f"{kind.name}[]"


def _sent(value: Parameter) -> tuple[int, bytes | None]:
    """Return a parameter's type and text. A text, like NULL, is of whatever type the statement expects there."""
    match value:
        case None:
            return 0, None
        case bool():
            return types["bool"].oid, b"t" if value else b"f"
        case int():
            return types[_integer_type(value)].oid, str(value).encode()
        case float():
            return types["float8"].oid, repr(value).encode()
        case _:
            return 0, _text(value)


def _integer_type(value: int) -> str:
    return "int4" if -(2**31) <= value < 2**31 else "int8" if -(2**63) <= value < 2**63 else "numeric"


def _text(value: str) -> bytes:
    if "\0" in value:
        raise SystemExit("A statement and its parameters cannot hold the character U+0000.")
    return value.encode()


def _shown(value: Any) -> Any:  # noqa: ANN401  # from any type of PostgreSQL's to any JSON value
    """Return a loaded value as JSON: bytea in base64, NaN and infinities by name, arrays as lists.

    What is neither truth, whole number, float, bytea nor JSON has been loaded as its text.
    """
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case list():
            return [_shown(item) for item in value]
        case _:
            return value


def _json_or_text(document: str | bytes) -> Any:  # noqa: ANN401  # any JSON value
    """Return the value of a JSON column, or its text where the value would not arrive as it is."""
    text = document if isinstance(document, str) else document.decode()
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_exact(int), parse_float=_exact(float))
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return text
    return value if _depth(text) <= MAX_JSON_DEPTH else text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    decoded = dict(pairs)
    if len(decoded) != len(pairs):
        raise ValueError("an object has the same key twice")
    return decoded


def _exact(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def number(digits: str) -> Any:  # noqa: ANN401  # int or float
        if len(digits) > _MAX_DIGITS:
            raise ValueError("too many digits")
        return kind(digits)

    return number


def _depth(text: str) -> int:
    """Return at least how deep the document is nested; brackets in strings count too."""
    depth = deepest = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    return deepest


def _said(error: psycopg.Error) -> str:
    if error.sqlstate is None:
        return "The connection to the database was lost. Whether the statement took effect is not known."
    hint = f" {error.diag.message_hint}" if error.diag.message_hint else ""
    return f"The database refused the statement: {error.diag.message_primary} (SQLSTATE {error.sqlstate}).{hint}"
