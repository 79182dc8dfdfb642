"""Storage engines of MySQL and MariaDB without transactions, such as MyISAM and Aria.

A write's effect has to commit with its row in the inbox, and to go with it where the transaction is rolled back. In such a table
it stays, whatever becomes of the transaction: a write that is refused, or whose slot has moved away, would take effect.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.shard.engine import MYSQL

_ENGINE = """
SELECT t.engine FROM information_schema.tables t JOIN information_schema.engines e ON e.engine = t.engine
WHERE t.table_name = %s AND t.table_schema = coalesce(nullif(%s, ''), database()) AND e.transactions = 'NO'"""


def without_transactions(connection: Connection, kinds: Iterable[MessageType]) -> list[str]:
    """Each table that these types' writes change and whose engine has no transactions, with the statement that changes that.

    None on other databases. A missing table and a view have no engine.
    """
    tables = dict.fromkeys(table for kind in kinds for table in (kind.table, *kind.slot_tables) if table)
    return [
        f"table {table}: its engine {engine} has no transactions, so a write could take effect that was refused. "
        f"Run: ALTER TABLE {_quoted(table)} ENGINE=InnoDB;"
        for table in tables
        if (engine := engine_without_transactions(connection, table))
    ]


def engine_without_transactions(connection: Connection, table: str) -> str | None:
    """The engine's name, where it has none."""
    if connection.dialect.name not in MYSQL:
        return None
    space, _, name = table.rpartition(".")
    engine: str | None = connection.exec_driver_sql(_ENGINE, (name, space)).scalar()
    return engine


def _quoted(table: str) -> str:
    return ".".join(f"`{part}`" for part in table.split("."))
