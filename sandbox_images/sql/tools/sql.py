"""`sql.query` and `sql.execute`: one statement, as a role of PostgreSQL that exists for this call alone.

What the role may do is the operator's: `sql.query` is lent one that reads, and runs in a read-only transaction
besides; `sql.execute` is lent one that writes.
"""

from typing import Annotated, Any, TypedDict

import database as postgres

# Any JSON value.
Json = Any
Statement = Annotated[str, ("minLength", 1), ("maxLength", 100_000)]
Parameters = Annotated[list[str | int | float | bool | None], ("maxItems", 200)]
Database = Annotated[str, ("pattern", "^[A-Za-z_][A-Za-z0-9_$-]{0,62}$")]
MaxRows = Annotated[int, ("minimum", 1), ("maximum", 10_000)]
Timeout = Annotated[int, ("minimum", 1), ("maximum", 50)]


class Column(TypedDict):
    name: str
    type: Annotated[str, "PostgreSQL's name of the type; `other` for one that is not built in."]


class Rows(TypedDict):
    columns: list[Column]
    rows: Annotated[
        list[list[Json]],
        "Values in the order of the columns: whole numbers, floats, truths, JSON and arrays as such, bytea in Base64, "
        "everything else (numeric, dates, uuid) as PostgreSQL writes it.",
    ]
    truncated: Annotated[bool, "There are more rows, which were left out."]


class Executed(TypedDict):
    status: Annotated[str, "What was done, like INSERT 0 1."]
    affected: Annotated[int, "How many rows were changed or given.", ("minimum", 0)]
    columns: list[Column]
    rows: Annotated[list[list[Json]], "What RETURNING gave; values as in sql.query."]
    truncated: Annotated[bool, "There were more rows, which were left out here."]


def query(
    sql: Statement,
    database: Database,
    secrets: dict[str, str],
    parameters: Parameters | None = None,
    max_rows: MaxRows = 1000,
    timeout_s: Timeout = 30,
) -> Rows:
    """Ask a PostgreSQL database with one statement that only reads.

    Args:
        sql: One statement. Parameters stand in it as $1, $2 and so on.
        database: The database's name.
        parameters: Values for them. A text has the type that the statement expects there; cast where it is open.
        max_rows: Give at most this many rows.
        timeout_s: How long the statement may take.
    """
    return _rows(_run(sql, database, secrets, parameters, max_rows, timeout_s, write=False))


def execute(
    sql: Statement,
    database: Database,
    secrets: dict[str, str],
    parameters: Parameters | None = None,
    max_rows: MaxRows = 1000,
    timeout_s: Timeout = 30,
) -> Executed:
    """Change a PostgreSQL database with one statement; either all of it is done or nothing.

    Args:
        sql: One statement. Parameters stand in it as $1, $2 and so on.
        database: The database's name.
        parameters: Values for them. A text has the type that the statement expects there; cast where it is open.
        max_rows: Give at most this many of the rows that RETURNING gives.
        timeout_s: How long the statement may take.
    """
    outcome = _run(sql, database, secrets, parameters, max_rows, timeout_s, write=True)
    return {"status": outcome.status, "affected": outcome.affected, **_rows(outcome)}


def _run(
    sql: str,
    database: str,
    secrets: dict[str, str],
    parameters: list[str | int | float | bool | None] | None,
    max_rows: int,
    timeout_s: int,
    *,
    write: bool,
) -> postgres.Outcome:
    return postgres.run(
        sql,
        parameters or (),
        database=database,
        credentials=secrets,
        write=write,
        # JSON has one kind of number: a whole one may come as 5.0.
        max_rows=int(max_rows),
        timeout_s=int(timeout_s),
    )


def _rows(outcome: postgres.Outcome) -> Rows:
    columns: list[Column] = [{"name": name, "type": kind} for name, kind in outcome.columns]
    return {"columns": columns, "rows": outcome.rows, "truncated": outcome.truncated}
