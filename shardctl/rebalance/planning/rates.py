"""What the shards' databases report to a planner: how often each slot is written, and how many rows a move would copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnClause, Connection, and_, column, func, inspect, or_, select, table

from shardctl.fleet.keyspace import SlotSet
from shardctl.fleet.spec import Fleet
from shardctl.rebalance.bases import FEW_ROWS
from shardctl.rebalance.handover import kinds_of
from shardctl.rebalance.planning.plan import Move
from shardctl.rebalance.rows.shape import SlotTableError
from shardctl.rebalance.rows.tables import slot_tables
from shardctl.rebalance.rows.tracking import untracked
from shardctl.rebalance.run import PARALLEL
from shardctl.shard import lanes
from shardctl.shard.database import connect, connected, snapshot
from shardctl.shard.membership import Membership
from shardctl.shard.schema import LaneState, changes, inbox, published

SLOTS_PER_SECOND = 8  # that change databases: what the executor hands over, where rows are few
STAYING_PER_SECOND = 256  # slots that only change generation
# Of a row that is copied, and of one that is compared: between PostgreSQL databases near by, 7 to 15 and 1 to 4 microseconds were
# measured. Between others, this program reads the rows. A run shows its own rate.
POSTGRESQL_SECONDS, OTHERS_SECONDS = (12e-6, 4e-6), (40e-6, 30e-6)
PAUSE_SECONDS = 0.2  # beside the rows: lanes, and the last changes


def measured(fleet: str, urls: Mapping[str, str], window: timedelta, now: datetime) -> dict[int, float]:
    """Writes a second of each slot that were published in the last `window`, over all shards' databases. Raises DatabaseError."""
    counts: dict[int, int] = {}
    since = published(int((now - window).timestamp()) * 1_000_000)
    query = select(inbox.c.slot, func.count()).where(inbox.c.published >= since).group_by(inbox.c.slot)
    with connected(fleet, urls) as engines:
        for engine in engines.values():
            with snapshot(engine) as connection:
                for slot, count in connection.execute(query):
                    counts[slot] = counts.get(slot, 0) + count
    return {slot: count / window.total_seconds() for slot, count in counts.items()}


@dataclass(frozen=True, slots=True)
class RowsToCopy:
    """Rows of the slots that move; of slots that go back to rows they left behind, what has changed since.

    `compared` are the rows of those. `in_pause`: why slots are copied inside their pauses, whatever their size. `seconds`: of a
    row that is copied, and of one that is compared.
    """

    by_slot: Mapping[int, int]
    in_pause: tuple[str, ...] = ()
    compared: int = 0
    seconds: tuple[float, float] = OTHERS_SECONDS

    @property
    def total(self) -> int:
        return sum(self.by_slot.values())


def rows_to_copy(
    fleet: Fleet, moves: Sequence[Move], urls: Mapping[str, str], *, few_rows: int = FEW_ROWS
) -> RowsToCopy:
    """The rows of the slots that move, of every table that moves with them, in the sources' databases. Raises DatabaseError."""
    leaving: dict[str, SlotSet] = {}
    for move in moves:
        leaving[move.source] = leaving.get(move.source, SlotSet()) | move.slots
    by_slot: Counter[int] = Counter()
    in_pause: list[str] = []
    compared, products = 0, set()
    for name, slots in leaving.items():
        engine = connect(urls[name], whose=Membership(fleet.fleet, name))
        try:
            with snapshot(engine) as connection:
                here = _rows_here(connection, fleet, name, slots, few_rows)
        finally:
            engine.dispose()
        by_slot.update(here.by_slot)
        in_pause += here.in_pause
        compared += here.compared
        products.add(engine.dialect.name)
    seconds = POSTGRESQL_SECONDS if products == {"postgresql"} else OTHERS_SECONDS
    return RowsToCopy(by_slot, tuple(dict.fromkeys(in_pause)), compared, seconds)


def _rows_here(connection: Connection, fleet: Fleet, shard: str, slots: SlotSet, few_rows: int) -> RowsToCopy:
    in_pause: tuple[str, ...] = ()
    with suppress(SlotTableError):  # `start` makes what is missing, and reports the rest
        in_pause = tuple(untracked(connection, slot_tables(connection, kinds_of(fleet, shard))))
    if not fleet.rebalancing:
        return RowsToCopy(_rows(connection, fleet, slots), in_pause)
    active = [lane for lane in lanes.read(connection).values() if lane.state == LaneState.ACTIVE and lane.slot in slots]
    rows = _rows(connection, fleet, SlotSet.of(lane.slot for lane in active))  # the others haven't left where they go
    logged = [lane.slot for lane in active if lane.logged_since_active and rows[lane.slot] >= few_rows and not in_pause]
    compared = sum(rows.pop(slot) for slot in logged)
    query = select(changes.c.slot, func.count()).where(changes.c.slot.in_(logged)).group_by(changes.c.slot)
    rows.update({slot: int(count) for slot, count in connection.execute(query)})
    return RowsToCopy(rows, in_pause, compared)


def _rows(connection: Connection, fleet: Fleet, slots: SlotSet) -> Counter[int]:
    places = {(inbox.name, inbox.c.slot.name)}
    for kind in fleet.message_types.values():
        places |= {(name, listed.slot) for name, listed in kind.slot_tables.items()}
        places |= {(kind.table, kind.slot_column)} if kind.table else set()
    rows: Counter[int] = Counter()
    looking = inspect(connection)
    for place, slot_column in sorted(places) if slots.ranges else ():
        schema, _, name = place.rpartition(".")
        if looking.has_table(name, schema=schema or None):
            slot: ColumnClause[int] = column(slot_column)
            mine = or_(*(and_(slot >= first, slot <= last) for first, last in slots.ranges))
            counted = select(slot, func.count()).select_from(table(name, slot, schema=schema or None))
            for number, count in connection.execute(counted.where(mine).group_by(slot)):
                rows[number] += count
    return rows


def expected_seconds(moved: int, staying: int, rows: RowsToCopy | None) -> float:
    """How long the hand-over takes, roughly; without `rows` only what the slots take by themselves."""
    copying = rows.total * rows.seconds[0] + rows.compared * rows.seconds[1] if rows else 0.0
    return moved / SLOTS_PER_SECOND + staying / STAYING_PER_SECOND + copying


def longest_pause_seconds(rows: RowsToCopy) -> float:
    """Of any slot, roughly. One that is copied ahead has little to do in its pause, whatever its size; small ones go together."""
    small = sorted((count for count in rows.by_slot.values() if count < FEW_ROWS), reverse=True)
    inside = max(sum(small[:PARALLEL]), max(rows.by_slot.values(), default=0) if rows.in_pause else 0)
    return PAUSE_SECONDS + inside * rows.seconds[0]
