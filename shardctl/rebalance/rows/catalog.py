"""How tables are named in a database's own catalog, for questions that reflection doesn't answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection

from shardctl.rebalance.rows.shape import SlotTable
from shardctl.rebalance.rows.values import MYSQL

# Each of the `regclasses` that it takes, by its place among them, with all that a statement on it reaches too: its partitions,
# the tables that inherit from it, and theirs in turn. These are parts.
POSTGRESQL_FAMILIES = """
WITH RECURSIVE family (place, member, part) AS (
    SELECT place - 1, CAST(named AS oid), false FROM unnest(CAST(%s AS regclass[])) WITH ORDINALITY AS given (named, place)
    UNION
    SELECT family.place, i.inhrelid, true FROM family JOIN pg_catalog.pg_inherits i ON i.inhparent = family.member
)"""


def regclasses(tables: Iterable[SlotTable]) -> list[str]:
    """The tables' names as PostgreSQL reads a regclass."""
    return [table.sql.replace("%%", "%") for table in tables]


def place_of(table: SlotTable) -> tuple[str, str]:
    """Schema and name, the schema being the session's own where the table names none. MySQL's schema is a database."""
    space, _, name = table.identity.rpartition(".")
    return space, name


def mysql_account(connection: Connection) -> str:
    """The user as GRANT names it: with the host from which it may come."""
    name, _, host = str(connection.exec_driver_sql("SELECT current_user()").scalar()).rpartition("@")
    return f"'{name}'@'{host}'"


def columns_of_all(connection: Connection, tables: Sequence[SlotTable]) -> list[frozenset[str]]:
    """Every column that each table has now, those too that MySQL's `SELECT *` leaves out as INVISIBLE.

    In one statement where the database names them without its catalog: slots are closed for as long as it takes to ask.
    """
    if connection.dialect.name in MYSQL:
        query = "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s"
        return [frozenset(row[0] for row in connection.exec_driver_sql(query, place_of(table))) for table in tables]
    listed = ", ".join(f"t{place}.*, NULL AS {_NEXT_TABLE}" for place in range(len(tables)))
    joined = ", ".join(f"{table.sql} AS t{place}" for place, table in enumerate(tables))
    with connection.exec_driver_sql(f"SELECT {listed} FROM {joined} WHERE 1 = 0") as result:  # noqa: S608
        names = [column[0] for column in result.cursor.description]
    columns: list[frozenset[str]] = []
    for _ in tables:
        end = names.index(_NEXT_TABLE)
        columns.append(frozenset(names[:end]))
        del names[: end + 1]
    return columns


_NEXT_TABLE = "shardctl_next_table"
