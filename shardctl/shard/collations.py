"""Columns in which two texts that differ may be equal, since their collation folds case, accents or blanks.

A routing key is hashed as it is written. In such a column two keys, in two slots, may be one row.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection

from shardctl.shard.engine import MYSQL

_POSTGRESQL = """
SELECT a.attname FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation
WHERE a.attrelid = CAST(%s AS regclass)
AND (NOT coalesce(c.collisdeterministic, true) OR format_type(a.atttypid, NULL) LIKE '%%citext')"""
_MYSQL = r"""
SELECT column_name FROM information_schema.columns
WHERE table_schema = coalesce(nullif(%s, ''), database()) AND table_name = %s AND collation_name NOT LIKE '%%\_bin'"""


def folding(connection: Connection, schema: str, table: str, columns: Collection[str]) -> list[str]:
    """Which of the columns fold, in the table's order; none on SQLite. `schema` is empty for the session's own."""
    if connection.dialect.name == "postgresql":
        quote = connection.dialect.identifier_preparer.quote_identifier
        rows = connection.exec_driver_sql(_POSTGRESQL, (".".join(quote(part) for part in (schema, table) if part),))
    elif connection.dialect.name in MYSQL:
        rows = connection.exec_driver_sql(_MYSQL, (schema, table))
    else:
        return []
    return [column for column in rows.scalars() if column in columns]
