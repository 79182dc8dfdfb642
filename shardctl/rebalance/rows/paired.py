"""A table on both sides of a copy: which column goes where, and in which form its values travel and are compared. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import Connection

from shardctl.rebalance.rows.shape import Column, SlotTable, SlotTableError, quoted
from shardctl.rebalance.rows.values import Convert, Kind, canonical, meeting, writer

Conversions = tuple[tuple[int, Convert], ...]  # by the column's place


@dataclass(frozen=True, slots=True)
class Paired:
    """`verbatim`: PostgreSQL's own text of a row means the same on both sides, so rows travel and are compared as it."""

    name: str
    source: SlotTable
    destination: SlotTable
    read_source: str  # SQL, to be ended by the slots and `order`
    read_destination: str
    order: str
    columns_sql: str  # of the destination
    writing: Conversions
    comparing: Conversions
    verbatim: bool


def pair(source: Connection, source_table: SlotTable, destination: Connection, destination_table: SlotTable) -> Paired:
    """Raises SlotTableError where a column is missing at the destination, or can't hold the source's values."""
    return _pair(source.dialect.name, source_table, destination.dialect.name, destination_table)


@lru_cache(maxsize=4096)
def _pair(source: str, source_table: SlotTable, destination: str, destination_table: SlotTable) -> Paired:
    there = {column.name: column for column in destination_table.columns}
    writing: list[tuple[int, Convert]] = []
    comparing: list[tuple[int, Convert]] = []
    for place, column in enumerate(source_table.columns):
        if column.name not in there:
            raise SlotTableError(
                f"table {source_table.name}: there is no column {column.name} at the destination. Add it."
            )
        to = there[column.name]
        write, compare = _conversions(source, column, destination, to, source_table.name)
        if write:
            writing.append((place, write))
        if compare:
            comparing.append((place, compare))
    order = source_table.named.order
    return Paired(
        name=source_table.name,
        source=source_table,
        destination=destination_table,
        read_source=_reading(source_table, source_table.columns),
        read_destination=_reading(destination_table, tuple(there[column.name] for column in source_table.columns)),
        order="" if order is None else f" ORDER BY {order}",
        columns_sql=", ".join(quoted(destination, column.name) for column in source_table.columns),
        writing=tuple(writing),
        comparing=tuple(comparing),
        verbatim=source == destination == "postgresql"
        and all(column.native == there[column.name].native for column in source_table.columns),
    )


def _conversions(
    source: str, column: Column, destination: str, to: Column, table: str
) -> tuple[Convert | None, Convert | None]:
    if source == destination and (column.native == to.native or source == "sqlite"):
        return None, None  # what was read is what is stored; SQLite's columns hold values of any type
    met = meeting(column.kind, to.kind)
    if met is None or Kind.UNKNOWN in {column.kind, to.kind}:
        raise SlotTableError(
            f"table {table}, column {column.name}: {column.native or 'its type'} can't become {to.native or 'the other'}."
        )
    precision = min(column.precision, to.precision)
    return writer(destination, column.kind, to.kind, to.precision), canonical(met, precision)


def _reading(table: SlotTable, columns: tuple[Column, ...]) -> str:
    listed = ", ".join(column.read for column in columns)
    return f"SELECT {listed} FROM {table.sql} WHERE {table.slot_sql} IN "  # noqa: S608
