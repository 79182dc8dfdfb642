"""Names of tables and columns that a database would cut, take for one another, or keep for itself. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.fleet.spec import Fleet
from shardctl.fleet.spec_errors import Fault

OWN_TABLES = "shardctl_"
# PostgreSQL cuts a longer name without an error, and MariaDB and MySQL refuse one of more than 64.
MAX_BYTES = 63
_SYSTEM_SCHEMAS = frozenset(("information_schema", "mysql", "performance_schema", "sys"))
_SYSTEM_PREFIXES = ("pg_", "sqlite_")


def faults(fleet: Fleet) -> Iterator[Fault]:
    tables: dict[str, str] = {}  # the first type of each table, by the name in lower case
    for name, kind in fleet.message_types.items():
        at = ("message_types", name)
        for table in kind.slot_tables:
            yield from _bad_name((*at, "slot_tables", table), table)
        if not kind.table:
            continue
        yield from _bad_name((*at, "table"), kind.table)
        yield from _twin_columns((*at, "columns"), kind)
        other = tables.setdefault(kind.table.lower(), name)
        yield from _twin_tables((*at, "table"), kind, other, fleet.message_types[other])


def slot_columns(kinds: Mapping[str, MessageType]) -> dict[str, str]:
    """Each table whose rows belong to slots of these types, with its slot column."""
    columns: dict[str, str] = {}
    for kind in kinds.values():
        if kind.table:
            columns.setdefault(kind.table, kind.slot_column)
        for name, table in kind.slot_tables.items():
            columns.setdefault(name, table.slot)
    return columns


def _bad_name(at: tuple[str, ...], table: str) -> Iterator[Fault]:
    schema, _, bare = table.lower().rpartition(".")
    if bare.startswith(OWN_TABLES):
        yield Fault(
            at,
            f"{table!r} would meet shardctl's own tables, which begin with {OWN_TABLES!r}.",
            "choose another name for the table.",
        )
    elif schema in _SYSTEM_SCHEMAS or (schema or bare).startswith(_SYSTEM_PREFIXES):
        yield Fault(at, f"{table!r} is where a database keeps its own tables.", "choose another name.")
    if too_long := next((part for part in table.split(".") if len(part) > MAX_BYTES), None):
        yield Fault(
            at,
            f"a name of {len(too_long)} bytes: PostgreSQL cuts names after {MAX_BYTES} bytes.",
            f"take {MAX_BYTES} or fewer.",
        )


def _twin_columns(at: tuple[str, ...], kind: MessageType) -> Iterator[Fault]:
    first = {kind.slot_column.lower(): kind.slot_column}
    for column in kind.columns:
        other = first.setdefault(column.lower(), column)
        if other != column:
            yield Fault(
                (*at, column),
                f"{column!r} and {other!r} differ in case alone, and are one column on MariaDB, MySQL and SQLite.",
                "rename one.",
            )


def _twin_tables(at: tuple[str, ...], kind: MessageType, other: str, first: MessageType) -> Iterator[Fault]:
    if kind.table != first.table:
        yield Fault(
            at,
            f"{kind.table!r} and {first.table!r} of type {other!r} differ in case alone, and are one table on SQLite and some "
            "servers of MariaDB and MySQL.",
            "write both alike, or rename one.",
        )
    elif (kind.key, kind.columns, kind.slot_column) != (first.key, first.columns, first.slot_column):
        yield Fault(
            at,
            f"{kind.table!r} is described differently by type {other!r}.",
            "give both the same key, columns and slot_column.",
        )
