"""What the shards' databases report to a planner: how often each slot is written, and how many rows a move would copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnClause, Connection, and_, column, func, inspect, or_, select, table

from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.spec import Fleet
from shardctl.rebalance.planning.plan import Move
from shardctl.shard.database import connect, snapshot
from shardctl.shard.schema import inbox

SLOTS_PER_SECOND = 8  # that change databases: what the executor hands over, where rows are few
STAYING_PER_SECOND = 256  # slots that only change generation
ROWS_PER_SECOND = 10_000  # a guess for PostgreSQL near by; it depends on rows and network


def measured(urls: Iterable[str], window: timedelta, now: datetime) -> dict[int, float]:
    """Writes a second of each slot that was written in the last `window`, over all databases. Raises DatabaseError."""
    counts: dict[int, int] = {}
    since = now - window
    query = select(inbox.c.slot, func.count()).where(inbox.c.applied_time >= since).group_by(inbox.c.slot)
    for url in dict.fromkeys(urls):
        engine = connect(url)
        try:
            with snapshot(engine) as connection:
                for slot, count in connection.execute(query):
                    counts[slot] = counts.get(slot, 0) + count
        finally:
            engine.dispose()
    return {slot: count / window.total_seconds() for slot, count in counts.items()}


def rows_to_copy(fleet: Fleet, moves: Sequence[Move], urls: Mapping[str, str]) -> int:
    """The rows of the slots that move, mapped tables' and the inbox's, in the sources' databases. Raises DatabaseError."""
    leaving: dict[str, SlotSet] = {}
    for move in moves:
        leaving[move.source] = leaving.get(move.source, SlotSet()) | move.slots
    rows = 0
    for name, slots in leaving.items():
        engine = connect(urls[name])
        try:
            with snapshot(engine) as connection:
                rows += _rows(connection, fleet, slots)
        finally:
            engine.dispose()
    return rows


def _rows(connection: Connection, fleet: Fleet, slots: SlotSet) -> int:
    kinds = {(kind.table, kind.slot_column) for kind in fleet.message_types.values() if kind.table}
    rows, looking = 0, inspect(connection)
    for place, slot_column in sorted({*kinds, (inbox.name, inbox.c.slot.name)}):
        schema, _, name = place.rpartition(".")
        if looking.has_table(name, schema=schema or None):
            slot: ColumnClause[int] = column(slot_column)
            mine = or_(*(and_(slot >= first, slot <= last) for first, last in slots.ranges))
            rows += (
                connection.scalar(
                    select(func.count()).select_from(table(name, slot, schema=schema or None)).where(mine)
                )
                or 0
            )
    return rows


def expected_seconds(moved: int, staying: int, rows: int | None) -> float:
    """How long the hand-over takes, roughly; without `rows` only what the slots take by themselves."""
    return moved / SLOTS_PER_SECOND + staying / STAYING_PER_SECOND + (rows or 0) / ROWS_PER_SECOND
