"""What a copy of a table's rows would miss: rows that a policy or a view hides, columns of heirs, history."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sqlalchemy import Connection

from shardctl.rebalance.rows.catalog import place_of, regclasses
from shardctl.rebalance.rows.shape import SlotTable
from shardctl.rebalance.rows.values import MYSQL
from shardctl.shard.database import SEE_EVERY_ROW

_POSTGRESQL = """
SELECT c.relkind, row_security_active(c.oid),
       (SELECT string_agg(CAST(CAST(i.inhrelid AS regclass) AS text), ', ' ORDER BY i.inhrelid)
        FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid AND c.relkind = 'r')
FROM pg_catalog.pg_class c WHERE c.oid = CAST(%s AS regclass)"""
_MYSQL = """
SELECT t.table_type, t.engine, e.transactions
FROM information_schema.tables t LEFT JOIN information_schema.engines e ON e.engine = t.engine
WHERE t.table_schema = %s AND t.table_name = %s"""
_SQLITE = "SELECT type FROM sqlite_master WHERE name = ? COLLATE NOCASE AND type IN ('table', 'view')"


def hidden(connection: Connection, tables: Iterable[SlotTable]) -> Iterator[str]:
    """Why a copy of these tables' rows wouldn't be whole, or couldn't be undone, each reason with the way out."""
    product = connection.dialect.name
    of_one = _of_postgresql if product == "postgresql" else _of_mysql if product in MYSQL else _of_sqlite
    for table in tables:
        yield from of_one(connection, table)


def _of_postgresql(connection: Connection, table: SlotTable) -> Iterator[str]:
    kind, is_bound, heirs = connection.exec_driver_sql(_POSTGRESQL, tuple(regclasses([table]))).one()
    if kind not in {"r", "p"}:
        yield _no_table(table)
    if is_bound:
        yield f"table {table.name}: a row-level security policy binds the URL's user, and may hide rows. {SEE_EVERY_ROW}"
    if heirs:
        yield (
            f"table {table.name}: {heirs} inherit from it, and their rows would be moved without their own columns. Make them "
            "partitions; or end it by `ALTER TABLE … NO INHERIT`, and name them under slot_tables where their rows are to move."
        )


def _of_mysql(connection: Connection, table: SlotTable) -> Iterator[str]:
    kind, engine, transactions = connection.exec_driver_sql(_MYSQL, place_of(table)).one()
    if kind == "SYSTEM VERSIONED":
        yield (
            f"table {table.name} is system-versioned, and the history of its rows would stay behind. Keep history in a table of "
            f"its own, and end it by `ALTER TABLE {table.name} DROP SYSTEM VERSIONING`."
        )
    elif kind != "BASE TABLE":
        yield _no_table(table)
    elif transactions != "YES":
        yield (
            f"table {table.name}: its engine {engine} has no transactions, so a copy that fails would stay half done. Run "
            f"`ALTER TABLE {table.name} ENGINE=InnoDB`."
        )


def _of_sqlite(connection: Connection, table: SlotTable) -> Iterator[str]:
    if connection.exec_driver_sql(_SQLITE, (place_of(table)[1],)).scalar() != "table":
        yield _no_table(table)


def _no_table(table: SlotTable) -> str:
    return f"{table.name} is a view or a foreign table, which may show only some rows. Name its table in shards.yaml."
