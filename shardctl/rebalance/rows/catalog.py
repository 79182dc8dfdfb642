"""How tables are named in a database's own catalog, for questions that reflection doesn't answer."""

from __future__ import annotations

from collections.abc import Iterable

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


def column_names(connection: Connection, table: SlotTable) -> frozenset[str]:
    """Every column that the table has now, those too that MySQL's `SELECT *` leaves out as INVISIBLE."""
    if connection.dialect.name in MYSQL:
        query = "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s"
        return frozenset(row[0] for row in connection.exec_driver_sql(query, place_of(table)))
    with connection.exec_driver_sql(f"SELECT * FROM {table.sql} WHERE 1 = 0") as result:  # noqa: S608
        return frozenset(result.keys())
