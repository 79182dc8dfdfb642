"""Whether a shard's database has the tables and columns that message types write to. The one place for this fact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.shard.engine import MYSQL


@dataclass(frozen=True, slots=True, order=True)
class Lack:
    """A column that the database doesn't have; without `column` the whole table. `is_slot`: it holds the rows' slots."""

    table: str
    column: str = ""
    is_slot: bool = False

    def __str__(self) -> str:
        if not self.column:
            return f"there is no table {self.table}: `shardctl provision` makes it"
        if self.is_slot:
            return f"table {self.table} has no slot column {self.column}: `shardctl adopt` adds it"
        return f"table {self.table} has no column {self.column}: `shardctl migrate plan` drafts it, `… apply` adds it"


def lacking(connection: Connection, kinds: Mapping[str, MessageType]) -> tuple[Lack, ...]:
    """What these message types write to and the database doesn't have, each once. It takes no right on the tables to see it."""
    lacks: dict[Lack, None] = {}
    for kind in kinds.values():
        if not kind.table:
            continue
        present = _columns(connection, kind.table)
        if not present:
            lacks[Lack(kind.table)] = None
            continue
        wanted = {**dict.fromkeys(kind.columns, False), kind.slot_column: True}
        for column, is_slot in wanted.items():
            if _folded(connection, column) not in present:
                lacks[Lack(kind.table, column, is_slot)] = None
    return tuple(lacks)


_COLUMNS = {
    "postgresql": (
        "SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
    ),
    **dict.fromkeys(
        MYSQL,
        "SELECT column_name FROM information_schema.columns WHERE table_name = %s "
        "AND table_schema = coalesce(nullif(%s, ''), database())",
    ),
    "sqlite": "SELECT name FROM pragma_table_xinfo(?, coalesce(nullif(?, ''), 'main'))",
}


def _columns(connection: Connection, table: str) -> frozenset[str]:
    """None of a table that isn't there."""
    product, (space, _, name) = connection.dialect.name, table.rpartition(".")
    quoted = ".".join(f'"{part}"' for part in table.split("."))
    parameters = (quoted,) if product == "postgresql" else (name, space)
    rows = connection.exec_driver_sql(_COLUMNS[product], parameters)
    return frozenset(_folded(connection, column) for (column,) in rows)


def _folded(connection: Connection, column: str) -> str:
    """PostgreSQL alone distinguishes upper and lower case."""
    return column if connection.dialect.name == "postgresql" else column.lower()
