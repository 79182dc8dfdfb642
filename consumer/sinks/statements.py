"""The text of the sink's statements. Each takes one parameter: the rows as JSON text.

Identifiers come from the spec, which allows only letters, digits and underscores.
"""

from __future__ import annotations

from collections.abc import Mapping

from consumer.database.dialects import Dialect
from consumer.sinks.grouping import Shape
from shardctl.fleet.settings.columns import type_of
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.shard.jsonrows import Form


def writing(dialect: Dialect, kind: MessageType, shape: Shape, forms: Mapping[str, Form] = {}) -> tuple[str, ...]:
    """The statements of a shape's writes, in order, with values in the `forms` that their columns take.

    The rows that they touch add up to the writes that aren't stale.
    """
    quote, operation = dialect.quote, shape[1]
    table, version = quote(kind.table), kind.version_column
    given = [column for column in kind.columns if column in shape[2]]
    columns = [*((column, type_of(kind.columns[column])) for column in given), (kind.slot_column, "integer")]
    names = [quote(column) for column, _ in columns]
    source = dialect.source(columns, forms)
    newer = (
        f"(t.{quote(version)} IS NULL OR t.{quote(version)} < {{}}.{quote(version)})"
        if version and version in given
        else ""
    )
    same_row = _same_row(dialect, kind)
    where = f"{same_row} AND {newer.format('r')}" if newer else same_row
    if operation == "delete":
        return (dialect.delete(table, source, where),)
    settable = [name for name in names if name not in {quote(column) for column in kind.key}]
    update = dialect.update(table, settable, source, where)
    if operation == "update":
        return (update,)
    listed = ", ".join(names)
    rows = f"({listed}) SELECT {listed} FROM {source} WHERE"  # noqa: S608
    if operation == "insert":
        return (f"INSERT INTO {table} {rows} true",)
    if not dialect.has_on_conflict:
        # Another session may insert such a row between the two: the duplicate is a fault, and the search tries the write again.
        missing = f"NOT EXISTS (SELECT 1 FROM {table} AS t WHERE {same_row})"  # noqa: S608
        return update, f"INSERT INTO {table} {rows} {missing}"
    keys = ", ".join(quote(column) for column in kind.key)
    assigned = ", ".join(f"{name} = excluded.{name}" for name in settable)
    guard = f" WHERE {newer.format('excluded')}" if newer else ""
    return (f"INSERT INTO {table} AS t {rows} true ON CONFLICT ({keys}) DO UPDATE SET {assigned}{guard}",)


def finding(dialect: Dialect, kind: MessageType, forms: Mapping[str, Form] = {}) -> str:
    """Selects the keys, as the table holds them, of the rows that exist."""
    columns = [(column, type_of(kind.columns[column])) for column in kind.key]
    listed = ", ".join(f"t.{dialect.quote(column)}" for column in kind.key)
    tables = f"{dialect.quote(kind.table)} AS t, {dialect.source(columns, forms)}"
    return f"SELECT {listed} FROM {tables} WHERE {_same_row(dialect, kind)}"  # noqa: S608


def _same_row(dialect: Dialect, kind: MessageType) -> str:
    return " AND ".join(dialect.same(dialect.quote(column), type_of(kind.columns[column])) for column in kind.key)
