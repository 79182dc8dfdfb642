"""The tables whose rows belong to slots: the message types' own, their `slot_tables`, shardctl's inbox and what is parked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, inspect

from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.rebalance.rows.shape import Named, SlotTable, SlotTableError, look_at
from shardctl.shard import changes, schema

_PARKED_KEY, _PARKED = ("message_type", "partition_key"), schema.parked_keys.name
OWN = (
    Named(schema.inbox.name, "slot", key=("identity",), logged_as=schema.inbox.name, in_digits=True),
    Named(schema.parked_keys.name, "slot", key=_PARKED_KEY, logged_as=_PARKED),
    Named(schema.parked.name, "slot", order="position", key=_PARKED_KEY, logged_as=_PARKED),
)


def named(kinds: Mapping[str, MessageType]) -> tuple[Named, ...]:
    """Every table of these message types, and shardctl's own. Raises SlotTableError where two types disagree."""
    tables: dict[str, Named] = {}
    for kind in kinds.values():
        listed = [
            Named(
                name,
                table.slot,
                key=(table.routing_key,) if table.routing_key else (),
                logged_as=changes.ROUTING_KEY,
                uuids=frozenset(
                    [table.routing_key] if table.routing_key and kind.types.get(kind.routing_field) == "uuid" else []
                ),
            )
            for name, table in kind.slot_tables.items()
        ]
        if kind.table:
            its_own = Named(
                kind.table,
                kind.slot_column,
                frozenset(kind.columns),
                key=kind.key,
                logged_as=kind.table,
                uuids=frozenset(column for column in kind.key if kind.types[column] == "uuid"),
            )
            listed.insert(0, its_own)
        for table in listed:
            before = tables.setdefault(table.name, table)
            if before.slot_column != table.slot_column:
                raise SlotTableError(
                    f"table {table.name}: one message type has its slot in {before.slot_column!r}, another in "
                    f"{table.slot_column!r}. Give both the same slot column in shards.yaml."
                )
            same = (before.key, before.logged_as) == (table.key, table.logged_as)
            tables[table.name] = replace(before, given=before.given | table.given, key=before.key if same else ())
    return (*tables.values(), *OWN)


_known: WeakKeyDictionary[Engine, dict[tuple[Named, ...], tuple[SlotTable, ...]]] = WeakKeyDictionary()


def slot_tables(connection: Connection, kinds: Mapping[str, MessageType]) -> tuple[SlotTable, ...]:
    """The tables as the database has them, each after those that it refers to. Looked at once for each engine.

    Raises SlotTableError where one, or its slot column, is missing.
    """
    wanted = named(kinds)
    known = _known.setdefault(connection.engine, {})
    if wanted not in known:
        inspector = inspect(connection)
        tables: dict[str, SlotTable] = {}
        for entry in wanted:
            table = look_at(inspector, entry)
            if table is None:
                raise SlotTableError(f"there is no table {entry.name}. `shardctl provision` creates what is missing.")
            tables.setdefault(table.identity, table)
        known[wanted] = in_order(tables.values())
    return known[wanted]


def remember(engine: Engine, wanted: tuple[Named, ...], tables: Iterable[SlotTable]) -> None:
    """Spare the first slot, whose writes wait, the look at the tables."""
    _known.setdefault(engine, {})[wanted] = in_order({table.identity: table for table in tables}.values())


def in_order(tables: Iterable[SlotTable]) -> tuple[SlotTable, ...]:
    """Each table after those it refers to. Where they refer to each other in a ring, no order helps: as they come."""
    by_identity = {table.identity: table for table in tables}
    sorter = TopologicalSorter(
        {
            table.identity: {
                key.table for key in table.foreign_keys if key.table != table.identity and key.table in by_identity
            }
            for table in by_identity.values()
        }
    )
    try:
        return tuple(by_identity[identity] for identity in sorter.static_order())
    except CycleError:
        return tuple(by_identity.values())


def row_count_up_to(connection: Connection, tables: Iterable[SlotTable], slot: int, most: int) -> int:
    """How many rows a slot has; counting ends at `most`."""
    rows = 0
    for table in tables:
        some = f"SELECT 1 FROM {table.sql} WHERE {table.slot_sql} = {slot:d} LIMIT {most - rows:d}"  # noqa: S608
        rows += connection.exec_driver_sql(f"SELECT count(*) FROM ({some}) AS listed").scalar_one()  # noqa: S608
        if rows >= most:
            break
    return rows


def row_counts(connection: Connection, kinds: Mapping[str, MessageType]) -> Counter[int]:
    """Rows by slot, of all tables together, shardctl's own included: what moving each slot takes."""
    counts: Counter[int] = Counter()
    for table in slot_tables(connection, kinds):
        query = f"SELECT {table.slot_sql}, count(*) FROM {table.sql} GROUP BY {table.slot_sql}"  # noqa: S608
        counts.update({slot: rows for slot, rows in connection.exec_driver_sql(query) if slot is not None})
    return counts
