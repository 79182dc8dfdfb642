"""Keys that a database gives out itself. The key of a mapped table comes with each write, and nothing else may make one.

MySQL and MariaDB take a 0 in such a column for "give me the next number": the row is stored under another key, and a later write
of that key overwrites it. On PostgreSQL a sequence that nobody moves on gives out keys that writes have taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sqlalchemy import Connection

from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.shard.engine import MYSQL


def given_out(connection: Connection, kinds: Mapping[str, MessageType]) -> list[str]:
    """Each key column of a mapped table for which the database has numbers, with the statement that ends it.

    None on SQLite: there a row's number is given out for NULL alone, which no write's key is. A missing table has none.
    """
    product = connection.dialect.name
    if product not in _FOUND:
        return []
    findings = [
        f"table {kind.table}, key column {column}: {what}, and keys come from the messages alone. Run: {fix};"
        for kind in kinds.values()
        if kind.table
        for column, what, fix in _FOUND[product](connection, kind)
    ]
    return list(dict.fromkeys(findings))


def _postgresql(connection: Connection, kind: MessageType) -> Iterator[tuple[str, str, str]]:
    query = (
        "SELECT a.attname, a.attidentity, coalesce(pg_get_expr(d.adbin, d.adrelid), '') FROM pg_catalog.pg_attribute a "
        "LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum "
        "WHERE a.attrelid = to_regclass(%s) AND a.attname = ANY (%s) AND NOT a.attisdropped"
    )
    table = ".".join(f'"{part}"' for part in kind.table.split("."))
    for column, identity, default in connection.exec_driver_sql(query, (table, list(kind.key))):
        alter = f'ALTER TABLE {table} ALTER COLUMN "{column}" DROP'
        if identity:
            yield column, "the database numbers it as an identity", f"{alter} IDENTITY"
        elif "nextval(" in default:
            yield column, "the database numbers it by a sequence", f"{alter} DEFAULT"


def _mysql(connection: Connection, kind: MessageType) -> Iterator[tuple[str, str, str]]:
    query = (
        "SELECT column_name, column_type FROM information_schema.columns WHERE table_name = %s "
        "AND table_schema = coalesce(nullif(%s, ''), database()) AND extra LIKE '%%auto_increment%%'"
    )
    space, _, name = kind.table.rpartition(".")
    table = ".".join(f"`{part}`" for part in kind.table.split("."))
    for column, column_type in connection.exec_driver_sql(query, (name, space)):
        if column in kind.key:
            yield column, "it is AUTO_INCREMENT", f"ALTER TABLE {table} MODIFY `{column}` {column_type} NOT NULL"


_FOUND = {"postgresql": _postgresql, **dict.fromkeys(MYSQL, _mysql)}
