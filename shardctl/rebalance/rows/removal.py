"""Deleting what slots left behind in a database when they moved away."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from sqlalchemy import Connection, Engine, inspect, select

from shardctl.errors import ShardctlError
from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.rebalance.rows.effects import mark
from shardctl.rebalance.rows.obstacles import obstacles
from shardctl.rebalance.rows.shape import SlotTable, crossing, foreign_keys
from shardctl.rebalance.rows.tables import slot_tables
from shardctl.rebalance.rows.values import MYSQL
from shardctl.shard import database, schema
from shardctl.shard.lanes import share_fence
from shardctl.shard.schema import LaneState

ROWS_AT_ONCE = 5_000
SLOTS_AT_ONCE = 500


class RemovalError(ShardctlError):
    """Rows that were to be deleted are still in use. What was deleted before stays deleted."""


def delete_slots(
    engine: Engine,
    kinds: Mapping[str, MessageType],
    slots: Collection[int],
    rows_at_once: int = ROWS_AT_ONCE,
    check: Callable[[Connection], None] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Delete all rows of these slots, shardctl's own included, in transactions of at most `rows_at_once`. How many there were.

    Each transaction shares the fence and looks at the lanes: raises RemovalError where a slot is active, due or arriving here,
    and where a deletion may reach more than these rows.
    `check` may raise to forbid it, in the same transaction. Safe to run again.
    `progress` receives how many rows each transaction deleted. On SQLite, and in a table that refers to itself, a
    slot's rows go in one transaction.
    """
    with database.snapshot(engine) as connection:
        tables = slot_tables(connection, kinds)
    total = 0
    listed = sorted(slots)
    for at in range(0, len(listed), SLOTS_AT_ONCE):
        some = listed[at : at + SLOTS_AT_ONCE]
        for table in reversed(tables):  # those that refer to others first
            whole = engine.dialect.name == "sqlite" or table.refers_to_itself
            for part in [[slot] for slot in some] if whole else [some]:
                total += _empty(engine, tables, table, part, None if whole else rows_at_once, check, progress)
    return total


def delete_leftovers(connection: Connection, tables: Sequence[SlotTable], slots: Sequence[int]) -> None:
    """Delete what slots that come back left here, in the caller's transaction. Raises RemovalError.

    Most slots have left nothing. One statement finds that out, since the slots' writes wait for each.
    """
    listed = ", ".join(map(str, slots))
    left = (f"EXISTS (SELECT 1 FROM {table.sql} WHERE {table.slot_sql} IN ({listed}))" for table in tables)  # noqa: S608
    if not connection.exec_driver_sql(f"SELECT {' OR '.join(left)}").scalar():
        return
    for table in reversed(tables):
        _check_unreferred(connection, tables, table, slots)
        connection.exec_driver_sql(_delete(connection.dialect.name, table, slots, None))
    _check_alone(connection, tables)


def not_deletable(engine: Engine, kinds: Mapping[str, MessageType]) -> list[str]:
    """Why `delete_slots` would refuse, by what the tables are. Raises SlotTableError, DatabaseError."""
    with database.snapshot(engine) as connection:
        return list(obstacles(connection, slot_tables(connection, kinds)))


def _empty(
    engine: Engine,
    tables: Sequence[SlotTable],
    table: SlotTable,
    slots: list[int],
    limit: int | None,
    check: Callable[[Connection], None],
    progress: Callable[[int], None],
) -> int:
    total = 0
    while True:
        with database.writing(engine) as connection:
            _check_nobodys(connection, slots)
            check(connection)
            mark(connection)
            _check_unreferred(connection, tables, table, slots)
            deleted = connection.exec_driver_sql(_delete(engine.dialect.name, table, slots, limit)).rowcount
            _check_alone(connection, tables)
        if deleted:
            progress(deleted)
        total += deleted
        if limit is None or deleted < limit:
            return total


def _delete(product: str, table: SlotTable, slots: Sequence[int], limit: int | None) -> str:
    its = f"{table.slot_sql} IN ({', '.join(map(str, slots))})"
    if limit is None:
        return f"DELETE FROM {table.sql} WHERE {its}"  # noqa: S608
    if product in MYSQL:
        return f"DELETE FROM {table.sql} WHERE {its} LIMIT {limit:d}"  # noqa: S608
    # A place is unique within one partition of a table only, so the slot is asked for twice.
    some = f"SELECT ctid FROM {table.sql} WHERE {its} LIMIT {limit:d}"  # noqa: S608
    return f"DELETE FROM {table.sql} WHERE ctid = ANY (ARRAY({some})) AND {its}"  # noqa: S608


def _check_nobodys(connection: Connection, slots: list[int]) -> None:
    """Under the shared fence, so no lane changes until the rows are gone."""
    share_fence(connection)
    lanes = schema.lanes.c
    query = select(lanes.slot).where(lanes.slot.in_(slots), lanes.state != LaneState.LEFT)
    owned = SlotSet.of(connection.scalars(query))
    if owned.ranges:
        raise RemovalError(
            f"slots {owned} are active here, or on their way here: their rows aren't deleted. Look at "
            "`shardctl rebalance status`."
        )


def _check_alone(connection: Connection, tables: Sequence[SlotTable]) -> None:
    """Nothing else was deleted along.

    Asked after the deletion: what came before it, a key that was added a moment ago too, is seen and undone with it.
    """
    if reasons := list(obstacles(connection, tables)):
        raise RemovalError(f"no rows are deleted: {' '.join(reasons)}")
    inspector = inspect(connection)
    for table in tables:
        if foreign_keys(inspector, table.name) != table.foreign_keys:
            raise RemovalError(
                f"table {table.name}: its foreign keys have changed since they were looked at. Run it again."
            )


def _check_unreferred(
    connection: Connection, tables: Collection[SlotTable], table: SlotTable, slots: Sequence[int]
) -> None:
    """A foreign key that passes deletes on would take rows of slots that stay."""
    for other in tables:
        for key in other.foreign_keys:
            if key.table != table.identity or key.on_delete in {"NO ACTION", "RESTRICT"}:
                continue  # the database refuses by itself
            its = ", ".join(map(str, slots))
            stays = (
                f"p.{table.slot_sql} IN ({its}) AND (c.{other.slot_sql} IS NULL OR c.{other.slot_sql} NOT IN ({its}))"
            )
            query = crossing(connection.dialect.name, other, key, table, stays)
            if connection.exec_driver_sql(query).first() is not None:
                raise RemovalError(
                    f"rows of {other.name} in slots that stay refer to rows of {table.name} in slots {SlotSet.of(slots)}, and "
                    f"would be deleted or changed with them. Give both rows one routing key, or "
                    "drop the foreign key."
                )
