"""Whether the log of changes records every change in a slot's tables. Where it doesn't, the slot is copied inside its pause.

The log has what writers know: the rows that they write, and routing keys. What a database changes by itself isn't in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import Connection

from shardctl.rebalance.rows.catalog import place_of
from shardctl.rebalance.rows.shape import ForeignKey, SlotTable
from shardctl.rebalance.rows.values import MYSQL
from shardctl.shard import changes, schema
from shardctl.shard.collations import folding

OWN_NAMES = frozenset(schema.metadata.tables)  # what is unique there has the slot in it
_STRICT = {"NO ACTION", "RESTRICT"}


def untracked(source: Connection, tables: Sequence[SlotTable]) -> Iterator[str]:
    """Why changes of these tables may be missing from the log, each reason with the way out."""
    by_identity = {table.identity: table for table in tables}
    for table in tables:
        if not table.named.key:
            yield (
                f"table {table.name}: shards.yaml doesn't name the column that holds its rows' routing key. Write "
                f"`{table.name}: {{slot: {table.named.slot_column}, routing_key: …}}` under slot_tables."
            )
        for key in table.foreign_keys:
            if (parent := by_identity.get(key.table)) is not None:
                yield from _by_reference(table, _actions(source, table, key, parent), parent)
    yield from shared_values(tables)
    yield from _loose_keys(source, tables)
    yield from _written_by_others(source, tables)


def _actions(source: Connection, table: SlotTable, key: ForeignKey, parent: SlotTable) -> set[str]:
    """What becomes of rows when those that they refer to change or go."""
    if source.dialect.name != "sqlite":
        return {key.on_delete, key.on_update}
    listed = source.exec_driver_sql(f"PRAGMA foreign_key_list({table.sql})").mappings()
    name = place_of(parent)[1].lower()
    its_keys = [row for row in listed if row["table"].lower() == name]
    return {row[when] for row in its_keys for when in ("on_delete", "on_update")}


def _by_reference(table: SlotTable, actions: set[str], parent: SlotTable) -> Iterator[str]:
    if not actions <= _STRICT:
        yield (
            f"table {table.name}: its foreign key to {parent.name} changes its rows with the other's, which isn't "
            "logged. Let it refuse instead (NO ACTION)."
        )
    if parent.named.logged_as == changes.ROUTING_KEY:
        yield f"table {parent.name}: rows of {table.name} refer to it, and its rows are known by their routing key alone."


def shared_values(tables: Iterable[SlotTable]) -> Iterator[str]:
    """Unique values that pass between slots. A row that was copied ahead would hold one that its slot has given up since, and the
    destination would refuse another slot's write of that value, though nothing is wrong with it.

    Primary keys are taken to stay with their routing key. Ask for the tables of both databases.
    """
    for table in tables:
        if table.name in OWN_NAMES:
            continue
        apart = {table.named.slot_column}, set(table.named.key)
        for columns in table.unique:
            if columns != table.primary and not any(part and part <= set(columns) for part in apart):
                where = ", ".join(columns) or "an expression"
                yield (
                    f"table {table.name}: values that are unique in {where} may pass from one slot to another. Make them unique "
                    "together with the key or the slot."
                )


def _loose_keys(source: Connection, tables: Iterable[SlotTable]) -> Iterator[str]:
    """Key columns in which texts that differ may be equal: a write of one key may touch the row of another."""
    if source.dialect.name != "postgresql":
        return  # there keys are compared as bytes: see `keys`
    for table in tables:
        for column in folding(source, *place_of(table), table.named.key):
            yield f"table {table.name}: two keys that differ may be equal in {column}. Give it a deterministic collation."


def _written_by_others(source: Connection, tables: Sequence[SlotTable]) -> Iterator[str]:
    """Triggers and rules whose text names another table that moves: what they write there, no writer knows."""
    names = {place_of(table)[1] for table in tables}
    for table in tables:
        for kind, name, text in _triggers(source, table):
            others = names - ({place_of(table)[1]} if source.dialect.name == "sqlite" else set())
            met = [
                other for other in sorted(others) if re.search(rf"(?<!\w){re.escape(other)}(?!\w)", text, re.IGNORECASE)
            ]
            if kind == "rule" or met:
                what = (
                    f"names {', '.join(met)}, and what it writes there isn't logged"
                    if met
                    else "changes what is written"
                )
                yield f"table {table.name}: its {kind} {name} {what}. Drop it, or do its work in the writes themselves."


def _triggers(source: Connection, table: SlotTable) -> list[tuple[str, str, str]]:
    parameters: tuple[str, ...]
    if source.dialect.name == "postgresql":
        query, parameters = _POSTGRESQL, (table.sql.replace("%%", "%"),) * 2
    elif source.dialect.name in MYSQL:
        query, parameters = _MYSQL, place_of(table)
    else:
        query, parameters = _SQLITE, (place_of(table)[1],)
    return [(kind, name, text or "") for kind, name, text in source.exec_driver_sql(query, parameters)]


_POSTGRESQL = """
SELECT 'trigger', t.tgname, p.prosrc FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
WHERE t.tgrelid = CAST(%s AS regclass) AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
UNION ALL
SELECT 'rule', r.rulename, '' FROM pg_catalog.pg_rewrite r
WHERE r.ev_class = CAST(%s AS regclass) AND r.ev_enabled IN ('O', 'A')"""
_MYSQL = """
SELECT 'trigger', trigger_name, action_statement FROM information_schema.triggers
WHERE event_object_schema = %s AND event_object_table = %s"""
_SQLITE = """
SELECT 'trigger', name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE"""
