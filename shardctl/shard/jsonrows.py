"""Rows as one parameter: JSON text that the database itself unfolds into typed rows, by a function of its own."""

from __future__ import annotations

from collections.abc import Sequence

from shardctl.fleet.settings.messagetypes import ColumnType
from shardctl.shard.engine import MYSQL

_POSTGRESQL: dict[ColumnType, str] = {
    "text": "text", "integer": "integer", "bigint": "bigint", "number": "double precision", "decimal": "numeric",
    "boolean": "boolean", "timestamp": "timestamptz", "json": "jsonb",
}  # fmt: skip
# Left to itself, a text would have the database's default character set.
_TEXT_OF_MYSQL = "longtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
_MYSQL: dict[ColumnType, str] = {
    "text": _TEXT_OF_MYSQL, "integer": "integer", "bigint": "bigint", "number": "double", "decimal": "decimal(65,30)",
    "boolean": "boolean", "timestamp": "datetime(6)", "json": _TEXT_OF_MYSQL,
}  # fmt: skip


def rows_of(product: str, columns: Sequence[tuple[str, ColumnType]]) -> str:
    """A FROM item named `r` that yields one row for each object of a JSON array, its parameter, with these columns.

    Names hold letters, digits and underscores alone.
    """
    if product == "postgresql":
        listed = ", ".join(f'"{name}" {_POSTGRESQL[column_type]}' for name, column_type in columns)
        return f"json_to_recordset(CAST(%s AS json)) AS r({listed})"
    if product in MYSQL:
        listed = ", ".join(
            f"`{name}` {_MYSQL[column_type]} PATH '$.\"{name}\"' NULL ON EMPTY ERROR ON ERROR"
            for name, column_type in columns
        )
        return f"JSON_TABLE(%s, '$[*]' COLUMNS ({listed})) AS r"
    listed = ", ".join(f'json_extract(item.value, \'$."{name}"\') AS "{name}"' for name, _ in columns)
    return f"(SELECT {listed} FROM json_each(?) AS item WHERE true) AS r"  # noqa: S608
