"""Rows as one parameter: JSON text that the database itself unfolds into typed rows, by a function of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardctl.fleet.settings.columns import ColumnType
from shardctl.shard.engine import FROM_BASE64, MYSQL

_POSTGRESQL: dict[ColumnType, str] = {
    "text": "text", "integer": "integer", "bigint": "bigint", "number": "double precision", "decimal": "numeric",
    "boolean": "boolean", "timestamp": "timestamptz", "date": "date", "uuid": "uuid", "bytes": "text", "json": "jsonb",
}  # fmt: skip
# Left to itself, a text would have the database's default character set.
_TEXT_OF_MYSQL = "longtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
_MYSQL: dict[ColumnType, str] = {
    "text": _TEXT_OF_MYSQL, "integer": "integer", "bigint": "bigint", "number": "double", "decimal": "decimal(65,30)",
    "boolean": "boolean", "timestamp": "datetime(6)", "date": "date", "uuid": _TEXT_OF_MYSQL, "bytes": _TEXT_OF_MYSQL,
    "json": _TEXT_OF_MYSQL,
}  # fmt: skip


# What makes of a value, as JSON has it, one of its column: SQL to be written before it and behind it.
Form = tuple[str, str]
_FROM_BASE64: Mapping[str, Form] = {
    "postgresql": ("decode(", ", 'base64')"),
    "sqlite": (f"{FROM_BASE64}(", ")"),
    **dict.fromkeys(MYSQL, ("from_base64(", ")")),
}


def rows_of(product: str, columns: Sequence[tuple[str, ColumnType]], forms: Mapping[str, Form] = {}) -> str:
    """A FROM item named `r` that yields one row for each object of a JSON array, its parameter, with these columns.

    Bytes are unpacked, and columns with a form take it. Names hold letters, digits and underscores alone.
    """
    unpacked = {name: _FROM_BASE64[product] for name, column_type in columns if column_type == "bytes"}
    formed = {**unpacked, **{name: forms[name] for name, _ in columns if name in forms}}
    rows = _plain_rows_of(product, columns)
    if not formed:
        return rows
    mark = "`" if product in MYSQL else '"'
    names = {name: f"r.{mark}{name}{mark}" for name, _ in columns}
    listed = ", ".join(
        f"{quoted.join(formed.get(name, ('', '')))} AS {mark}{name}{mark}" for name, quoted in names.items()
    )
    return f"(SELECT {listed} FROM {rows}) AS r"  # noqa: S608


def _plain_rows_of(product: str, columns: Sequence[tuple[str, ColumnType]]) -> str:
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
